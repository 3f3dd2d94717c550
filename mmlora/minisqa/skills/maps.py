"""The maps of the geography skills: outlines projected once, then drawn in varying size, place and colors."""

from __future__ import annotations

import json
import math
import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from mmlora.minisqa.draw import COLORS, RGB, SIZE, canvas, shade
from mmlora.paths import DATA

WATERS = ((180, 214, 240), (195, 222, 240), (160, 200, 230), (140, 185, 215))
LANDS = ((240, 232, 205), (225, 235, 210), (250, 246, 235), (222, 214, 200), (205, 215, 200))
BORDERS = ((90, 90, 90), (150, 150, 150), (60, 60, 90))
#: Told apart at a glance on any of the land and water colours.
MARKERS = {name: COLORS[name] for name in ("red", "blue", "green", "orange", "purple", "yellow")}


@lru_cache(maxsize=1)
def _states() -> dict[str, list[np.ndarray]]:
    """The 48 contiguous states in the Albers projection usual for them (standard parallels 29.5° and 45.5° N, centre
    96° W), scaled to a width of 1, x to the right and y down from the map's middle."""
    degrees = json.loads((DATA / "assets" / "us_states.json").read_text(encoding="utf-8"))
    south, north, origin = math.radians(29.5), math.radians(45.5), math.radians(37.5)
    n = (math.sin(south) + math.sin(north)) / 2
    c = math.cos(south) ** 2 + 2 * n * math.sin(south)

    def project(ring):
        lon, lat = np.radians(np.asarray(ring, dtype=float)).T
        radius, turn = np.sqrt(c - 2 * n * np.sin(lat)) / n, n * (lon + math.radians(96))
        middle = math.sqrt(c - 2 * n * math.sin(origin)) / n
        return np.stack([radius * np.sin(turn), radius * np.cos(turn) - middle], axis=1)

    shapes = {name: [project(ring) for ring in rings] for name, rings in degrees.items()}
    points = np.concatenate([ring for rings in shapes.values() for ring in rings])
    low, high = points.min(axis=0), points.max(axis=0)
    return {name: [(r - (low + high) / 2) / (high - low)[0] for r in rings] for name, rings in shapes.items()}


@lru_cache(maxsize=1)
def state_centers() -> dict[str, tuple[float, float]]:
    """The middle of each state's largest ring, in the coordinates of `_states`."""
    largest = {name: max(rings, key=len) for name, rings in _states().items()}
    return {name: tuple((ring.min(axis=0) + ring.max(axis=0)) / 2) for name, ring in largest.items()}


@lru_cache(maxsize=1)
def _world() -> tuple[dict[str, list[np.ndarray]], dict[str, list[np.ndarray]]]:
    """Continents and oceans in degrees, x to the east and y to the south."""
    data = json.loads((DATA / "assets" / "world.json").read_text(encoding="utf-8"))

    def flipped(shapes):
        return {name: [np.asarray(ring, dtype=float) * (1, -1) for ring in rings] for name, rings in shapes.items()}

    return flipped(data["continents"]), flipped(data["oceans"])


def _fill(pen: ImageDraw.ImageDraw, rings, scale, middle, fill, outline):
    for ring in rings:
        pen.polygon((ring * scale + middle).ravel().tolist(), fill=fill, outline=outline)


def state_map(rng: random.Random, paints: dict[str, RGB]) -> Image.Image:
    """The United States with the given states painted: nearly as wide as the picture, at varying height."""
    image, pen = canvas(rng)
    if rng.random() < 0.4:
        pen.rectangle((0, 0, SIZE, SIZE), fill=shade(rng, rng.choice(WATERS), 12))
    scale = SIZE * np.array([rng.uniform(0.9, 0.98), rng.uniform(0.98, 1.2)])
    middle = (SIZE / 2 + rng.uniform(-3, 3), SIZE / 2 + rng.uniform(-14, 14))
    land, border = shade(rng, rng.choice(LANDS), 10), shade(rng, rng.choice(BORDERS))
    for name, rings in _states().items():
        _fill(pen, rings, scale, middle, paints.get(name, land), border)
    return image


def world_map(rng: random.Random, paints: dict[str, RGB], scale, middle) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """The world with the given continents or oceans painted; `scale` is in pixels a degree, `middle` is 0° N 0° E."""
    continents, oceans = _world()
    image, pen = canvas(rng)
    corners = np.array(((-180, -90), (180, 90))) * scale + middle
    pen.rectangle(corners.ravel().tolist(), fill=shade(rng, rng.choice(WATERS), 10))
    for name in oceans.keys() & paints.keys():
        _fill(pen, oceans[name], scale, middle, paints[name], paints[name])
    land = shade(rng, rng.choice(LANDS), 10)
    border = tuple(max(0, v - 60) for v in land) if rng.random() < 0.5 else land
    for name, rings in continents.items():
        fill = paints.get(name, land)
        _fill(pen, rings, scale, middle, fill, paints.get(name, border))
    return image, pen


def whole_world_map(rng: random.Random, paints: dict[str, RGB]) -> Image.Image:
    """All of the world, nearly as wide as the picture, with the given continents or oceans painted."""
    scale = np.array((rng.uniform(0.67, 0.71), rng.uniform(0.88, 1.1)))
    return world_map(rng, paints, scale, np.array((SIZE / 2, SIZE / 2 + rng.uniform(-12, 12))))[0]
