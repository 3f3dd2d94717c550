"""What the pictures of MiniSQA are drawn with: a tinted canvas, named colours, big labels, icons, noise.

Everything random comes from the `random.Random` handed in, so that a picture is the same for the same seed.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from mmlora.paths import DATA

#: The vision tower's own input size: no resampling between what is drawn and what is seen.
SIZE = 256
RGB = tuple[int, int, int]
Point = tuple[float, float]
Fill = str | RGB
COLORS: dict[str, RGB] = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (245, 210, 30),
    "green": (44, 150, 60),
    "blue": (35, 95, 200),
    "purple": (130, 60, 180),
    "pink": (245, 130, 190),
    "brown": (130, 80, 45),
    "black": (35, 35, 40),
}
_RAMP = np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)


def canvas(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A light background, RGB of 256 x 256, of varying tint with a faint gradient, and its pen."""
    across, down = rng.uniform(-16, 16), rng.uniform(-16, 16)
    slope = Image.fromarray((128.5 + across * _RAMP[None, :] + down * _RAMP[:, None]).astype(np.uint8))
    tints = [rng.randint(222, 252) for _ in range(3)]
    image = Image.merge("RGB", [slope.point([min(255, max(0, tint + v - 128)) for v in range(256)]) for tint in tints])
    return image, ImageDraw.Draw(image)


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in TrueType font, so that no system font is needed."""
    return ImageFont.load_default(size)


def label(
    draw: ImageDraw.ImageDraw, xy: Point, text: str, size: int = 22, fill: Fill = "black", anchor: str = "mm"
) -> None:
    """Write `text` with its `anchor` (Pillow's two letters; "mm" is the middle) at `xy`."""
    draw.text(xy, text, fill=fill, font=font(size), anchor=anchor)


def shade(rng: random.Random, color: RGB, spread: int = 25) -> RGB:
    """A variant of `color`: lighter or darker as a whole, with a smaller shift in each channel."""
    whole = rng.randint(-spread, spread)
    red, green, blue = (max(0, min(255, c + whole + rng.randint(-spread // 3, spread // 3))) for c in color)
    return red, green, blue


@lru_cache(maxsize=512)
def icon(name: str, size: int) -> Image.Image:
    """The icon `data/assets/icons/<name>.png` as RGBA of `size` x `size`; FileNotFoundError if there is none."""
    with Image.open(DATA / "assets" / "icons" / f"{name}.png") as picture:
        return picture.convert("RGBA").resize((size, size), Image.LANCZOS)


def paste(image: Image.Image, picture: Image.Image, center: Point) -> None:
    """Lay the RGBA `picture` over `image` with its middle at `center`."""
    corner = (round(center[0] - picture.width / 2), round(center[1] - picture.height / 2))
    image.paste(picture, corner, picture)


def arrow(draw: ImageDraw.ImageDraw, start: Point, end: Point, fill: Fill = "black", width: int = 4) -> None:
    """A straight arrow whose tip is at `end`."""
    length = math.hypot(end[0] - start[0], end[1] - start[1]) or 1.0
    ux, uy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    head = min(3.2 * width, 0.7 * length)
    neck = (end[0] - head * ux, end[1] - head * uy)
    draw.line((*start, *neck), fill=fill, width=width)
    half = 0.6 * head
    barbs = [(neck[0] - side * uy, neck[1] + side * ux) for side in (-half, half)]
    draw.polygon([end, *barbs], fill=fill)


def scatter(
    rng: random.Random, box: tuple[float, float, float, float], count: int, radius: float, apart: float
) -> list[Point]:
    """`count` points inside `box`, at least `apart` from each other where there is room for that."""
    x0, y0, x1, y1 = box
    points: list[Point] = []
    tries = 0
    while len(points) < count:
        point = (rng.uniform(x0 + radius, x1 - radius), rng.uniform(y0 + radius, y1 - radius))
        limit = apart if tries < 200 else apart * 200 / tries
        if all(math.dist(point, other) >= limit for other in points):
            points.append(point)
        tries += 1
    return points


def finish(rng: random.Random, image: Image.Image) -> Image.Image:
    """What a camera or a scan adds: contrast, brightness, sometimes a light blur, and grain. RGB in, RGB out."""
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 0.9)))
    contrast, shift = rng.uniform(0.85, 1.08), rng.uniform(-14, 10)
    image = image.point([max(0, min(255, round(128 + contrast * (v - 128) + shift))) for v in range(256)] * 3)
    grain = rng.randint(2, 9)
    noise = Image.frombytes("RGB", image.size, np.random.default_rng(rng.getrandbits(64)).bytes(SIZE * SIZE * 3))
    noise = noise.point([v * (2 * grain + 1) // 256 for v in range(256)] * 3)
    return ImageChops.add(image, noise, scale=1, offset=-grain)
