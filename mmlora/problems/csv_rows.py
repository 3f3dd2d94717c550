"""The rows of a CSV or TSV file as spreadsheets and pandas save them, each with the number of the line where it begins.

Column names may have other capitals and spaces; cells may be separated by commas, semicolons or tabs.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from mmlora.problems.record import LETTERS
from mmlora.problems.rows import FIELDS, DataError
from mmlora.problems.texts import opened

Line = tuple[int, "dict[str, Any] | str"]
CHOICES = tuple(f"choice_{letter.lower()}" for letter in LETTERS)
COLUMNS = (*(name for name in FIELDS if name != "choices"), *CHOICES)
NEEDED = ("question", *CHOICES[:2], "answer")
SEPARATORS = ",;\t"
LARGEST = 2**31 - 1  # characters in a cell: the largest limit that csv accepts on every system
NAMELESS = re.compile(r"unnamed:_\d+")  # what pandas calls a column without a name


def rows(path: Path, more: Sequence[str] = ()) -> Iterator[Line]:
    """Yield every row's line and its filled cells, `choices` made of choice_a to choice_z, or what is wrong with the row.

    `more` names columns beyond a problem's fields. Raises `DataError` where the columns or the quotes are wrong.
    """
    with opened(path, newline="") as file:
        separator, skipped = _separator(file)
        file.seek(0)
        records = _records(path, file, separator)[skipped:]
    header, names = records[0] if records else (1, [])
    columns = ["" if NAMELESS.fullmatch(name := column(each)) else name for each in names]
    try:
        _check_header(columns, (*COLUMNS, *more))
        for place, name in enumerate(columns):
            if not name:
                _check_nameless(place, [cells[place] for _, cells in records[1:] if place < len(cells)])
    except ValueError as error:
        raise DataError(f"{path}, line {header}: {error}") from error
    for line, cells in records[1:]:
        yield line, _cells(columns, cells)


def _separator(file: TextIO) -> tuple[str, int]:
    """The separator, and how many rows come before the column names: Excel may name the separator in a row of its own."""
    first = next((text for text in file if text.strip(" \t\r\n,;")), "")
    if said := re.fullmatch(r"\"?sep=([,;\t])\"?", first.strip(" \r\n").lower()):
        return said[1], 1
    known = [sum(column(name.strip(' "\r\n')) in COLUMNS for name in first.split(each)) for each in SEPARATORS]
    return SEPARATORS[known.index(max(known))], 0


def _records(path: Path, file: TextIO, separator: str) -> list[tuple[int, list[str]]]:
    """The line and the cells of every row that is not blank. Raises `DataError` for quotes that do not match."""
    found, line = [], 1
    reader = csv.reader(_without_nul(path, file), delimiter=separator, strict=True)
    with _any_length():
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    found.append((line, cells))
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(_quotes(path, line, reader.line_num, separator)) from error
    return found


def _without_nul(path: Path, file: TextIO) -> Iterator[str]:
    for line, text in enumerate(file, 1):
        if "\0" in text:
            raise DataError(
                f"{path}, line {line}: it has a NUL character, which is not text; save the table again as “CSV UTF-8”"
            )
        yield text


@contextmanager
def _any_length() -> Iterator[None]:
    """Allow cells of more than csv's 131,072 characters, such as a picture in base64."""
    before = csv.field_size_limit(LARGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _quotes(path: Path, begin: int, failed: int, separator: str) -> str:
    """What is wrong with the quotes of the row that begins there, with the line where the wrong one opens."""
    with opened(path, newline="") as file:
        line, closed = _opening(islice(file, begin - 1, None), begin, separator)
    if not closed:
        return f"{path}, line {line}: the quote that opens here is never closed; close it (a quote inside a cell is written twice)"
    ends = f" in line {failed}" if failed != line else ""
    return f"{path}, line {line}: the quote that opens here closes{ends} before its cell ends; a quote inside a cell is written twice"


def _opening(lines: Iterator[str], begin: int, separator: str) -> tuple[int, bool]:
    """The line where the first quote opens that does not close at a cell's end, and whether it closes at all."""
    opens, quoted, fresh = begin, False, True
    for line, text in enumerate(lines, begin):
        place = 0
        while place < len(text):
            each, place = text[place], place + 1
            if quoted and each == '"' and text[place : place + 1] == '"':
                place += 1
            elif quoted and each == '"':
                if text[place : place + 1] not in ("", separator, "\r", "\n"):
                    return opens, True
                quoted = False
            elif not quoted and each == '"' and fresh:
                opens, quoted = line, True
            fresh = not quoted and each in (separator, "\r", "\n")
    return opens, not quoted


def column(name: str) -> str:
    """The name of a column as mmlora writes it: `Choice A` is choice_a."""
    return re.sub(r"[\s-]+", "_", name.strip()).lower()


def check_columns(found: Iterable[str], known: Sequence[str]) -> None:
    """Raise `ValueError` for an unknown column."""
    for name in found:
        if name not in known:
            near = get_close_matches(name, known, 1, 0)
            raise ValueError(f"unknown column {name!r:.60}; the nearest is {near[0]!r}")


def _check_header(columns: list[str], known: Sequence[str]) -> None:
    if not set(columns) & set(known):
        raise ValueError(
            f"it names no column such as {', '.join(NEEDED)}; the first line of a table must name its columns, separated by "
            "commas, semicolons or tabs"
        )
    if "choices" in columns:
        raise ValueError(
            "unknown column 'choices': write each choice into a column of its own, choice_a, choice_b and so on"
        )
    check_columns(filter(None, columns), known)
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise ValueError(f"two columns are called {twice[0]!r}; rename or delete one")
    if missing := [name for name in NEEDED if name not in columns]:
        raise ValueError(f"there is no column {', '.join(missing)}; add it")


def _check_nameless(place: int, cells: list[str]) -> None:
    """Raise `ValueError` for a column without a name that holds anything but row numbers."""
    numbers = {cell.strip() for cell in cells}
    if numbers <= {""} or len(numbers) == len(cells) and all(re.fullmatch("[0-9]{1,18}", each) for each in numbers):
        return
    filled = next(filter(str.strip, cells))
    raise ValueError(f"column {place + 1} has no name and holds {filled!r:.60}; name it or delete it")


def _cells(columns: list[str], cells: list[str]) -> dict[str, Any] | str:
    named = 1 + max(place for place, name in enumerate(columns) if name)
    if len(cells) < named or any(cells[len(columns) :]):
        return f"it has {len(cells)} cells for {len(columns)} columns"
    row: dict[str, Any] = {name: cell for name, cell in zip(columns, cells) if name and cell}
    choices = [row.pop(name, "") for name in CHOICES]
    while choices and not choices[-1]:
        choices.pop()
    return {**row, "choices": choices}
