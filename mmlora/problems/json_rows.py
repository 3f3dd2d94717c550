"""The rows of a JSONL file, or of a JSON file with a list of objects, each with the number of the line where it begins."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmlora.problems.csv_rows import Line, column
from mmlora.problems.rows import DataError
from mmlora.problems.texts import opened, parsed, skip, whole


def rows(path: Path) -> Iterator[Line]:
    """Yield every row's line and its object without nulls, or what is wrong with the row.

    Raises `DataError` if a list is incomplete, or if an object of a JSONL file goes on in the next line.
    """
    return _listed(path) if is_list(path) else _lines(path)


def is_list(path: Path) -> bool:
    """Whether the file begins as a list, and not with an object."""
    with opened(path) as file:
        return file.read(1 << 16).lstrip().startswith("[")


def _lines(path: Path) -> Iterator[Line]:
    looked = False
    with opened(path) as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                cells = _cells(whole(text))
            except ValueError as error:
                if not looked:
                    _check_one_line(path, line)
                cells, looked = f"it is not valid JSON ({error})", True
            yield line, cells


def _check_one_line(path: Path, line: int) -> None:
    """Raise `DataError` for an object that is valid JSON but written over several lines."""
    with opened(path) as file:
        text = "".join(islice(file, line - 1, None))
    try:
        _, end = parsed(text, skip(text, 0))
    except ValueError:
        return
    if lines := text.count("\n", 0, end):
        raise DataError(
            f"{path}, line {line}: this object goes on to line {line + lines}; write each problem on one line, or put all of them "
            "into one list, [{…}, {…}]"
        )


def _listed(path: Path) -> Iterator[Line]:
    with opened(path) as file:
        text = file.read()
    place, line, counted = skip(text, text.index("[") + 1), 1, 0
    while text[place : place + 1] != "]":
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = parsed(text, place)
        except ValueError as error:
            raise DataError(
                f"{path}, line {getattr(error, 'lineno', line)}: the list is not valid JSON ({error})"
            ) from error
        yield line, _cells(value)
        place = skip(text, place)
        if text[place : place + 1] == ",":
            place = skip(text, place + 1)
        elif text[place : place + 1] != "]":
            raise DataError(f"{path}, line {line}: after this problem the list has neither a comma nor its end, ]")
    if skip(text, place + 1) != len(text):
        raise DataError(
            f"{path} goes on after the end of its list of problems; keep one list, or one object a line in a .jsonl file"
        )


def _cells(value: object) -> dict[str, Any] | str:
    if not isinstance(value, dict):
        return "it is not a JSON object"
    found: dict[str, Any] = {}
    for name, each in value.items():
        if (named := column(name)) in found:
            return f"two of its fields are called {named!r:.60}"
        found[named] = each
    return {name: each for name, each in found.items() if each is not None}
