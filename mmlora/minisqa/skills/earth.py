"""Earth science skills: rock layers and fossils, phases of the Moon, weather and climate."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from mmlora.minisqa.core import Draft, skill
from mmlora.minisqa.draw import COLORS, SIZE, canvas, finish, shade
from mmlora.minisqa.words import NAMES

EARTH = {"subject": "natural science", "topic": "earth-science"}


def _curve(count: int, radius) -> list[tuple[float, float]]:
    """`count` points around the origin at the distance `radius(angle)`."""
    angles = [2 * math.pi * i / count for i in range(count)]
    return [(radius(a) * math.cos(a), radius(a) * math.sin(a)) for a in angles]


#: Outlines of fossils in a square from -1 to 1.
FOSSILS = {
    "fish": [(1, 0), (0.6, -0.4), (0.1, -0.5), (-0.5, -0.12), (-1, -0.6), (-0.8, 0), (-1, 0.6), (-0.5, 0.12),
             (0.1, 0.5), (0.6, 0.4)],
    "leaf": [(-1, 0.1), (-0.7, 0.06), (-0.3, -0.5), (0.2, -0.6), (1, 0), (0.2, 0.6), (-0.3, 0.5), (-0.7, 0.14)],
    "sea star": _curve(10, lambda a: 1 if round(a / (math.pi / 5)) % 2 == 0 else 0.4),
    "shell": [(0, 0.8), *[(math.cos(a), 0.1 - 0.85 * math.sin(a)) for a in (math.pi * i / 8 for i in range(9))]],
    "bone": [(-0.6, -0.2), (-0.7, -0.55), (-1, -0.4), (-0.9, 0), (-1, 0.4), (-0.7, 0.55), (-0.6, 0.2), (0.6, 0.2),
             (0.7, 0.55), (1, 0.4), (0.9, 0), (1, -0.4), (0.7, -0.55), (0.6, -0.2)],
    "tooth": [(-0.7, -0.6), (0, -0.4), (0.7, -0.6), (0.5, 0.1), (0, 1), (-0.5, 0.1)],
    "egg": [((0.62 + 0.14 * v) * u, 0.95 * v) for u, v in _curve(20, lambda a: 1)],
}  # fmt: skip


def _fossil(rng: random.Random, draw: ImageDraw.ImageDraw, name: str, x: float, y: float, size: float, fill, ink):
    """The fossil `name` with some lines in it, tilted a little and maybe mirrored."""
    tilt, mirror = rng.uniform(-0.25, 0.25), rng.choice((-1, 1))
    cos, sin = size * math.cos(tilt), size * math.sin(tilt)

    def place(points):
        return [(x + mirror * u * cos - v * sin, y + mirror * u * sin + v * cos) for u, v in points]

    draw.polygon(place(FOSSILS[name]), fill=fill, outline=ink, width=2)
    if name == "fish":
        draw.line(place([(-0.5, 0), (0.5, 0)]), fill=ink, width=2)
    if name == "leaf":
        draw.line(place([(-1, 0.1), (0.9, 0)]), fill=ink, width=2)
        for u in (-0.4, 0, 0.4):
            draw.line(place([(u + 0.1, -0.4), (u - 0.15, 0.04), (u + 0.1, 0.4)]), fill=ink, width=2)
    if name == "shell":
        for u in (-0.6, 0, 0.6):
            draw.line(place([(0, 0.7), (u, -0.5)]), fill=ink, width=2)


def _strata(rng: random.Random, draw: ImageDraw.ImageDraw, names: list[str]) -> list[float]:
    """Wavy, slightly tilted layers of these colours from the top down; returns the middle of each layer."""
    count = len(names)
    bounds = [SIZE * (i + (rng.uniform(-0.1, 0.1) if 0 < i < count else 0)) / count for i in range(count + 1)]
    wave, phase, tilt = rng.uniform(0, 5), rng.uniform(0, 6.3), rng.uniform(-7, 7)
    xs = range(0, SIZE + 16, 16)
    for i, name in enumerate(names):
        upper = [(x, bounds[i] + wave * math.sin(phase + i + x / 40) + tilt * (x / SIZE - 0.5)) for x in xs]
        upper = [(x, -1) for x in xs] if i == 0 else upper
        draw.polygon([*upper, (SIZE, SIZE), (0, SIZE)], fill=shade(rng, COLORS[name], 15))
        if i:
            draw.line(upper, fill=(60, 50, 45), width=2)
    return [(a + b) / 2 for a, b in zip(bounds, bounds[1:])]


@skill(
    "Interpret rock layers and fossils",
    **EARTH,
    category="Fossils",
    grades=(5, 8),
    weight=1.5,
    lecture="""Layers of sedimentary rock form one on top of the other. In layers that were not disturbed, a lower
    layer, and a fossil inside it, is older than the layers and fossils above it.""",
)
def rock_layers(rng: random.Random) -> Draft:
    layers = rng.sample(sorted(COLORS), 4)
    image, draw = canvas(rng)
    middles = _strata(rng, draw, layers)
    about_fossils = rng.random() < 0.6
    number = rng.randint(2, 3)
    fossils = rng.sample(sorted(FOSSILS), number)
    rows = sorted(rng.sample(range(len(layers)), number))
    ink = (50, 40, 35)
    for name, row in zip(fossils, rows):
        fill, size = shade(rng, (245, 238, 215), 10), rng.uniform(0.38, 0.44) * SIZE / len(layers)
        _fossil(rng, draw, name, rng.uniform(80, 176), middles[row], size, fill, ink)
    oldest = rng.random() < 0.5
    if about_fossils:
        choices = tuple(f"the {name}" for name in fossils)
        answer = number - 1 if oldest else 0
        word = ("older" if oldest else "younger") if number == 2 else ("oldest" if oldest else "youngest")
        question = f"Which of these fossils is {'' if number == 2 else 'the '}{word}?"
        seen = f"From top to bottom the fossils are {', '.join(choices[:-1])} and {choices[-1]}."
    else:
        choices = tuple(f"the {layers[i]} layer" for i in range(len(layers)))
        answer = len(layers) - 1 if oldest else 0
        word = "oldest" if oldest else "youngest"
        question = f"Which rock layer is the {word}?"
        seen = f"From top to bottom the layers are {', '.join(layers[:-1])} and {layers[-1]}."
    rule = ("Lower" if oldest else "Higher") + " layers are " + ("older" if oldest else "younger")
    return Draft(
        question=question,
        choices=choices,
        answer=answer,
        image=finish(rng, image),
        solution=f"{seen} {rule}, so the {word} is {choices[answer]}.",
        caption=f"Layers from the top: {', '.join(layers)}. Fossils: {', '.join(fossils)}.",
    )


#: For each phase: the lit side, how much of the disc is lit, and the way the terminator bulges (1: into the dark).
PHASES = {
    "new moon": ("right", "none of it", None),
    "waxing crescent": ("right", "less than half of it", -1),
    "first quarter": ("right", "half of it", 0),
    "waxing gibbous": ("right", "more than half of it", 1),
    "full moon": ("right", "all of it", None),
    "waning gibbous": ("left", "more than half of it", 1),
    "third quarter": ("left", "half of it", 0),
    "waning crescent": ("left", "less than half of it", -1),
}


def _moon(rng: random.Random, image: Image.Image, phase: str, center: tuple[float, float], radius: float):
    draw, (x, y) = ImageDraw.Draw(image), center
    disc = (x - radius, y - radius, x + radius, y + radius)
    dark, light = shade(rng, (62, 64, 76), 14), shade(rng, (238, 234, 214), 14)
    side, _, bulge = PHASES[phase]
    draw.ellipse(disc, fill=light if phase == "full moon" else dark)
    if bulge is not None:
        draw.pieslice(disc, *((-90, 90) if side == "right" else (90, 270)), fill=light)
        half = abs(bulge) * radius * rng.uniform(0.4, 0.68)
        if half:
            draw.ellipse((x - half, y - radius, x + half, y + radius), fill=light if bulge > 0 else dark)
    for _ in range(9):
        angle, far, size = rng.uniform(0, 6.3), rng.uniform(0, 0.75) * radius, rng.uniform(2, 7)
        u, v = x + far * math.cos(angle), y + far * math.sin(angle)
        box = (int(u - size), int(v - size), int(u + size) + 1, int(v + size) + 1)
        if len(colors := image.crop(box).getcolors()) == 1:
            draw.ellipse(box, fill=tuple(c - 14 for c in colors[0][1]))


@skill(
    "Identify phases of the Moon",
    **EARTH,
    category="Astronomy",
    grades=(5, 8),
    weight=1.2,
    lecture="""Seen from the Northern Hemisphere, the lit part of the Moon grows from the right (waxing) until the
    full moon, then shrinks toward the left (waning). Less than half is a crescent, half a quarter, more than half
    gibbous.""",
)
def moon_phase(rng: random.Random) -> Draft:
    choices = tuple(rng.sample(sorted(PHASES), 4))
    answer = rng.randrange(4)
    phase = choices[answer]
    side, share, bulge = PHASES[phase]
    image = Image.new("RGB", (SIZE, SIZE), tuple(rng.randint(4, 26) for _ in range(2)) + (rng.randint(16, 52),))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 40)):
        draw.point((rng.randrange(SIZE), rng.randrange(SIZE)), fill=(200, 200, 200))
    radius = rng.uniform(64, 108)
    center = (rng.uniform(radius + 8, SIZE - radius - 8), rng.uniform(radius + 8, SIZE - radius - 8))
    _moon(rng, image, phase, center, radius)
    image = image.rotate(rng.uniform(-12, 12), Image.BILINEAR, center=center, fillcolor=image.getpixel((0, 0)))
    if bulge is None:
        seen = f"The Moon shows {share} lit"
    else:
        seen = f"The {side} part of the Moon is lit, {share}"
    return Draft(
        question="Which phase of the Moon does this picture from the Northern Hemisphere show?",
        choices=choices,
        answer=answer,
        image=finish(rng, image),
        solution=f"{seen}. This phase of the Moon is called {phase}.",
        caption=f"{seen}: {phase}.",
    )


TOWNS = ("Lima", "Oslo", "Cairo", "Nairobi", "Denver", "Quito", "Perth", "Mumbai", "Rome", "Seoul", "Dakar",
         "Boston", "Havana", "Delhi", "Miami", "Accra", "Kyoto", "Reno", "Hobart", "Prague")  # fmt: skip
WEATHER = ("It rained in {} last {}.", "{} had strong winds on {}.", "Snow fell in {} on {} morning.",
           "In {}, it was cloudy on {}.", "A storm crossed {} on {} night.", "The sky over {} was clear on {}.",
           "{} reached 31°C on {}.", "Fog covered {} on {}.")  # fmt: skip
CLIMATE = ("It usually rains in {} in {}.", "{} often has strong winds in {}.", "Snow is rare in {} in {}.",
           "In {}, most days in {} are cloudy.", "Storms are common in {} each {}.",
           "The sky over {} is usually clear in {}.", "{} has an average of 31°C in {}.",
           "Over many years, {} had little fog in {}.")  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip


@skill(
    "Weather and climate around the world",
    **EARTH,
    category="Weather and climate",
    grades=(3, 6),
    lecture="""Weather is what the air is like at one place and time. Climate is the usual weather of a place over many
    years. A text about one day tells of the weather; a text about what is usual tells of the climate.""",
)
def weather_or_climate(rng: random.Random) -> Draft:
    answer = rng.randrange(2)
    town, name = rng.choice(TOWNS), rng.choice(NAMES)
    when = rng.choice(DAYS if answer == 0 else MONTHS)
    passage = rng.choice((WEATHER, CLIMATE)[answer]).format(town, when)
    choices = ("the weather", "the climate")
    why = ("tells what the air was like at one time", "tells what is usual over many years")[answer]
    return Draft(
        question=f"Does this note describe the weather or the climate of {town}?",
        choices=choices,
        answer=answer,
        hint=f"{name} wrote: {passage}",
        solution=f"The note about {town} {why}. So it describes {choices[answer]}.",
    )
