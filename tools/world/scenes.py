"""Captioned pictures of the world: things by several hands, how many, which colour, where; words, numbers, shapes, plots.

A caption's words are in reading order: what the connector's first visual token should say comes first.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import cos, radians, sin
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from tools.world.hands import Thing, render

SIDE = 256  # pixels, what the tower looks at
COLOURS = {
    "red": "#d62828", "blue": "#1d5fd0", "green": "#2a9d3a", "yellow": "#f4d000", "orange": "#f48c06", "purple": "#7b2cbf",
    "pink": "#ff7eb6", "brown": "#7f4f24", "black": "#000000", "gray": "#8d99ae",
}  # fmt: skip
COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "octagon": 8, "circle": 0, "star": 5, "oval": 0}
FONTS = sorted(
    path
    for path in Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")
    if path.name.startswith(("DejaVuS", "STIXGeneral", "cmr", "cmss", "cmtt")) and "Display" not in path.name
)


SIDED = re.compile(
    "left|right|button|clockwise|moon|forward|reverse"
)  # what its mirror picture would be another thing than


@dataclass(frozen=True)
class Shown:
    """A picture (RGB, `SIDE` pixels square) with its caption, and which kind of scene it is."""

    image: Image.Image
    caption: str
    kind: str


@lru_cache(maxsize=12_000)  # 147 kB each
def _icon(thing: Thing, colour: str) -> Image.Image:
    return render(thing, 192, colour)


def _paper(lot: random.Random) -> Image.Image:
    """Mostly white, sometimes any light colour."""
    colour = "white" if lot.random() < 0.7 else tuple(lot.randint(190, 255) for _ in range(3))
    return Image.new("RGB", (SIDE, SIDE), colour)


def _altered(icon: Image.Image, lot: random.Random, mirrored: bool = True) -> Image.Image:
    """Another hand has other lines and colours, hardly another shape."""
    if mirrored and lot.random() < 0.5:
        icon = ImageOps.mirror(icon)
    if lot.random() < 0.6:
        icon = icon.rotate(lot.uniform(-15, 15), Image.Resampling.BILINEAR, expand=True)
    if lot.random() < 0.4:
        width, height = icon.size
        icon = icon.resize(
            (max(8, int(width * lot.uniform(0.75, 1.25))), max(8, int(height * lot.uniform(0.75, 1.25))))
        )
    if lot.random() < 0.5:
        alpha = icon.getchannel("A")
        plain = ImageEnhance.Color(icon.convert("RGB")).enhance(lot.choice((0.0, 0.4, 0.7, 1.5)))
        plain = ImageEnhance.Brightness(plain).enhance(lot.uniform(0.7, 1.3))
        icon = plain.convert("RGBA")
        icon.putalpha(alpha)
    return icon


def _put(paper: Image.Image, icon: Image.Image, middle: tuple[float, float], size: float) -> None:
    """The icon with its longer side `size` pixels, its middle there."""
    factor = size / max(icon.size)
    icon = icon.resize(
        (max(1, round(icon.width * factor)), max(1, round(icon.height * factor))), Image.Resampling.BILINEAR
    )
    paper.paste(icon, (round(middle[0] - icon.width / 2), round(middle[1] - icon.height / 2)), icon)


@dataclass(frozen=True)
class World:
    """What scenes are made of: the drawings of each name, those of the hands that are wanted."""

    by_name: dict[str, list[Thing]]

    @cached_property
    def short(self) -> list[str]:
        """Names of one or two words, which leave room in a caption for what else there is to say."""
        return [name for name in self.by_name if name.count(" ") < 2]

    def icon(self, name: str, lot: random.Random) -> Image.Image:
        thing = lot.choice(self.by_name[name])
        colour = "black" if not thing.hand.plain or lot.random() < 0.5 else lot.choice(list(COLOURS.values()))
        return _altered(_icon(thing, colour), lot, not SIDED.search(name))

    def coloured(self, lot: random.Random) -> tuple[str, str, Image.Image]:
        """A plain hand's thing in a colour: name, colour, picture."""
        while True:
            name = lot.choice(self.short)
            if plain := [thing for thing in self.by_name[name] if thing.hand.plain]:
                colour = lot.choice(list(COLOURS))
                return name, colour, _icon(lot.choice(plain), COLOURS[colour])


def thing(world: World, lot: random.Random, name: str | None = None) -> Shown:
    name, paper = name or lot.choice(list(world.by_name)), _paper(lot)
    size = lot.uniform(110, 240)
    slack = (SIDE - size) / 2 + 10
    middle = SIDE / 2 + lot.uniform(-slack, slack), SIDE / 2 + lot.uniform(-slack, slack)
    _put(paper, world.icon(name, lot), middle, size)
    return Shown(paper, name, "thing")


def coloured_thing(world: World, lot: random.Random) -> Shown:
    name, colour, icon = world.coloured(lot)
    paper = Image.new("RGB", (SIDE, SIDE), "white")
    _put(paper, icon, (SIDE / 2 + lot.uniform(-25, 25), SIDE / 2 + lot.uniform(-25, 25)), lot.uniform(120, 230))
    return Shown(paper, f"{colour} {name}", "coloured thing")


def how_many(world: World, lot: random.Random) -> Shown:
    """One to nine of a thing, in rows or strewn."""
    count, name, paper = lot.randint(1, 9), lot.choice(world.short), _paper(lot)
    icon, side = world.icon(name, lot), 2 if count <= 4 else 3
    cells = lot.sample([(x, y) for x in range(side) for y in range(side)], count)
    step = SIDE / side
    for x, y in cells:
        jitter = step * 0.08
        middle = (x + 0.5) * step + lot.uniform(-jitter, jitter), (y + 0.5) * step + lot.uniform(-jitter, jitter)
        _put(paper, icon, middle, step * lot.uniform(0.65, 0.85))
    return Shown(paper, f"{COUNTS[count - 1]} {name}", "how many")


def where(world: World, lot: random.Random) -> Shown:
    """Two things, one left of, above or larger than the other."""
    (one, other), paper = lot.sample(world.short, 2), _paper(lot)
    relation = lot.choice(("left of", "above", "larger than"))
    near, far, middle = SIDE * 0.27, SIDE * 0.73, SIDE / 2
    first, second = ((near, middle), (far, middle)) if relation != "above" else ((middle, near), (middle, far))
    large = lot.uniform(105, 125)
    small = large * (lot.uniform(0.45, 0.6) if relation == "larger than" else lot.uniform(0.9, 1.0))
    if relation == "larger than" and lot.random() < 0.5:
        first, second = second, first
    jitter = [lot.uniform(-12, 12) for _ in range(4)]
    _put(paper, world.icon(one, lot), (first[0] + jitter[0], first[1] + jitter[1]), large)
    _put(paper, world.icon(other, lot), (second[0] + jitter[2], second[1] + jitter[3]), small)
    return Shown(paper, f"{one} {relation} {other}", "where")


def shape(world: World, lot: random.Random) -> Shown:
    """A shape in a colour, filled or not, of any size and place."""
    name, colour = lot.choice(list(SHAPES)), lot.choice(list(COLOURS))
    paper, radius = _paper(lot), lot.uniform(25, 110)
    x, y = (lot.uniform(radius + 4, SIDE - radius - 4) for _ in range(2))
    pen, turn = ImageDraw.Draw(paper), lot.uniform(0, 360)
    style = (
        {"fill": COLOURS[colour]} if lot.random() < 0.75 else {"outline": COLOURS[colour], "width": lot.randint(4, 9)}
    )
    if name in ("circle", "oval"):
        flat = radius if name == "circle" else radius * lot.uniform(0.45, 0.65)
        pen.ellipse((x - radius, y - flat, x + radius, y + flat), **style)
    elif name == "star":
        pen.polygon(_star(x, y, radius, turn), **style)
    else:
        pen.regular_polygon((x, y, radius), SHAPES[name], rotation=turn if lot.random() < 0.5 else 0, **style)
    return Shown(paper, f"{colour} {name}", "shape")


def _star(x: float, y: float, radius: float, turn: float) -> list[tuple[float, float]]:
    tips = [(radius if i % 2 == 0 else radius * 0.42, radians(turn + 36 * i)) for i in range(10)]
    return [(x + r * sin(a), y - r * cos(a)) for r, a in tips]


def written(world: World, lot: random.Random) -> Shown:
    """A word in some font."""
    word = lot.choice([name for name in world.short if " " not in name and len(name) <= 9])
    cased = lot.choice((word.upper(), word, word.capitalize()))
    return Shown(_lettered(cased, lot), f"the word {word}", "word")


def number(world: World, lot: random.Random) -> Shown:
    digits = str(lot.randint(0, 10 ** lot.randint(1, 3) - 1))
    return Shown(_lettered(digits, lot), f"the number {digits}", "number")


def _lettered(text: str, lot: random.Random) -> Image.Image:
    paper, path = _paper(lot), lot.choice(FONTS)
    colour = "black" if lot.random() < 0.6 else lot.choice(list(COLOURS.values()))
    box = ImageFont.truetype(path, 100).getbbox(text)
    widest = lot.uniform(0.6, 0.92) * SIDE
    size = min(100 * widest / max(1, box[2] - box[0]), 190)
    font = ImageFont.truetype(path, size)
    left, top, right, bottom = font.getbbox(text)
    slack_x, slack_y = (SIDE - (right - left)) / 2, (SIDE - (bottom - top)) / 2
    x, y = slack_x * (1 + lot.uniform(-0.5, 0.5)) - left, slack_y * (1 + lot.uniform(-0.4, 0.4)) - top
    ImageDraw.Draw(paper).text((x, y), text, colour, font)
    return paper


def plot(world: World, lot: random.Random) -> Shown:
    """Bars of a few heights, or a line that rises, falls, or turns."""
    figure, axes = plt.subplots(figsize=(2.56, 2.56), dpi=100)
    colour = COLOURS[lot.choice(list(COLOURS))]
    if lot.random() < 0.5:
        count = lot.randint(2, 5)
        heights = lot.sample(range(1, 11), count)
        axes.bar([chr(65 + i) for i in range(count)], heights, color=colour)
        caption = f"bar chart, {COUNTS[count - 1]} bars, {chr(65 + heights.index(max(heights)))} is highest"
    else:
        course = lot.choice(("rises", "falls", "rises then falls", "falls then rises"))
        heights = sorted(lot.sample(range(0, 20), 5), reverse=course.startswith("falls"))
        if "then" in course:
            heights = heights[:3] + heights[:2][::-1]
        axes.plot(heights, color=colour, marker=lot.choice(("o", "", "s")), linewidth=lot.uniform(1.5, 3))
        caption = f"line chart, {course}"
    axes.tick_params(labelsize=7)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    plt.close(figure)
    return Shown(Image.open(out).convert("RGB").resize((SIDE, SIDE)), caption, "plot")


#: Scenes and how often they come. Naming a thing is the hardest, and what most others need too.
KINDS: dict[Callable[..., Shown], float] = {
    thing: 0.6, coloured_thing: 0.05, how_many: 0.09, where: 0.08, shape: 0.06, written: 0.04, number: 0.05, plot: 0.03,
}  # fmt: skip


def scenes(world: World, count: int, seed: int) -> Iterator[Shown]:
    """`count` captioned pictures; every name comes equally often as a thing on its own."""
    lot, names = random.Random(seed), list[str]()
    for _ in range(count):
        kind = lot.choices(list(KINDS), list(KINDS.values()))[0]
        if kind is not thing:
            yield kind(world, lot)
            continue
        if not names:
            names = lot.sample(list(world.by_name), len(world.by_name))
        yield thing(world, lot, names.pop())
