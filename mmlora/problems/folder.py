"""Your own folder: one problem a row in a JSONL or CSV file, and the pictures beside it.

`<split>.jsonl` or `<split>.csv` holds a split; `problems.jsonl` or `problems.csv` holds them all, told apart by a
column `split`. Columns: `question`, two to 26 choices, `answer`; and, where you have them, `image` (a path inside the
folder), `id` and the other fields of `Problem`.

    CSV    choices in the columns choice_a to choice_z, as many as you need, empty from the first that is not used
    JSONL  choices as a list: {"question": "Which is a planet?", "choices": ["Mars", "the sun"], "answer": "A"}

`answer` is a letter (A is the first choice), the choice's exact text, or its index (0 is the first).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from mmlora.problems.record import LETTERS, Problem, ProblemError
from mmlora.problems.rows import (
    FIELDS,
    REQUIRED,
    DataError,
    MissingImages,
    NoSplit,
    by_lot,
    inside,
    to_problem,
    without_missing,
)

CHOICES = tuple(f"choice_{letter.lower()}" for letter in LETTERS)
ALL = "problems"  # the name of a file that holds every split
SPLITS = ("train", "validation", "test", "transfer")
SHOWN = 10  # how many faulty rows are reported at once


def find(folder: Path, split: str) -> list[Path]:
    """The split's own file, or else the one of all splits. Raises `DataError` where there are two."""
    for name in (split, ALL):
        paths = [path for end in (".csv", ".jsonl") if (path := folder / f"{name}{end}").is_file()]
        if len(paths) > 1:
            raise DataError(f"{folder} has both {paths[0].name} and {paths[1].name}; keep one of them")
        if paths:
            break
    return paths


def read(path: Path, split: str, limit: int | None = None, missing_images: MissingImages = "error") -> list[Problem]:
    """`limit` (default all) problems of a split from a CSV or JSONL file, drawn by lot where it has more.

    A row without an id is called `<split>-<row>`, counted from 0. A missing picture is an error, or with
    `missing_images="text-only"` a problem without one. Raises `DataError` with the first ten faulty rows.
    """
    table = _csv(path) if path.suffix == ".csv" else _jsonl(path)
    numbered = list(enumerate(_of_split(table, split, path) if path.stem == ALL else table))
    rows, problems, faults = [], [], []
    lines: dict[str, int] = {}  # of each id
    for number, (line, cells) in by_lot(numbered, limit, f"{path} has", split):
        try:
            row = _row(cells, f"{split}-{number}", path.parent)
            if (first := lines.setdefault(row["id"], line)) != line:
                raise ProblemError(f"problem {row['id']}: line {first} has this id already")
            rows.append({**row, "where": f"line {line}: problem {row['id']}"})
        except ProblemError as error:
            faults.append((line, error))
    for row in without_missing(rows, path, missing_images):
        try:
            problems.append(to_problem(row))
        except ProblemError as error:
            faults.append((lines[row["id"]], error))
    if faults:
        named = sorted(faults, key=lambda fault: fault[0])[:SHOWN]
        shown = "".join(f"\n  line {line}: {error}" for line, error in named)
        raise DataError(
            f"{path} has {len(faults)} faulty row{'s' * (len(faults) > 1)}"
            f"{f' (the first {SHOWN})' * (len(faults) > SHOWN)}:{shown}"
        )
    return problems


def _row(cells: dict | str, name: str, folder: Path) -> dict:
    """The row that `to_problem` takes, from the cells of a line, or from the reason why it has none."""
    if isinstance(cells, str):
        raise ProblemError(f"problem {name}: {cells}")
    row = {**cells, "id": str(cells.get("id", name)), "image": None}
    try:
        _check_columns(cells, FIELDS)
        if empty := [column for column in REQUIRED if _is_blank(cells.get(column, ""))]:
            raise ValueError(f"{' and '.join(empty)} should not be empty")
        if image := cells.get("image"):
            row["image"] = inside(folder, str(image))
        if isinstance(cells["choices"], list):
            _check_choices(cells["choices"])
            row["answer"] = _index(cells["answer"], row["choices"])
    except ValueError as error:
        raise ProblemError(f"problem {row['id']}: {error}") from error
    return row


def _is_blank(value: object) -> bool:
    return value == [] or isinstance(value, str) and not value.strip()


def _check_choices(choices: list) -> None:
    """Raise `ValueError` for one that is empty, and for two that nobody could tell apart."""
    places: dict[str, int] = {}
    for place, choice in enumerate(choices):
        if _is_blank(choice):
            raise ValueError(f"choice {LETTERS[place % len(LETTERS)]} is empty")
        if (first := places.setdefault(str(choice).strip(), place)) != place and place < len(LETTERS):
            raise ValueError(f"choices {LETTERS[first]} and {LETTERS[place]} are both {choice!r}; make them differ")


def _index(answer: str | int, choices: list[str]) -> int:
    """Which choice is meant. Raises `ValueError` where it is none or more than one."""
    if isinstance(answer, int):  # a number of JSON; Problem checks its range
        return answer
    meant = [i for i, (letter, choice) in enumerate(zip(LETTERS, choices)) if answer in (letter, str(i), choice)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        named = " or ".join(f"choice {LETTERS[i]}" for i in meant)
        raise ValueError(f"answer {answer!r} may mean {named}; write its letter or its index instead")
    letters = f"A to {LETTERS[min(len(choices), len(LETTERS)) - 1]}"
    raise ValueError(f"answer {answer!r} is no letter {letters}, no choice's exact text and no index")


def _check_columns(found: Iterable, known: Sequence[str]) -> None:
    """Raise `ValueError` for a column that nothing is called."""
    for column in found:
        if column not in known:
            near = get_close_matches(str(column), known, 1, 0)
            raise ValueError(f"no column is called {column!r}; the nearest is {near[0]!r}")


def _csv(path: Path) -> Iterator[tuple[int, dict | str]]:
    """Yield every row's line number and its filled cells, `choices` made of choice_a to choice_z."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Excel begins a file with a byte order mark
            reader = csv.reader(file, strict=True)
            columns = next(reader, [])
            _check_header(columns, path)
            line = reader.line_num + 1
            for cells in reader:
                if any(cells):
                    yield line, _cells(columns, cells)
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}); save it as “CSV UTF-8”") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; a quote inside a cell is written twice") from error


def _check_header(columns: list[str], path: Path):
    known = [name for name in FIELDS if name != "choices"] + [*CHOICES] + ["split"] * (path.stem == ALL)
    needed = ["question", *CHOICES[:2], "answer"]
    try:
        if len(columns) == 1 and ";" in columns[0]:
            raise ValueError("its columns are separated by semicolons; save it with commas")
        _check_columns(columns, known)
        if twice := [column for column in columns if columns.count(column) > 1]:
            raise ValueError(f"two columns are called {twice[0]!r}")
        if missing := [column for column in needed if column not in columns]:
            raise ValueError(f"there is no column {', '.join(missing)}")
    except ValueError as error:
        raise DataError(f"{path}, line 1: {error}") from error


def _cells(columns: list[str], cells: list[str]) -> dict | str:
    if len(cells) != len(columns):
        return f"it has {len(cells)} cells for {len(columns)} columns"
    row = {column: cell for column, cell in zip(columns, cells) if cell}
    choices = [row.pop(column, "") for column in CHOICES]
    while choices and not choices[-1]:
        choices.pop()
    return {**row, "choices": choices}


def _jsonl(path: Path) -> Iterator[tuple[int, dict | str]]:
    """Yield every row's line number and its object without nulls, or the reason why it has none."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, _object(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error})") from error


def _object(text: str) -> dict | str:
    try:
        row = json.loads(text)
    except ValueError as error:
        return f"it is no JSON ({error})"
    if not isinstance(row, dict):
        return "it is no object"
    return {name: value for name, value in row.items() if value is not None}


def _of_split(table: Iterator[tuple[int, dict | str]], split: str, path: Path) -> Iterator[tuple[int, dict | str]]:
    """Yield the rows whose `split` is this one; where no row has a split, all of them as "test" and for nothing else."""
    rows = [(line, cells, cells.pop("split", None) if isinstance(cells, dict) else split) for line, cells in table]
    splits = list(dict.fromkeys(each for _, cells, each in rows if isinstance(cells, dict)))
    if splits == [None] and split == "test":
        print(f"{path} has no column 'split': all its problems are read as 'test'")
    elif splits == [None]:
        raise NoSplit(
            f"{path} has no column 'split', so its problems can be answered, as the split 'test', and not learned from: a test on "
            f"what was learned is worth nothing; add the column, with train and test"
        )
    elif split not in splits:
        raise NoSplit(f"{path} has no problem of the split {split!r}; it has {', '.join(map(str, splits))}")
    for line, cells, each in rows:
        if each is None and splits != [None]:
            yield line, "it has no split, but others have one"
        elif each not in (None, split, *SPLITS):
            yield line, f"its split is {each!r}; it can be {', '.join(SPLITS)}"
        elif each in (None, split):
            yield line, cells
