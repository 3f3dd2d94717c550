"""The geography skills: states, continents, oceans, hemispheres, map grids."""

from __future__ import annotations

import math
import random

import numpy as np

from mmlora.minisqa.core import Draft, skill
from mmlora.minisqa.draw import COLORS, SIZE, canvas, finish, icon, label, paste, shade
from mmlora.minisqa.skills.maps import LANDS, MARKERS, state_centers, state_map, whole_world_map, world_map
from mmlora.minisqa.words import listing, spoken

GEOGRAPHY = {"subject": "social science", "topic": "geography"}
#: The states asked for by name, large and spread over the map -> where they are.
KNOWN_STATES = {
    "Washington": "in the northwest corner",
    "California": "on the west coast",
    "Nevada": "in the west, just inland from the coast",
    "Montana": "in the northwest, on the northern border",
    "Arizona": "in the southwest",
    "Colorado": "in the middle of the western half",
    "Texas": "in the south, on the southern border",
    "Kansas": "in the middle of the country",
    "Minnesota": "in the north, on the northern border",
    "Missouri": "just east of the middle of the country",
    "Louisiana": "in the south, on the Gulf coast",
    "Michigan": "in the north, among the Great Lakes",
    "Florida": "in the southeast corner",
    "North Carolina": "on the southern half of the east coast",
    "New York": "in the northeast",
    "Maine": "in the northeast corner",
}


@skill(
    "Identify the 50 states",
    category="Geography",
    grades=(3, 6),
    **GEOGRAPHY,
    lecture="""The United States has 50 states, 48 of which share one stretch of land. Each can be known by where it
    lies and by its shape. This map does not show Alaska and Hawaii.""",
)
def highlighted_state(rng: random.Random) -> Draft:
    choices = tuple(rng.sample(list(KNOWN_STATES), 4))
    answer = rng.randrange(4)
    name, color = choices[answer], rng.choice([c for c in MARKERS if c != "yellow"])
    image = state_map(rng, {name: shade(rng, MARKERS[color], 12)})
    where = KNOWN_STATES[name]
    solution = f"The highlighted state is {where}. The state that lies there is {name}."
    caption = f"The highlighted state is {name}, {where}."
    return Draft("What is the name of the highlighted state?", choices, answer, solution, finish(rng, image), caption)


#: Direction -> (sign, axis) in the map's coordinates: the farthest state has the largest sign * center[axis].
DIRECTIONS = {"north": (-1, 1), "south": (1, 1), "east": (1, 0), "west": (-1, 0)}
EDGES = {"north": "top", "south": "bottom", "east": "right", "west": "left"}
#: States that are too small to be seen well in color.
SMALL = {
    "Rhode Island", "Delaware", "Connecticut", "New Jersey", "New Hampshire", "Vermont", "Massachusetts", "Maryland",
    "West Virginia",
}  # fmt: skip


def _lead(states: list[str], centers, sign: int, axis: int) -> tuple[str, float]:
    """The state that lies farthest that way, and how far it is ahead of the next."""
    *_, second, first = sorted(states, key=lambda name: sign * centers[name][axis])
    return first, sign * (centers[first][axis] - centers[second][axis])


@skill(
    "Which of these states is farthest north, south, east, or west?",
    category="Maps",
    grades=(2, 5),
    **GEOGRAPHY,
    lecture="""Maps have four cardinal directions. On most maps north is at the top, south at the bottom, east at the
    right and west at the left.""",
)
def farthest_state(rng: random.Random) -> Draft:
    direction, choices, answer = rng.choice(list(DIRECTIONS)), tuple(rng.sample(list(MARKERS), 4)), rng.randrange(4)
    centers = state_centers()
    names = [name for name in centers if name not in SMALL]
    while True:
        states = rng.sample(names, 4)
        leads = {way: _lead(states, centers, *DIRECTIONS[way]) for way in DIRECTIONS}
        if len({first for first, _ in leads.values()}) == 4 and min(ahead for _, ahead in leads.values()) > 0.09:
            break
    farthest = leads[direction][0]
    states.remove(farthest)
    states.insert(answer, farthest)
    colors = dict(zip(states, choices))
    image = state_map(rng, {name: shade(rng, MARKERS[color], 12) for name, color in colors.items()})
    ways = [f"{way} {colors[leads[way][0]]}" for way in DIRECTIONS]
    solution = (
        f"{direction.capitalize()} is at the {EDGES[direction]} of the map. "
        f"The farthest ones are {listing(ways)}, so it is the {choices[answer]} one."
    )
    caption = f"Four colored states, farthest {', '.join(ways)}."
    question = f"Which colored state is farthest {direction}?"
    return Draft(question, choices, answer, solution, finish(rng, image), caption)


CONTINENTS = {
    "North America": "in the upper left of the map",
    "South America": "in the lower left of the map, south of North America",
    "Europe": "at the top in the middle, north of Africa",
    "Africa": "in the middle of the map, south of Europe",
    "Asia": "in the upper right of the map",
    "Australia": "in the lower right of the map",
    "Antarctica": "at the very bottom of the map",
}
OCEANS = {
    "Pacific Ocean": "west of the Americas and east of Asia",
    "Atlantic Ocean": "between the Americas and Africa",
    "Indian Ocean": "south of Asia, between Africa and Australia",
    "Arctic Ocean": "at the top of the map, around the North Pole",
    "Southern Ocean": "at the bottom of the map, around Antarctica",
}


def _highlighted(rng: random.Random, kind: str, places: dict[str, str]) -> Draft:
    choices = tuple(rng.sample(list(places), 4))
    answer = rng.randrange(4)
    name, color = choices[answer], rng.choice([c for c in MARKERS if c not in ("blue", "yellow")])
    image = whole_world_map(rng, {name: shade(rng, MARKERS[color], 15)})
    article = "the " if kind == "ocean" else ""
    solution = f"The highlighted {kind} lies {places[name]}. So it is {article}{name}."
    caption = f"The highlighted {kind} is {article}{name}."
    return Draft(f"Which {kind} is highlighted?", choices, answer, solution, finish(rng, image), caption)


@skill(
    "Identify the continents of the world",
    category="Oceans and continents",
    grades=(2, 6),
    **GEOGRAPHY,
    lecture="""A continent is one of the seven largest areas of land on Earth: North America, South America, Europe,
    Africa, Asia, Australia and Antarctica.""",
)
def highlighted_continent(rng: random.Random) -> Draft:
    return _highlighted(rng, "continent", CONTINENTS)


@skill(
    "Identify the oceans of the world",
    category="Oceans and continents",
    grades=(2, 6),
    weight=0.8,
    **GEOGRAPHY,
    lecture="""Oceans are huge bodies of salt water. The world has five: the Atlantic, the Pacific, the Indian, the
    Arctic and the Southern Ocean.""",
)
def highlighted_ocean(rng: random.Random) -> Draft:
    return _highlighted(rng, "ocean", OCEANS)


def _star(pen, center, radius, fill):
    points = []
    for i in range(10):
        r, turn = radius * (0.45 if i % 2 else 1), math.pi * (i / 5 - 0.5)
        points.append((center[0] + r * math.cos(turn), center[1] + r * math.sin(turn)))
    pen.polygon(points, fill=fill, outline=(20, 20, 20))


@skill(
    "Use lines of latitude and longitude",
    category="Maps",
    grades=(4, 8),
    **GEOGRAPHY,
    lecture="""The equator, a line of latitude, divides Earth into the Northern and the Southern Hemisphere. The prime
    meridian, a line of longitude, divides it into the Western and the Eastern Hemisphere.""",
)
def hemispheres(rng: random.Random) -> Draft:
    wide = rng.uniform(0.75, 1.1)
    scale = np.array((wide, wide * rng.uniform(1.2, 1.45)))
    cross = np.array((rng.uniform(112, 144), rng.uniform(112, 144)))
    image, pen = world_map(rng, {}, scale, cross)
    line, width = shade(rng, rng.choice((COLORS["black"], COLORS["brown"], (60, 60, 140)))), rng.randint(3, 5)
    pen.line((0, cross[1], SIZE, cross[1]), fill=line, width=width)
    pen.line((cross[0], 0, cross[0], SIZE), fill=line, width=width)

    def spot(south: int, east: int):
        """A place in that quarter, on the map and in the picture, well away from both lines."""
        reach = (180, 90) * scale - 10
        first, last = np.maximum(31, cross - reach), np.minimum(SIZE - 31, cross + reach)
        return tuple(
            rng.uniform(cross[axis] + 36, last[axis]) if far else rng.uniform(first[axis], cross[axis] - 36)
            for axis, far in ((0, east), (1, south))
        )

    if rng.random() < 0.5:
        return _one_star(rng, image, pen, spot)
    return _four_stars(rng, image, pen, spot)


def _one_star(rng: random.Random, image, pen, spot) -> Draft:
    south, east, color = rng.randrange(2), rng.randrange(2), rng.choice(list(MARKERS))
    _star(pen, spot(south, east), rng.randint(24, 30), MARKERS[color])
    sides = ("above", "below")[south], ("left", "right")[east]
    caption = f"One {color} star, {sides[0]} the equator and {sides[1]} of the prime meridian."
    if rng.random() < 0.5:
        choices, answer = ("Northern Hemisphere", "Southern Hemisphere"), south
        solution = f"The star is {sides[0]} the equator. So it is in the {choices[answer]}."
        question = "The equator runs across the map. In which hemisphere is the star?"
    else:
        choices, answer = ("Western Hemisphere", "Eastern Hemisphere"), east
        where = f"to the {sides[1]} of"
        solution = f"The star is {where} the prime meridian. So it is in the {choices[answer]}."
        question = "The prime meridian runs down the map. In which hemisphere is the star?"
    return Draft(question, choices, answer, solution, finish(rng, image), caption)


def _four_stars(rng: random.Random, image, pen, spot) -> Draft:
    colors = rng.sample(list(MARKERS), 4)
    asked = rng.randrange(4)
    quarters = [(south, east) for south in range(2) for east in range(2)]
    radius = rng.randint(24, 30)
    for (south, east), color in zip(quarters, colors):
        _star(pen, spot(south, east), radius, MARKERS[color])
    south, east = quarters[asked]
    down, across = ("north", "south")[south], ("west", "east")[east]
    corner = f"{('upper', 'lower')[south]} {('left', 'right')[east]}"
    question = f"Which star is {down} of the equator and {across} of the prime meridian?"
    stars = [f"{color} {('north', 'south')[s]}{('west', 'east')[e]}" for (s, e), color in zip(quarters, colors)]
    solution = (
        f"{down.capitalize()} and {across} is the {corner} part of the map. The stars are {listing(stars)}, "
        f"so it is the {colors[asked]} one."
    )
    caption = f"Four stars: {', '.join(stars)}."
    return Draft(question, tuple(colors), asked, solution, finish(rng, image), caption)


PLACES = (
    "school",
    "hospital",
    "bank",
    "house",
    "store",
    "factory",
    "church",
    "castle",
    "stadium",
    "tent",
    "park",
    "fountain",
    "circus",
    "slide",
)


@skill(
    "Use a letter-number grid",
    category="Maps",
    grades=(1, 4),
    **GEOGRAPHY,
    lecture="""A grid on a map names each square by the letter of its row and the number of its column. B2 is where row
    B and column 2 meet.""",
)
def letter_number_grid(rng: random.Random) -> Draft:
    names = rng.sample(PLACES, 4)
    cells = rng.sample([(row, column) for row in range(2) for column in range(3)], 4)
    answer = rng.randrange(4)
    image, pen = canvas(rng)
    cell = rng.randint(68, 73)
    left, top = SIZE - 3 * cell - rng.randint(2, 8), SIZE - 2 * cell - rng.randint(2, 60)
    checks = [shade(rng, rng.choice(LANDS), 12) for _ in range(2)]
    for column in range(3):
        label(pen, (left + (column + 0.5) * cell, top - 15), "123"[column], size=24)
    for row in range(2):
        label(pen, (left - 15, top + (row + 0.5) * cell), "AB"[row], size=24)
        for column in range(3):
            corner = (left + column * cell, top + row * cell)
            box = (*corner, corner[0] + cell, corner[1] + cell)
            pen.rectangle(box, fill=checks[(row + column) % 2], outline="black", width=2)
    for name, (row, column) in zip(names, cells):
        paste(image, icon(name, 60), (left + (column + 0.5) * cell, top + (row + 0.5) * cell))
    row, column = cells[answer]
    solution = (
        f"Row {'AB'[row]} is the {('upper', 'lower')[row]} row and column {column + 1} is the "
        f"{('left', 'middle', 'right')[column]} column. The {spoken(names[answer])} is there."
    )
    held = {cell: spoken(name) for cell, name in zip(cells, names)}
    named = [f"{'AB'[row]}{column + 1} {held.get((row, column), 'empty')}" for row in range(2) for column in range(3)]
    caption = f"A grid: {' '.join(named)}"
    choices = tuple(spoken(name) for name in names)
    return Draft(f"Which place is in {'AB'[row]}{column + 1}?", choices, answer, solution, finish(rng, image), caption)
