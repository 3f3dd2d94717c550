"""Text files that other people saved: opened as UTF-8, parsed as JSON, with a clear error for anything else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mmlora.problems.rows import DataError, reading

BLANK = re.compile(r"[ \t\r\n]*")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # its byte order marks; UTF-32's begin with the same two bytes


@contextmanager
def opened(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """The file open for reading, past its byte order mark. Raises `DataError` if it cannot be read or is not UTF-8."""
    remedy = "save it as “CSV UTF-8”" if path.suffix in (".csv", ".tsv") else "save it in UTF-8"
    with reading(path):
        with open(path, "rb") as file:
            head = file.read(4)
        if head.startswith(UTF_16) or b"\0" in head:
            raise DataError(f"{path} is in UTF-16 or UTF-32, not in UTF-8; {remedy}")
        try:
            with open(path, newline=newline, encoding="utf-8-sig") as file:
                yield file
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not in UTF-8 ({error}); {remedy}") from error


def parsed(text: str, begin: int = 0) -> tuple[Any, int]:
    """The JSON value that begins there and the place where it ends. Raises `ValueError`, also for a name that is there twice."""
    try:
        return _DECODER.raw_decode(text, begin)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def whole(text: str) -> Any:
    """The one JSON value that the text holds. Raises `ValueError`."""
    value, end = parsed(text, skip(text, 0))
    if skip(text, end) != len(text):
        raise ValueError("more follows after its end")
    return value


def skip(text: str, place: int) -> int:
    """The next place that is not white space."""
    found = BLANK.match(text, place)
    return found.end() if found else place


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object. Raises `ValueError` for a name that is there twice; json itself would silently keep the last value."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r:.60} is there twice")
        found[name] = value
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
