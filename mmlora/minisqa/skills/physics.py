"""Physics skills besides magnets: thermometers, particle motion, and the variables of an experiment."""

from __future__ import annotations

import math
import random

from mmlora.minisqa.core import Draft, skill
from mmlora.minisqa.draw import COLORS, arrow, canvas, finish, label, shade
from mmlora.minisqa.skills.magnets import PHYSICS, two_values
from mmlora.minisqa.words import NAMES, capital


@skill(
    "Read a thermometer",
    **PHYSICS,
    category="Thermometers",
    grades=(2, 4),
    weight=1.5,
    lecture="""A thermometer measures temperature. Find the top of the colored liquid, then read the number on the
    scale at that height. Temperature can be given in degrees Celsius (°C) or Fahrenheit (°F).""",
)
def thermometer(rng: random.Random) -> Draft:
    unit, lowest = rng.choice((("°C", -20), ("°F", 0)))
    steps = rng.sample(range(11), 3)
    while min(abs(a - b) for a in steps for b in steps if a is not b) < 2:
        steps = rng.sample(range(11), 3)
    answer = rng.randrange(3)
    values = [lowest + 10 * step for step in steps]
    name = rng.choice(("red", "blue", "green", "purple", "orange", "pink"))
    image, draw = canvas(rng)
    x, top, pitch, half = rng.randint(70, 186), rng.randint(18, 30), rng.uniform(16.4, 18.0), rng.randint(8, 15)
    bottom = top + 10 * pitch
    level = bottom - steps[answer] * pitch
    ink, fill, glass = (40, 40, 40), shade(rng, COLORS[name]), shade(rng, (244, 246, 250), 8)
    draw.rounded_rectangle((x - half, top - 12, x + half, bottom + 20), half, fill=glass, outline=ink, width=2)
    draw.ellipse((x - half - 6, bottom + 6, x + half + 6, bottom + 2 * half + 18), fill=fill, outline=ink, width=2)
    draw.rectangle((x - half + 3, level, x + half - 3, bottom + half + 8), fill=fill)
    side = rng.choice((-1, 1))
    for step in range(11):
        y, tick = bottom - step * pitch, 14 if step % 2 == 0 else 7
        draw.line((x + side * half, y, x + side * (half + tick), y), fill=ink, width=2)
        if step % 2 == 0:
            label(draw, (x + side * (half + 18), y), str(lowest + 10 * step), 19, anchor="lm" if side > 0 else "rm")
    label(draw, (x - side * (half + 24), top + 8), unit, 26)
    reading = f"{values[answer]}{unit}"
    return Draft(
        question="What temperature does this thermometer show?",
        choices=tuple(f"{v}{unit}" for v in values),
        answer=answer,
        image=finish(rng, image),
        solution=f"The top of the {name} liquid is level with {values[answer]} on the scale. "
        f"The thermometer shows {reading}.",
        caption=f"A thermometer with {name} liquid at {reading}.",
    )


def _box_pair(rng: random.Random) -> tuple[list[tuple[float, float, float, float]], bool]:
    """Two boxes for samples A and B, and whether B is below A (else to its right)."""
    below = rng.random() < 0.35
    near, far = (6 + rng.uniform(0, 4), 132 + rng.uniform(-2, 2))
    boxes = [(30, a, 250, a + 116) if below else (a, 34, a + 116, 250) for a in (near, far)]
    return boxes, below


def _moving_particles(rng: random.Random, draw, box, count: int, radius: float, speed: float, fill):
    """`count` discs spread over `box`, each with an arrow of length `speed` that stays inside."""
    x0, y0, x1, y1 = box
    columns = 2 if x1 - x0 < y1 - y0 else 3
    rows = 5 - columns
    width, height = (x1 - x0) / columns, (y1 - y0) / rows
    centers = [
        (x0 + (i + 0.5 + rng.uniform(-0.12, 0.12)) * width, y0 + (j + 0.5 + rng.uniform(-0.12, 0.12)) * height)
        for i, j in rng.sample([(i, j) for i in range(columns) for j in range(rows)], count)
    ]
    for x, y in centers:
        for tries in range(1000):
            angle = rng.uniform(0, 2 * math.pi)
            tip = (x + (radius + speed) * math.cos(angle), y + (radius + speed) * math.sin(angle))
            free = tries > 50 or all(math.dist(tip, other) > radius + 8 for other in centers)
            if free and x0 + 4 < tip[0] < x1 - 4 and y0 + 4 < tip[1] < y1 - 4:
                break
        arrow(draw, (x, y), tip, (30, 30, 30), 3)
    for x, y in centers:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=(40, 40, 40))


@skill(
    "Compare average kinetic energies of particles",
    **PHYSICS,
    category="Particle motion and energy",
    grades=(6, 10),
    weight=1.5,
    lecture="""The temperature of a gas depends on the average kinetic energy of its particles. Kinetic energy is
    greater when the particles have more mass, and greater when they move faster.""",
)
def kinetic_energies(rng: random.Random) -> Draft:
    choices = ("Sample A", "Sample B", "neither sample")
    answer = rng.randrange(3)
    by = rng.choice(("speed", "mass"))
    speeds = two_values(rng, (12, 15), (33, 40), answer if by == "speed" and answer < 2 else None)
    radii = two_values(rng, (6, 7.5), (13, 15.5), answer if by == "mass" and answer < 2 else None)
    colors = rng.sample(sorted(set(COLORS) - {"black"}), 2)
    count = rng.randint(3, 5)
    boxes, below = _box_pair(rng)
    image, draw = canvas(rng)
    for i, box in enumerate(boxes):
        draw.rectangle(box, fill=shade(rng, (240, 244, 248), 12), outline=(60, 60, 60), width=3)
        label(draw, (15, (box[1] + box[3]) / 2) if below else ((box[0] + box[2]) / 2, 18), "AB"[i], 28)
        _moving_particles(rng, draw, box, count, radii[i], speeds[i], shade(rng, COLORS[colors[i]]))
    sizes = ["small" if r < 10 else "large" for r in radii]
    lengths = ["short" if s < 20 else "long" for s in speeds]
    if answer == 2:
        why = "Both are the same, so it is neither sample."
    else:
        kind = "Faster" if by == "speed" else "Heavier"
        why = f"{kind} particles have more kinetic energy, so it is {choices[answer]}."
    shown = " ".join(f"{choices[i]} has {sizes[i]} particles and {lengths[i]} arrows." for i in range(2))
    facts = [f"Sample {'AB'[i]}: {sizes[i]} {colors[i]} particles, {lengths[i]} arrows." for i in range(2)]
    return Draft(
        question="Which sample has the higher temperature?",
        choices=choices,
        answer=answer,
        hint="A longer arrow means a faster particle. A larger particle has more mass.",
        image=finish(rng, image),
        solution=f"{shown} {why}",
        caption=" ".join(facts),
    )


#: For each setting: what is grown or made, what may be changed, what may be measured.
EXPERIMENTS = {
    "bean plants": (
        ("the color of the light", "the amount of water", "the type of soil", "the size of the pot"),
        ("the height of the plants", "the number of leaves", "the number of flowers"),
    ),
    "toy cars": (
        ("the slope of the ramp", "the weight of the cars", "the surface of the ramp"),
        ("the distance rolled", "the speed at the bottom", "the time to the bottom"),
    ),
    "rubber balls": (
        ("the height of the drop", "the size of the balls", "the kind of floor"),
        ("the height of the bounce", "the number of bounces", "the time until rest"),
    ),
    "sugar cubes": (
        ("the temperature of the water", "the size of the cubes", "the speed of stirring"),
        ("the time to dissolve", "the amount of sugar left"),
    ),
    "bread doughs": (
        ("the amount of yeast", "the temperature of the room", "the kind of flour"),
        ("the height of the dough", "the number of bubbles", "the weight of the loaf"),
    ),
    "paper planes": (
        ("the length of the wings", "the kind of paper", "the shape of the nose"),
        ("the distance flown", "the time in the air"),
    ),
    "bird feeders": (
        ("the color of the feeders", "the type of seed", "the height above ground"),
        ("the number of visiting birds", "the amount of seed eaten"),
    ),
    "fish tanks": (
        ("the temperature of the tanks", "the amount of food", "the number of lamps"),
        ("the growth of the fish", "the amount of algae"),
    ),
}


@skill(
    "Identify independent and dependent variables",
    **PHYSICS,
    category="Designing experiments",
    grades=(6, 10),
    weight=1.5,
    lecture="""In an experiment, the independent variable is what the scientist changes on purpose. The dependent
    variable is what the scientist measures, to see whether it depends on the change.""",
)
def variables(rng: random.Random) -> Draft:
    thing = rng.choice(list(EXPERIMENTS))
    changed, measured = (rng.choice(options) for options in EXPERIMENTS[thing])
    answer = rng.randrange(2)
    kind, deed = (("independent", "changed on purpose"), ("dependent", "measured"))[answer]
    name, groups = rng.choice(NAMES), rng.choice(("two", "three", "four"))
    hint = rng.choice(
        (
            f"{name} made {groups} groups of {thing}. {capital(changed)} was different for each group. "
            f"Then {name} recorded {measured} in each group.",
            f"{name} wanted to compare {measured} among {thing}. For each of {groups} groups, {name} chose a different "
            f"value for {changed}.",
        )
    )
    return Draft(
        question=f"Which was the {kind} variable in this experiment?",
        choices=(changed, measured),
        answer=answer,
        hint=hint,
        solution=f"{name} changed {changed} and measured {measured}. The {kind} variable is what was {deed}: "
        f"{(changed, measured)[answer]}.",
    )
