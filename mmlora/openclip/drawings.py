"""Pictures with names: the same things drawn by several hands, in data/drawings/, and what a hub's data set holds."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import ClassLabel, load_dataset
from datasets import Image as ImageColumn
from datasets.exceptions import DatasetsError
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError
from PIL import Image

from mmlora.errors import MMLoraError, on_one_line
from mmlora.paths import DATA
from mmlora.problems.pictures import rgb

TRAIN = ("noto", "noto-v1", "twemoji", "emojione", "fluent-emoji-flat")  # the hands to learn from
VALIDATION = "fxemoji"  # the hand that settings are chosen on
TEST = "openmoji"  # the hand held out whole; CC BY-SA 4.0, so never learned from
FOLDER = DATA / "drawings"


class DrawingError(MMLoraError, ValueError):
    """A picture or a set of them that cannot be used; the message says which and what to do."""


@dataclass(frozen=True)
class Drawing:
    """One picture with its name: RGB, `hand` says who drew it."""

    name: str
    hand: str
    image: Image.Image


def drawings(hand: str, folder: Path = FOLDER) -> list[Drawing]:
    """All drawings of a hand, by name. Raises `DrawingError` for an unknown hand and for what is no picture."""
    file = folder / f"{hand}.zip"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob("*.zip")))
        raise DrawingError(f"there is no hand called {hand!r} in {folder}; choose among {there}")
    with zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
        found = [Drawing(Path(name).stem, hand, readable(archive.read(name), f"{file}: {name}")) for name in names]
    return unique(found)


def from_hub(data: str, split: str = "train", limit: int | None = None) -> list[Drawing]:
    """`limit` pictures, by lot, of a hub's data set for image classification, each with its class's name.

    What holds pictures and what holds classes is found by the columns' kinds. Raises `DrawingError` for a data set or a
    split that is not there, without a network, and where there is no such column.
    """
    try:
        found = load_dataset(data, split=split)
    except ValueError as error:  # datasets names the splits that there are
        raise DrawingError(f"{data} cannot be read: {on_one_line(error)}") from error
    except (OSError, DatasetsError, HTTPError) as error:
        raise DrawingError(
            f"{data} cannot be had from {constants.ENDPOINT}; check its name and the network, or take the drawings here"
        ) from error
    kinds = {kind: [n for n, f in found.features.items() if isinstance(f, kind)] for kind in (ImageColumn, ClassLabel)}
    if not all(kinds.values()):
        there = ", ".join(found.features)
        raise DrawingError(f"{data} needs a column of pictures and one of classes, and has {there}; take another one")
    (picture, *_), (label, *_) = kinds.values()
    names, count = found.features[label].names, min(limit or len(found), len(found))
    rows = found.select(sorted(random.Random(0).sample(range(len(found)), count)))  # many are sorted by class
    return [Drawing(names[row[label]].replace("_", " "), data, rgb(row[picture])) for row in rows]


def licence(hand: str, folder: Path = FOLDER) -> dict[str, str]:
    """What a hand's package says: hand, licence, author, source, package."""
    with zipfile.ZipFile(folder / f"{hand}.zip") as archive:
        return json.loads(archive.read("info.json"))


def readable(data: bytes, where: str) -> Image.Image:
    """The picture in these bytes as RGB. Raises `DrawingError` where it cannot be read."""
    try:
        return rgb(Image.open(io.BytesIO(data)))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for a broken file
        raise DrawingError(f"{where} is no picture that Pillow reads; replace it or take it out") from error


def unique(found: Sequence[Drawing]) -> list[Drawing]:
    """The drawings as they are. Raises `DrawingError` where one hand has a name twice: which would be right?"""
    seen = set()
    for each in found:
        if (each.hand, each.name) in seen:
            raise DrawingError(f"{each.hand} has two pictures called {each.name!r}; rename one or take it out")
        seen.add((each.hand, each.name))
    return list(found)


def kept_out(names: Iterable[str], count: int, seed: int = 0) -> list[str]:
    """`count` of these names, drawn by lot, in order: names that training shall never see.

    Raises `DrawingError` where that would leave none to learn.
    """
    there = sorted(set(names))
    if count >= len(there):
        raise DrawingError(
            f"{count} of {len(there)} names cannot be kept out, for none would be learned; keep out fewer"
        )
    return sorted(random.Random(seed).sample(there, count))


def shots(pool: Sequence[Drawing], names: Sequence[str], count: int, seed: int) -> list[int]:
    """Places in `pool` of `count` drawings of each name, by lot. Raises `DrawingError` for a name with fewer."""
    places = defaultdict(list)
    for place, each in enumerate(pool):
        places[each.name].append(place)
    lot, chosen = random.Random(seed), []
    for name in names:
        if len(places[name]) < count:
            raise DrawingError(
                f"{name!r} has fewer pictures than {count} shots need: {len(places[name])}; take fewer shots"
            )
        chosen += lot.sample(places[name], count)
    return chosen
