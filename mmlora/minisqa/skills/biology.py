"""The biology skills on food webs, Punnett squares and traits."""

from __future__ import annotations

import math
import random

from mmlora.minisqa.core import Draft, skill
from mmlora.minisqa.draw import COLORS, SIZE, arrow, canvas, finish, icon, label, paste, shade
from mmlora.minisqa.skills.animals import BIOLOGY
from mmlora.minisqa.words import NAMES, listing

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
#: Every predator here eats every prey, and every prey eats every plant.
PLANTS = ("clover", "corn", "rice", "seedling", "herb", "sunflower")
PREY = ("mouse", "rabbit", "squirrel", "duck", "dove")
PREDATORS = ("fox", "wolf", "eagle", "owl", "snake", "crocodile", "cat")


def _join(pen, start, end, reach, fill, width):
    """An arrow between two icons, kept `reach` pixels away from the middle of each."""
    length = math.dist(start, end)
    ux, uy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    arrow(pen, (start[0] + reach * ux, start[1] + reach * uy), (end[0] - reach * ux, end[1] - reach * uy), fill, width)


def _ink(rng: random.Random):
    return shade(rng, COLORS[rng.choice(("red", "blue", "black", "purple", "brown", "green"))], 15)


@skill(
    "Interpret food webs",
    category="Ecological interactions",
    grades=(5, 8),
    **BIOLOGY,
    lecture="""A food web shows how matter moves through an ecosystem. An arrow starts from an organism that is eaten
    and points to the organism that eats it. Plants are producers: they make their own food.""",
)
def food_web(rng: random.Random) -> Draft:
    prey, predators = rng.sample(PREY, 3), rng.sample(PREDATORS, 3)
    plant, line = rng.choice(PLANTS), rng.randrange(3)
    asks_eater = rng.random() < 0.5
    upright = rng.random() < 0.4
    turned = rng.random() < 0.5
    size = rng.choice((60, 64, 68))
    levels = [size / 2 + 4, SIZE / 2 - 2, SIZE - size / 2 - 4]
    if turned:
        levels.reverse()
    lanes = [size / 2 + 8 + i * (SIZE - size - 16) / 2 + rng.uniform(-4, 4) for i in range(3)]

    def place(level, lane):
        return (lane, level) if upright else (level, lane)

    image, pen = canvas(rng)
    ink, width = _ink(rng), rng.randint(5, 6)
    for i in range(3):
        _join(pen, place(levels[0], lanes[1]), place(levels[1], lanes[i]), size / 2, ink, width)
        _join(pen, place(levels[1], lanes[i]), place(levels[2], lanes[i]), size / 2, ink, width)
        paste(image, icon(prey[i], size), place(levels[1], lanes[i]))
        paste(image, icon(predators[i], size), place(levels[2], lanes[i]))
    paste(image, icon(plant, size), place(levels[0], lanes[1]))

    lane_names, unit = (COLUMNS, "column") if upright else (ROWS, "row")
    where = f"In the {lane_names[line]} {unit}, the arrow from the {prey[line]} points to the {predators[line]}."
    if asks_eater:
        question, choices = f"In this food web, which animal eats the {prey[line]}?", tuple(predators)
        solution = f"{where} So it is eaten by the {predators[line]}."
    else:
        question, choices = f"In this food web, which animal does the {predators[line]} eat?", tuple(prey)
        solution = f"{where} So it eats the {prey[line]}."
    side = (("left", "right"), ("top", "bottom"))[upright][turned]
    pairs = [f"{eater} eats {eaten}" for eaten, eater in zip(prey, predators)]
    caption = f"A food web: {listing(pairs)}, {plant} at the {side}."
    return Draft(question, choices, line, solution, finish(rng, image), caption)


PETALS = {name: COLORS[name] for name in ("red", "yellow", "blue", "purple", "orange", "pink")}


def _flower(pen, center, radius, fill, petals):
    x, y = center
    for i in range(petals):
        turn = 2 * math.pi * i / petals
        px, py = x + 0.62 * radius * math.cos(turn), y + 0.62 * radius * math.sin(turn)
        r = 0.48 * radius
        pen.ellipse((px - r, py - r, px + r, py + r), fill=fill, outline=(60, 60, 60))
    r = 0.3 * radius
    pen.ellipse((x - r, y - r, x + r, y + r), fill=(250, 235, 170), outline=(60, 60, 60))


@skill(
    "Use Punnett squares to calculate probabilities of offspring types",
    category="Genes to traits",
    grades=(6, 10),
    **BIOLOGY,
    lecture="""A Punnett square shows the offspring types that a cross can produce. Each of its boxes is equally likely,
    so the probability of a type is the number of boxes that show it, divided by the number of boxes.""",
)
def punnett_square(rng: random.Random) -> Draft:
    colors = rng.sample(list(PETALS), 2)
    count = rng.randrange(5)
    # A dominant trait never fills exactly one box, a recessive one never exactly three.
    asks_dominant = {1: False, 3: True}.get(count, rng.random() < 0.5)
    dominant_boxes = count if asks_dominant else 4 - count
    crosses = {0: [(0, 0)], 2: [(1, 0), (0, 1)], 3: [(1, 1)], 4: [(2, 2), (2, 1), (1, 2), (2, 0), (0, 2)]}
    big = rng.choice("ABDEFGHRT")
    parents = [[big] * n + [big.lower()] * (2 - n) for n in rng.choice(crosses[dominant_boxes])]
    for parent in parents:
        rng.shuffle(parent)
    asked, other = colors
    box_colors = [
        asked if (big in (above, beside)) == asks_dominant else other for beside in parents[1] for above in parents[0]
    ]

    image, pen = canvas(rng)
    cell, petals = rng.randint(86, 98), rng.choice((5, 6))
    left, top = SIZE - 2 * cell - rng.randint(6, 20), SIZE - 2 * cell - rng.randint(6, 20)
    paints = {name: shade(rng, PETALS[name], 14) for name in colors}
    for i, name in enumerate(box_colors):
        x, y = left + i % 2 * cell, top + i // 2 * cell
        above, beside = parents[0][i % 2], parents[1][i // 2]
        pen.rectangle((x, y, x + cell, y + cell), fill=(255, 255, 252), outline="black", width=3)
        _flower(pen, (x + cell / 2, y + 0.39 * cell), 0.34 * cell, paints[name], petals)
        label(pen, (x + cell / 2, y + 0.85 * cell), "".join(sorted(above + beside)), size=20)
    for i in range(2):
        label(pen, (left + (i + 0.5) * cell, top - 16), parents[0][i], size=26, fill=(20, 70, 160))
        label(pen, (left - 18, top + (i + 0.5) * cell), parents[1][i], size=26, fill=(160, 40, 30))

    counted = [f"{c} {box_colors[: i + 1].count(c)}" if c == asked else c for i, c in enumerate(box_colors)]
    solution = f"Count the {asked} flowers: {listing(counted)}. So the probability of {asked} flowers is {count}/4."
    caption = f"A square of four flowers: {box_colors[0]} and {box_colors[1]} above, {box_colors[2]} and {box_colors[3]} below."
    question = f"What is the probability that a plant produced by this cross will have {asked} flowers?"
    return Draft(question, tuple(f"{n}/4" for n in range(5)), count, solution, finish(rng, image), caption)


INHERITED = (
    "curly hair", "brown eyes", "blue eyes", "dimples", "freckles", "long eyelashes", "attached earlobes", "red hair",
    "blood type A", "straight hair", "green eyes", "a widow's peak", "black hair", "color blindness",
)  # fmt: skip
ACQUIRED = (
    "a scar", "speaking French", "playing chess", "dyed hair", "riding a bicycle", "a pierced ear", "baking bread",
    "reading music", "a suntan", "a broken tooth", "juggling", "knitting", "a tattoo", "knowing many songs",
)  # fmt: skip


@skill(
    "Inherited and acquired traits",
    category="Traits and heredity",
    grades=(2, 8),
    **BIOLOGY,
    lecture="""Organisms are born with inherited traits, which their parents pass on through genes. Acquired traits are
    gained during life, by learning, by what the body meets with, or by choice. Parents do not pass them on.""",
)
def traits(rng: random.Random) -> Draft:
    asks_inherited = rng.random() < 0.5
    right, wrong = (INHERITED, ACQUIRED) if asks_inherited else (ACQUIRED, INHERITED)
    choices = (rng.choice(right), *rng.sample(wrong, 2))
    person = rng.choice(NAMES)
    if asks_inherited:
        question = f"Which of {person}'s traits is inherited?"
        solution = f"A person is born with {choices[0]}: parents pass it on. So the inherited trait is {choices[0]}."
    else:
        question = f"Which of {person}'s traits is acquired?"
        solution = f"Nobody is born with {choices[0]}: it comes during life. So the acquired trait is {choices[0]}."
    return Draft(question, choices, 0, solution)
