"""Your own folder: one problem a row in a table, CSV or JSON, and the pictures beside it.

`<split>.csv` or `<split>.jsonl` holds a split; `problems.csv` or `problems.jsonl` holds them all, told apart by a
column `split`. Columns: `question`, two to 26 choices, `answer`; and, where you have them, `image` (a path inside the
folder), `id` and the other fields of `Problem`. A `.tsv`, and a list of objects in a `.json`, are read where there is neither.

    CSV    choices in the columns choice_a to choice_z, as many as you need, empty from the first that is not used
    JSONL  choices as a list: {"question": "Which is a planet?", "choices": ["Mars", "the sun"], "answer": "A"}

`answer` is a letter (A is the first choice), the choice's exact text, or its index (0 is the first).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmlora.problems import csv_rows, json_rows
from mmlora.problems.csv_rows import Line, check_columns
from mmlora.problems.images import Finder, without_missing
from mmlora.problems.record import Problem, ProblemError, called
from mmlora.problems.rows import (
    FIELDS,
    REQUIRED,
    DataError,
    MissingImages,
    NoSplit,
    by_lot,
    identity,
    is_null,
    to_problem,
)

ALL = "problems"  # the name of a file that holds every split
ENDS = ((".csv", ".jsonl"), (".tsv", ".json"))  # the second where there is none of the first
SPLITS = ("train", "validation", "test", "transfer")
SHOWN = 10  # how many faulty rows are reported at once


def find(folder: Path, split: str) -> list[Path]:
    """The split's own file, or else the one of all splits. Raises `DataError` where there are two."""
    for ends in ENDS:
        for name in (split, ALL):
            paths = [path for end in ends if (path := folder / f"{name}{end}").is_file() and not _is_official(path)]
            if len(paths) > 1:
                raise DataError(f"{folder} has both {paths[0].name} and {paths[1].name}; keep one of them")
            if paths:
                return paths
    return []


def _is_official(path: Path) -> bool:
    return path.name == "problems.json" and not json_rows.is_list(path)


def read(path: Path, split: str, limit: int | None = None, missing_images: MissingImages = "error") -> list[Problem]:
    """`limit` (default all) problems of a split from a table, drawn by lot where it has more.

    A row without an id is called `<split>-<row>`, counted from 0. A missing picture is an error, or with
    `missing_images="text-only"` a problem without one. Raises `DataError` with the first ten faulty rows.
    """
    every, finder = list(enumerate(_table(path, split))), Finder(path.parent)
    rows, problems, faults = [], [], []
    lines: dict[str, int] = {}  # of each id
    for number, (line, cells) in by_lot(every, limit, f"{path} has", split):
        try:
            row = _row(cells, f"{split}-{number}", finder)
            name = called(row["id"])
            if (first := lines.setdefault(row["id"], line)) != line:
                raise ProblemError(f"problem {name}: line {first} has this id already")
            rows.append({**row, "where": f"line {line}: problem {name}"})
        except ProblemError as error:
            faults.append((line, error))

    def is_any() -> bool:
        return any(isinstance(cells, dict) and finder.is_there(cells.get("image")) for _, (_, cells) in every)

    for row in without_missing(rows, path, missing_images, is_any):
        try:
            problems.append(to_problem(row))
        except ProblemError as error:
            faults.append((lines[row["id"]], error))
    if faults:
        raise DataError(_told(path, faults))
    return problems


def _told(path: Path, faults: list[tuple[int, ProblemError]]) -> str:
    named = sorted(faults, key=lambda fault: fault[0])[:SHOWN]
    shown = "".join(f"\n  line {line}: {error}" for line, error in named)
    first = f" (the first {SHOWN})" if len(faults) > SHOWN else ""
    return f"{path} has {len(faults)} faulty row{'s' * (len(faults) > 1)}{first}:{shown}"


def _row(cells: dict | str, name: str, finder: Finder) -> dict:
    """The row that `to_problem` takes, from the cells of a line, or from the reason why it has none."""
    if isinstance(cells, str):
        raise ProblemError(f"problem {name}: {cells}")
    name = identity(cells.get("id"), name)
    try:
        check_columns(cells, FIELDS)
        image = finder.find(cells.get("image"))
    except ValueError as error:
        raise ProblemError(f"problem {called(name)}: {error}") from error
    return {**dict.fromkeys(REQUIRED, ""), **cells, "id": name, "image": image}


def _table(path: Path, split: str) -> Iterator[Line]:
    more = ("split",) if path.stem == ALL else ()
    table = csv_rows.rows(path, more) if path.suffix in (".csv", ".tsv") else json_rows.rows(path)
    return _of_split(table, split, path) if more else table


def _of_split(table: Iterator[Line], split: str, path: Path) -> Iterator[Line]:
    """Yield the rows whose `split` is this one; where no row has a split, all of them as "test" and for nothing else."""
    rows = [(line, cells, _split(cells) if isinstance(cells, dict) else split) for line, cells in table]
    splits = list(dict.fromkeys(each for _, cells, each in rows if isinstance(cells, dict)))
    if splits == [None] and split == "test":
        print(f"{path} has no column 'split': all its problems are read as 'test'")
    elif splits == [None]:
        raise NoSplit(
            f"{path} has no column 'split', so its problems can be answered, as the split 'test', and not learned from: a test on "
            f"what was learned is worth nothing; add the column, with train and test"
        )
    elif splits and split not in splits:
        raise NoSplit(f"{path} has no problem of the split {split!r}; it has {', '.join(filter(None, splits))}")
    for line, cells, each in rows:
        if each is None and splits != [None]:
            yield line, "it has no split, but others have one"
        elif each not in (None, split, *SPLITS):
            yield line, f"its split is {each!r}; it can be {', '.join(SPLITS)}"
        elif each in (None, split):
            yield line, cells


def _split(cells: dict) -> str | None:
    """The row's split, taken out of its cells."""
    split = cells.pop("split", None)
    return None if is_null(split) else str(split).strip() or None
