"""Physics skills on magnets: which attract each other, and how strongly."""

from __future__ import annotations

import random

from PIL import ImageDraw

from mmlora.minisqa.core import Draft, skill
from mmlora.minisqa.draw import COLORS, SIZE, canvas, finish, label, shade
from mmlora.minisqa.words import capital

PHYSICS = {"subject": "natural science", "topic": "physics"}
POLES = {"N": "north", "S": "south"}


def _pole_paints(rng: random.Random) -> tuple[dict[str, str], dict[str, tuple]]:
    """The colour of N and of S, by name and as drawn: red and blue as on most magnets, or any two."""
    names = ["red", "blue"] if rng.random() < 0.6 else rng.sample(list(COLORS), 2)
    by_pole = dict(zip("NS", names))
    return by_pole, {pole: shade(rng, COLORS[name]) for pole, name in by_pole.items()}


def _magnet(
    draw: ImageDraw.ImageDraw,
    start: float,
    middle: float,
    length: float,
    thick: float,
    poles: str,
    paints: dict,
    vertical: bool,
):
    """A bar magnet that begins at `start` along its axis; `poles` are read from left to right, or downwards."""
    for i, pole in enumerate(poles):
        near = start + i * length / 2
        box = (near, middle - thick / 2, near + length / 2, middle + thick / 2)
        box = (box[1], box[0], box[3], box[2]) if vertical else box
        draw.rectangle(box, fill=paints[pole], outline=(40, 40, 40), width=2)
        ink = "black" if sum(paints[pole]) > 400 else "white"
        label(draw, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), pole, round(0.62 * min(thick, length / 2)), ink)


@skill(
    "Identify magnets that attract or repel",
    **PHYSICS,
    category="Magnets",
    grades=(2, 5),
    weight=1.5,
    lecture="""Magnets can pull or push on each other without touching. Every magnet has a north pole (N) and a
    south pole (S). Opposite poles that face each other attract; like poles that face each other repel.""",
)
def attract_or_repel(rng: random.Random) -> Draft:
    choices = ("attract", "repel")
    answer = rng.randrange(2)
    first = rng.choice(("NS", "SN"))
    second = first if answer == 0 else first[::-1]
    vertical = rng.random() < 0.35
    names, paints = _pole_paints(rng)
    image, draw = canvas(rng)
    length, thick, gap = rng.randint(84, 104), rng.randint(48, 80), rng.randint(8, 36)
    start = rng.uniform(6, SIZE - 6 - 2 * length - gap)
    middle = rng.uniform(60, SIZE - 60)
    _magnet(draw, start, middle, length, thick, first, paints, vertical)
    _magnet(draw, start + length + gap, middle, length, thick, second, paints, vertical)
    one, two = ("upper", "lower") if vertical else ("left", "right")
    near, far = POLES[first[1]], POLES[second[0]]
    rule = "Opposite poles attract" if answer == 0 else "Like poles repel"
    return Draft(
        question="Will these magnets attract or repel each other?",
        choices=choices,
        answer=answer,
        image=finish(rng, image),
        solution=f"The {near} pole of the {one} magnet faces the {far} pole of the {two} magnet. "
        f"{rule}, so the magnets will {choices[answer]}.",
        caption=f"Two magnets, {'different' if answer == 0 else 'equal'} poles facing: {one} {near}, {two} {far}.",
    )


def two_values(rng: random.Random, low: tuple, high: tuple, winner: int | None) -> list[float]:
    """Twice one value from either range; if there is a `winner` (0 or 1), its own from `high`, the other from `low`."""
    if winner is None:
        return [rng.uniform(*rng.choice((low, high)))] * 2
    values = [rng.uniform(*low)] * 2
    values[winner] = rng.uniform(*high)
    return values


@skill(
    "Compare magnitudes of magnetic forces",
    **PHYSICS,
    category="Magnets",
    grades=(6, 8),
    weight=1.5,
    lecture="""Magnets pull or push on each other with a magnetic force. The force is stronger when the magnets are
    closer together, and stronger when the magnets are larger.""",
)
def magnetic_forces(rng: random.Random) -> Draft:
    choices = ("Pair 1", "Pair 2", "neither pair")
    answer = rng.randrange(3)
    by = rng.choice(("gap", "size"))
    gaps = two_values(rng, (54, 78), (10, 22), answer if by == "gap" and answer < 2 else None)
    sizes = two_values(rng, (42, 52), (72, 82), answer if by == "size" and answer < 2 else None)
    columns = rng.random() < 0.35
    poles = rng.choice(("NS", "SN"))
    attracting = rng.random() < 0.5
    _, paints = _pole_paints(rng)
    image, draw = canvas(rng)
    for i in range(2):
        length, gap = sizes[i], gaps[i]
        start = (SIZE - 2 * length - gap) / 2 + rng.uniform(-6, 6)
        middle = 70 + 120 * i + rng.uniform(-6, 6)
        _magnet(draw, start, middle, length, 0.6 * length, poles, paints, columns)
        facing = poles if attracting else poles[::-1]
        _magnet(draw, start + length + gap, middle, length, 0.6 * length, facing, paints, columns)
        label(draw, (13, 128) if columns and i == 0 else (243, 128) if columns else (13, middle), str(i + 1), 30)
    if answer == 2:
        why = "Both are the same, so it is neither pair."
    else:
        closer, which = ("Closer", "the small gap is") if by == "gap" else ("Larger", "the large magnets are")
        why = f"{closer} magnets have a stronger force, and {which} in {choices[answer]}."
    seen = [("small" if sizes[i] < 60 else "large", "small" if gaps[i] < 40 else "large") for i in range(2)]
    facts = [f"{pair}: {size} magnets, {gap} gap." for pair, (size, gap) in zip(choices, seen)]
    told = [f"{capital(size)} magnets, {gap} gap: {pair}." for pair, (size, gap) in zip(choices, seen)]
    return Draft(
        question="In which pair is the magnetic force between the magnets stronger?",
        choices=choices,
        answer=answer,
        hint="All magnets are made of the same material.",
        image=finish(rng, image),
        solution=" ".join([*told, why]),
        caption=" ".join(facts),
    )
