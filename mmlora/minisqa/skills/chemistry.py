"""Chemistry skills: concentrations, states of matter, properties of objects, changes."""

from __future__ import annotations

import random

from PIL import ImageDraw

from mmlora.minisqa.core import Draft, skill
from mmlora.minisqa.draw import COLORS, canvas, finish, icon, label, paste, scatter, shade
from mmlora.minisqa.words import NAMES

CHEMISTRY = {"subject": "natural science", "topic": "chemistry"}


def _discs(draw: ImageDraw.ImageDraw, points, radius: float, fill):
    for x, y in points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=(50, 50, 50))


def _beaker(rng: random.Random, draw: ImageDraw.ImageDraw, box, level: float, water):
    """A glass with water up to `level`, a share of its height; returns the water's box."""
    x0, y0, x1, y1 = box
    surface = y1 - level * (y1 - y0)
    draw.rectangle((x0, surface, x1, y1), fill=water)
    draw.line((x0, y0, x0, y1, x1, y1, x1, y0), fill=(60, 60, 60), width=4, joint="curve")
    return (x0 + 4, surface + 3, x1 - 4, y1 - 4)


def _particle_counts(rng: random.Random, answer: int) -> tuple[list[int], list[int]]:
    """Counts and volumes (in halves of a beaker) of two solutions whose comparison has this answer (2: equal)."""
    if rng.random() < 0.7:
        few = rng.randint(2, 4)
        volumes = [rng.choice((1, 2))] * 2
        counts = [few, few]
        if answer < 2:
            counts[answer] = few + rng.randint(3, 5)
        else:
            counts = [rng.choice((few, few + 3))] * 2
        return counts, volumes
    small = rng.randrange(2) if answer == 2 else answer
    n = rng.randint(2, 4)
    volumes, counts = [2, 2], [n, n]
    volumes[small] = 1
    counts[small] = n if answer == 2 else n + rng.randint(1, 3)
    counts[1 - small] = 2 * n if answer == 2 else n
    return counts, volumes


@skill(
    "Compare concentrations of solutions",
    **CHEMISTRY,
    category="Solutions",
    grades=(6, 8),
    weight=1.5,
    lecture="""A solution is made of a solvent and particles of a solute. Its concentration is the number of solute
    particles in a given volume. In equal volumes, the solution with more particles is more concentrated.""",
)
def concentrations(rng: random.Random) -> Draft:
    choices = ("Solution A", "Solution B", "neither solution")
    answer = rng.randrange(3)
    counts, volumes = _particle_counts(rng, answer)
    color = rng.choice(("red", "orange", "green", "purple", "pink", "brown", "black"))
    image, draw = canvas(rng)
    fill, radius = shade(rng, COLORS[color]), rng.uniform(7, 9.5)
    water, top, full = shade(rng, (190, 220, 245), 10), rng.randint(44, 70), rng.uniform(0.8, 0.9)
    for i in range(2):
        x0 = 14 + 122 * i + rng.uniform(-4, 4)
        inside = _beaker(rng, draw, (x0, top, x0 + 106, 248), full * volumes[i] / 2, water)
        _discs(draw, scatter(rng, inside, counts[i], radius, 2.6 * radius), radius, fill)
        label(draw, (x0 + 53, top - 20), "AB"[i], 28)
    whole = [count * 2 // volume for count, volume in zip(counts, volumes)]  # as many as a full beaker would have
    told = [
        f"{name}, half: {count} particles, so {full} in a full beaker."
        if full > count
        else f"{name}, full: {count} particles."
        for name, count, full in zip("AB", counts, whole)
    ]
    if answer == 2:
        why = f"{whole[0]} and {whole[1]} are equal, so it is neither solution."
    else:
        why = f"{whole[answer]} is more than {whole[1 - answer]}, so it is {choices[answer]}."
    heights = ["half" if v == 1 else "full" for v in volumes]
    return Draft(
        question=f"Which solution has a higher concentration of {color} particles?",
        choices=choices,
        answer=answer,
        image=finish(rng, image),
        solution=" ".join([*told, why]),
        caption=f"{counts[0]} {color} particles in Solution A, {heights[0]}. {counts[1]} in Solution B, {heights[1]}.",
    )


STATES = ("solid", "liquid", "gas")
ORDER = {
    "solid": "in regular rows, close together",
    "liquid": "close together without order at the bottom",
    "gas": "far apart and spread out",
}


def _particles_of(rng: random.Random, state: str, box, radius: float) -> list[tuple[float, float]]:
    """Where the particles of `state` are in the container `box`."""
    x0, y0, x1, y1 = box
    pitch = 2.12 * radius
    if state == "gas":
        return scatter(rng, box, rng.randint(5, 8), radius, 3.4 * radius)
    if state == "solid":
        columns = max(3, int((x1 - x0) / pitch) - rng.randint(1, 2))
        rows = max(3, round((y1 - y0) * rng.uniform(0.3, 0.5) / pitch))
        left = rng.uniform(x0 + radius, x1 - radius - (columns - 1) * pitch)
        return [(left + i * pitch, y1 - radius - j * pitch) for i in range(columns) for j in range(rows)]
    surface = y1 - rng.uniform(0.38, 0.55) * (y1 - y0)
    area = (x1 - x0) * (y1 - surface)
    return scatter(rng, (x0, surface, x1, y1), int(0.62 * area / pitch**2), radius, 1.9 * radius)


@skill(
    "Identify solids, liquids, and gases",
    **CHEMISTRY,
    category="States of matter",
    grades=(2, 5),
    weight=1.5,
    lecture="""In a solid, the particles are close together in a fixed order, so a solid keeps its shape. In a liquid,
    they are close together but without order. In a gas, they are far apart and fill the container.""",
)
def states_of_matter(rng: random.Random) -> Draft:
    image, draw = canvas(rng)
    several = rng.random() < 0.6
    if several:
        shown = rng.sample(STATES, 3)
        answer = rng.randrange(3)
        asked, choices = shown[answer], ("Sample A", "Sample B", "Sample C")
        question = f"In which sample are the particles those of a {asked}?"
        boxes = [(6 + 84 * i, 60, 82 + 84 * i, 240) for i in range(3)]
        radius = rng.uniform(6, 7.6)
    else:
        choices, answer = STATES, rng.randrange(3)
        shown = [STATES[answer]]
        question = "Are the particles in this container those of a solid, a liquid or a gas?"
        width, height = rng.randint(130, 200), rng.randint(150, 210)
        x0, y0 = rng.randint(16, 240 - width), rng.randint(12, 240 - height)
        boxes = [(x0, y0, x0 + width, y0 + height)]
        radius = rng.uniform(10, 14)
    color = rng.choice(sorted(COLORS))
    fill = shade(rng, COLORS[color])
    for i, (state, (x0, y0, x1, y1)) in enumerate(zip(shown, boxes)):
        draw.rectangle((x0, y0, x1, y1), fill=shade(rng, (240, 246, 250), 10), outline=(60, 60, 60), width=3)
        _discs(draw, _particles_of(rng, state, (x0 + 4, y0 + 4, x1 - 4, y1 - 4), radius), radius, fill)
        if several:
            label(draw, ((x0 + x1) / 2, 32), "ABC"[i], 30)
    state = shown[answer] if several else shown[0]
    if several:
        right = choices[answer]
        solution = f"In {right} the particles are {ORDER[state]}. That is a {state}, so the answer is {right}."
        caption = f"Sample A is a {shown[0]}, Sample B is a {shown[1]}, Sample C is a {shown[2]}."
    else:
        solution = f"The {color} particles are {ORDER[state]}. Particles in this arrangement form a {state}."
        caption = f"One container with {color} particles, {ORDER[state]}."
    return Draft(question, choices, answer, solution, finish(rng, image), caption)


#: For each icon: the properties it surely has, and those that somebody might say it has.
OBJECTS = {
    "teddy_bear": ("soft", ""), "sock": ("soft", ""), "scarf": ("soft", ""), "sponge": ("soft", ""),
    "yarn": ("soft", ""), "feather": ("soft", ""), "glove": ("soft", ""), "shirt": ("soft", ""),
    "banana": ("sweet soft", ""), "strawberry": ("sweet soft", ""), "ice_cream": ("sweet soft cold", ""),
    "peach": ("sweet", "soft"), "grapes": ("sweet", "soft"), "cherries": ("sweet", "soft"),
    "lollipop": ("sweet hard", "see-through"), "cookie": ("sweet", "hard soft"), "pineapple": ("sweet hard", ""),
    "hammer": ("hard", ""), "rock": ("hard", ""), "brick": ("hard", ""), "coin": ("hard", ""), "dice": ("hard", ""),
    "key": ("hard", ""), "bolt": ("hard", ""), "bell": ("hard", ""),
    "window": ("see-through hard", ""), "glasses": ("see-through", "hard"),
    "magnifying_glass": ("see-through hard", ""), "droplet": ("see-through", "soft cold"),
    "bubbles": ("see-through", "soft"), "ice_cube": ("see-through hard cold", ""),
    "snowman": ("cold", "soft hard"), "snowflake": ("cold", "soft see-through"),
    "fire": ("hot", "see-through"), "candle": ("hot", "hard soft"), "sun": ("hot", ""), "volcano": ("hot hard", ""),
}  # fmt: skip
UNCOUNTED = {"bubbles", "glasses", "cherries", "grapes", "dice", "fire", "yarn", "honey"}
PROPERTIES = ("soft", "hard", "sweet", "see-through", "cold", "hot")


def _sharing(rng: random.Random, shared: str, others: list[str]) -> list[str]:
    """Three icons that all have the property `shared`, and for each of `others` one that surely has not."""
    pool = [name for name, (sure, _) in OBJECTS.items() if shared in sure.split()]
    while True:
        names = rng.sample(pool, 3)
        if all(any(other not in " ".join(OBJECTS[name]).split() for name in names) for other in others):
            return names


def _common(names: list[str]) -> list[str]:
    """The properties that each of these icons surely has."""
    return [p for p in PROPERTIES if all(p in OBJECTS[name][0].split() for name in names)]


@skill(
    "Compare properties of objects",
    **CHEMISTRY,
    category="Materials",
    grades=(1, 4),
    weight=1.2,
    lecture="""An object has properties that can be seen, felt or tasted: it can be soft or hard, sweet, see-through,
    cold or hot. A property that objects have in common is one that every one of them has.""",
)
def shared_property(rng: random.Random) -> Draft:
    choices = tuple(rng.sample(PROPERTIES, 3))
    answer = rng.randrange(3)
    names = _sharing(rng, choices[answer], [c for c in choices if c != choices[answer]])
    image, _ = canvas(rng)
    places = rng.choice(
        (
            ((66, 70), (190, 70), (128, 188)),
            ((128, 66), (66, 190), (190, 190)),
            ((56, 60), (128, 130), (200, 200)),
            ((200, 60), (128, 130), (56, 200)),
        )
    )
    for name, (x, y) in zip(names, places):
        paste(image, icon(name, rng.randrange(76, 101, 8)), (x + rng.uniform(-6, 6), y + rng.uniform(-6, 6)))
    articles = ["" if name in UNCOUNTED else "an " if name[0] == "i" else "a " for name in names]
    words = [article + name.replace("_", " ") for article, name in zip(articles, names)]
    listed = f"{words[0]}, {words[1]} and {words[2]}"
    return Draft(
        question="Which property do these three objects have in common?",
        choices=choices,
        answer=answer,
        image=finish(rng, image),
        solution=f"The objects are {listed}. Each one of them is {choices[answer]}, so the property they share is "
        f"{choices[answer]}.",
        caption=f"Three objects, all {' and '.join(_common(names))}: {', '.join(names).replace('_', ' ')}.",
    )


#: What happens, with the things it can happen to.
PHYSICAL = {
    "melting {}": ("butter in a pan", "chocolate in a bowl", "an ice cube", "candle wax", "cheese on toast"),
    "cutting {}": ("a carrot", "a sheet of paper", "a piece of rope", "a loaf of bread", "a cucumber"),
    "freezing {}": ("orange juice", "a bottle of water", "yogurt", "berry juice"),
    "dissolving {}": ("sugar in tea", "salt in water", "honey in warm milk"),
    "mixing {}": ("sand and pebbles", "a fruit salad", "beads of two colors"),
    "breaking {}": ("a plate", "a chalk stick", "a glass vase", "a stone"),
    "drying {}": ("wet towels in the sun", "a wet shirt", "washed cups"),
    "bending {}": ("a wire", "a paper clip", "a plastic ruler"),
}
CHEMICAL = {
    "burning {}": ("a candle", "a pile of leaves", "a piece of paper", "a log", "a marshmallow"),
    "baking {}": ("a cake", "a loaf of bread", "cookies", "a pie"),
    "frying {}": ("an egg", "a pancake", "a piece of chicken", "fish"),
    "digesting {}": ("an apple", "a sandwich", "rice", "milk"),
    "the rusting of {}": ("a nail", "a bicycle chain", "an old gate", "an iron fence"),
    "the rotting of {}": ("a banana", "a pumpkin", "fallen leaves", "an old log"),
    "the souring of {}": ("milk", "cream", "apple cider"),
    "lighting {}": ("a match", "a gas stove", "a firework"),
}


@skill(
    "Identify physical and chemical changes",
    **CHEMISTRY,
    category="Physical and chemical change",
    grades=(4, 8),
    lecture="""In a physical change, a substance stays the same type of matter, only its shape or state changes. In a
    chemical change, the matter turns into a different type of matter, as when it burns, rusts, rots or is cooked.""",
)
def kinds_of_change(rng: random.Random) -> Draft:
    answer = rng.randrange(2)
    event, things = rng.choice(list((PHYSICAL, CHEMICAL)[answer].items()))
    event = event.format(rng.choice(things))
    why, kind = (
        ("It is still the same type of matter afterwards", "a physical change"),
        ("A different type of matter forms", "a chemical change"),
    )[answer]
    return Draft(
        question=f"{rng.choice(NAMES)} gives {event} as an example in class. What kind of change is it?",
        choices=("a physical change", "a chemical change"),
        answer=answer,
        solution=f"Think of {event}. {why}, so it is {kind}.",
    )
