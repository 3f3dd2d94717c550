"""A problem as a row: the plain dict that every file format stores, with its picture still encoded.

Every reader ends in `to_problem` and every writer begins with `to_row`, so that all formats check the same things.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image, UnidentifiedImageError

from mmlora.errors import MMLoraError
from mmlora.problems.pictures import decoded, encoded
from mmlora.problems.record import Problem, ProblemError

Row = TypeVar("Row")
FIELDS = tuple(field.name for field in fields(Problem))
REQUIRED = ("question", "choices", "answer")
TYPES: dict[str, tuple[Any, str]] = {
    "choices": (list, "a list of texts"),
    "answer": (int, "an index"),
    "image": ((bytes, Path), "a picture"),
}
TEXT = (str, "text")  # every other field
MissingImages = Literal["error", "text-only"]  # what to do where a picture is not there
NAMED = 5  # how many of the missing pictures a message names


class DataError(MMLoraError, RuntimeError):
    """Data that cannot be written or read; the message names the place and the remedy."""


class NoSplit(DataError):
    """A split that these problems do not have; the message names those that they have."""


def to_row(problem: Problem) -> dict:
    """The problem's fields under their names; `image` as an encoded picture or None, `choices` as a list."""
    row = {name: getattr(problem, name) for name in FIELDS}
    return {**row, "choices": list(problem.choices), "image": problem.image and encoded(problem.image)}


def to_problem(row: dict) -> Problem:
    """The row as a `Problem`. Nulls get Problem's defaults, names that are no field are ignored.

    `choices` is a list of texts, `answer` an index into it, `image` an encoded picture, its path, or None; the other
    fields are text. Raises `ProblemError`.
    """
    row = {name: row[name] for name in FIELDS if row.get(name) is not None}
    if missing := [name for name in REQUIRED if name not in row]:
        raise ProblemError(f"problem {row['id']}: has no {' and no '.join(missing)}")
    for name, value in row.items():
        kind, called = TYPES.get(name, TEXT)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ProblemError(f"problem {row['id']}: {name} is {value!r:.60}, not {called}")
    if not all(isinstance(choice, str) for choice in row["choices"]):
        raise ProblemError(f"problem {row['id']}: choices are {row['choices']!r:.60}, not a list of texts")
    return Problem(**{**row, "choices": tuple(row["choices"]), "image": _picture(row)})


def without_missing(rows: list[dict], place: Path, missing_images: MissingImages) -> list[dict]:
    """The rows; those whose picture is no file lose it and are counted, or with "error" raise a `DataError`.

    Every row has an `id`, a `path` in `image` or None, and the `where` that a message calls it by.
    """
    pictures = [row for row in rows if row["image"] is not None]
    missing = [row for row in pictures if not row["image"].is_file()]
    if not missing:
        return rows
    named = ", ".join(f"{row['where']} ({row['image']})" for row in missing[:NAMED])
    found = f"{place}: {len(missing)} of {len(pictures)} pictures are missing: {named}{', …' * (len(missing) > NAMED)}"
    if missing_images == "error":
        raise DataError(
            f'{found}; put them there, or read these problems without: missing_images="text-only" '
            "(mmlora run --missing-images text-only)"
        )
    print(f"{found}; these problems are read as text only")
    gone = {id(row) for row in missing}
    return [{**row, "image": None} if id(row) in gone else row for row in rows]


def by_lot(rows: Sequence[Row], limit: int | None, whose: str, split: str) -> list[Row]:
    """All rows, or `limit` of them by a lot that always falls the same, in their order; says so where rows stay out."""
    if limit is None or limit >= len(rows):
        return list(rows)
    print(f"{whose} {len(rows)} problems of the split {split!r}; {limit} were drawn by lot")
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), limit))]


def inside(folder: Path, below: str | Path) -> Path:
    """The path of a file in the folder. Raises `ValueError` where `below` leads out of it.

    What lies elsewhere is nobody's data set, and its content would go into a report that is passed on.
    """
    whole = os.path.abspath(folder)
    path = Path(os.path.normpath(os.path.join(whole, below)))  # not resolved: a link in the folder is its owner's will
    if not path.is_relative_to(whole):
        raise ValueError(f"its picture {str(below)!r} lies outside the folder {folder}; put it inside")
    return path


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn what the disk objects to into a `DataError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot write {place}: {reason}; free some disk space or give another folder") from error


def _picture(row: dict) -> Image.Image | None:
    image = row.get("image")
    if image is None:
        return None
    try:
        return decoded(image.read_bytes() if isinstance(image, Path) else image)
    except UnidentifiedImageError as error:
        raise ProblemError(f"problem {row['id']}: its picture is no image file that Pillow knows") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ProblemError(f"problem {row['id']}: its picture cannot be read ({error})") from error
