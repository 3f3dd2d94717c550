"""A problem as a row: the plain dict that every file format stores, with its picture still encoded.

Every reader ends in `to_problem` and every writer begins with `to_row`, so that all formats check the same things.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Literal, TypeVar

from PIL import Image, UnidentifiedImageError

from mmlora.errors import MMLoraError, on_one_line
from mmlora.problems.pictures import decoded, encoded
from mmlora.problems.record import LETTERS, Problem, ProblemError, called

Row = TypeVar("Row")
FIELDS = tuple(field.name for field in fields(Problem))
REQUIRED = ("question", "choices", "answer")
TEXTS = tuple(name for name in FIELDS if name not in ("choices", "answer", "image"))
MissingImages = Literal["error", "text-only"]  # what to do where a picture is not there
PATH = 300  # how many characters of a path a message shows
UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Zs")  # Unicode's categories of invisible characters


class DataError(MMLoraError, RuntimeError):
    """Data that cannot be written or read; the message names the place and the remedy."""


class NoSplit(DataError):
    """A split that these problems do not have; the message names those that they have."""


def to_row(problem: Problem) -> dict:
    """The problem's fields under their names; `image` as an encoded picture or None, `choices` as a list."""
    row = {name: getattr(problem, name) for name in FIELDS}
    return {**row, "choices": list(problem.choices), "image": problem.image and encoded(problem.image)}


def to_problem(row: dict, own: bool = False) -> Problem:
    """The row as a `Problem`. Nulls and NaN get Problem's defaults, unknown fields are ignored.

    `choices` is a list of texts, or one written as JSON; `answer` an index into it, a letter or a choice's exact text; `image`
    an encoded picture, its path, or None; the other fields are text. `own` says that this project wrote the row, whose picture
    is then not decoded (4 ms each). Raises `ProblemError`.
    """
    row = {name: row[name] for name in FIELDS if not is_null(row.get(name))}
    try:
        if missing := [name for name in REQUIRED if name not in row]:
            raise ValueError(f"has no {' and no '.join(missing)}")
        if empty := [name for name in REQUIRED if is_blank(row[name])]:
            raise ValueError(f"{' and '.join(empty)} should not be empty")
        for name in TEXTS:
            check_text(name, row.get(name, ""))
        row["choices"] = _choices(row["choices"])
        row["answer"] = _index(row["answer"], row["choices"])
        row["image"] = _picture(row.get("image"), own)
    except ValueError as error:
        raise ProblemError(f"problem {called(row['id'])}: {error}") from error
    return Problem(**row)


def identity(value: object, otherwise: str) -> str:
    """A row's id as text, and `otherwise` where it has none. Raises `ProblemError` for what is neither text nor a whole number."""
    if is_null(value) or is_blank(value):
        return otherwise
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with gaps is stored as floats
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    try:
        return check_text("id", value)
    except ValueError as error:
        raise ProblemError(f"problem {otherwise}: {error}") from error


def is_null(value: object) -> bool:
    """Whether it is None or NaN, which some programs write for a missing value."""
    return value is None or value != value


def is_blank(value: object) -> bool:
    """Whether it is an empty list or a text without visible characters."""
    return value == [] or isinstance(value, str) and all(unicodedata.category(each) in UNSEEN for each in value)


def check_text(name: str, value: object) -> str:
    """The value, which is text that can be stored. Raises `ValueError` for any other."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.60}, not text")
    if half := half_character(name, value):
        raise ValueError(f"{half}; write the whole character or none")
    return value


def half_character(name: str, text: str) -> str | None:
    """Which character of the text UTF-8 cannot encode, in words; None if it can encode all of them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        return f"character {error.start + 1} of {name} is {half}, half of a surrogate pair, which UTF-8 cannot encode"
    return None


def by_lot(rows: Sequence[Row], limit: int | None, whose: str, split: str) -> list[Row]:
    """All rows, or `limit` of them by a lot that always falls the same, in their order; says so where rows stay out."""
    if limit is None or limit >= len(rows):
        return list(rows)
    print(f"{whose} {len(rows)} problems of the split {split!r}; {limit} were drawn by lot")
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), limit))]


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn what the disk objects to into a `DataError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot write {place}: {reason}; free some disk space or give another folder") from error


@contextmanager
def reading(place: object) -> Iterator[None]:
    """Turn an `OSError` while reading into a `DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {called(place, PATH)}: {reason(error)}") from error


def _choices(choices: object) -> tuple[str, ...]:
    """The choices. Raises `ValueError` for one that is empty, and for two that nobody could tell apart."""
    if isinstance(choices, str):
        choices = _from_json(choices)
    if not isinstance(choices, (list, tuple)):
        raise ValueError(f"choices is {choices!r:.60}, not a list of texts")
    if not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"choices are {choices!r:.60}, not a list of texts")
    places: dict[str, int] = {}
    for place, choice in enumerate(choices[: len(LETTERS)]):
        check_text(f"choice {LETTERS[place]}", choice)
        if is_blank(choice):
            raise ValueError(f"choice {LETTERS[place]} is empty")
        if (first := places.setdefault(unicodedata.normalize("NFC", choice).strip(), place)) != place:
            raise ValueError(f"choices {LETTERS[first]} and {LETTERS[place]} are both {choice!r:.60}; make them differ")
    return tuple(choices)


def _from_json(text: str) -> object:
    """The list that the text holds in JSON, as programs write lists into a column of texts; any other text as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, list) else text


def _index(answer: object, choices: tuple[str, ...]) -> int:
    """Which choice is meant. Raises `ValueError` where it is none or more than one."""
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)  # a column of whole numbers with gaps is stored as floats
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer  # Problem checks its range
    if not isinstance(answer, str):
        raise ValueError(f"answer is {answer!r:.60}, not an index")
    meant = _meant(answer, choices) or _meant(answer.strip(), tuple(choice.strip() for choice in choices))
    if len(meant) == 1:
        return meant[0]
    if meant:
        named = " or ".join(f"choice {LETTERS[i]}" for i in meant)
        raise ValueError(f"answer {answer!r:.60} may mean {named}; write its letter or its index instead")
    letters = f"A to {LETTERS[min(len(choices), len(LETTERS)) - 1]}"
    raise ValueError(f"answer {answer!r:.60} is no letter {letters}, no choice's exact text and no index")


def _meant(answer: str, choices: tuple[str, ...]) -> list[int]:
    return [i for i, (letter, choice) in enumerate(zip(LETTERS, choices)) if answer in (letter, str(i), choice)]


def _picture(image: object, own: bool) -> Image.Image | None:
    """The picture, decoded once and found sound. Raises `ValueError`."""
    if image is None:
        return None
    if not isinstance(image, (bytes, Path)):
        raise ValueError(f"image is {image!r:.60}, not a picture")
    data = image if isinstance(image, bytes) else _content(image)
    path = "" if isinstance(image, bytes) else called(image, PATH)
    if not data:
        raise ValueError(f"its picture{path and f' {path}'} is empty, 0 bytes; put the whole file there")
    try:
        return decoded(data, own)
    except UnidentifiedImageError as error:
        raise ValueError(f"its picture is not an image file that Pillow knows{path and f': {path}'}") from error
    except Exception as error:  # Pillow's readers raise anything for a damaged file, IndexError and struct.error too
        raise ValueError(f"its picture{path and f' {path}'} cannot be read ({_damage(error)})") from error


def _damage(error: Exception) -> str:
    usual = isinstance(error, (OSError, SyntaxError, ValueError, Image.DecompressionBombError))
    return reason(error) if usual else f"it is damaged: {type(error).__name__}"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"its picture {called(path, PATH)} cannot be read ({reason(error)})") from error


def reason(error: Exception) -> str:
    """What an error says, on one line."""
    return getattr(error, "strerror", None) or on_one_line(error)
