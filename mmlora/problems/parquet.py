"""Problems in parquet files with ScienceQA's schema, as MiniSQA's files and the hub's data sets are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from mmlora.problems.images import Finder
from mmlora.problems.record import Problem, ProblemError, called
from mmlora.problems.rows import DataError, identity, reason, to_problem, to_row, writing

OWN = ("id", "caption", "wording")  # what a file may lack
#: The 13 fields of derek-thomas/ScienceQA, in its order and with its types, and what `Problem` adds to them.
FEATURES = Features({
    "image": Image(), "question": Value("string"), "choices": List(Value("string")), "answer": Value("int8"),
    **{name: Value("string") for name in ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture",
                                          "solution", *OWN)},
})  # fmt: skip
NUMBERED = re.compile(r"-(\d+)-of-(\d+)")  # how the files of a split are numbered, after its name
ROWS = 100  # a row group: the rows (about 6 MB) that are held in memory while a file is written or read


def find(folder: Path, split: str) -> list[Path]:
    """`<split>.parquet` and `<split>-*.parquet` in the folder, or else in the one folder inside that has some.

    That is how the hub names and places them. Raises `DataError` where two folders inside have some, and where a part of a
    numbered set of files is missing or lies beside another set.
    """
    for below in ("", "*/"):
        paths = sorted({*folder.glob(f"{below}{split}.parquet"), *folder.glob(f"{below}{split}-*.parquet")})
        if paths:
            break
    if len(parents := sorted({str(path.parent) for path in paths})) > 1:
        raise DataError(f"{folder} has several tables of the split {split}; give one of {', '.join(parents)}")
    _refuse_part(paths, split)
    return paths


def _refuse_part(paths: Sequence[Path], split: str) -> None:
    """Raise `DataError` unless files numbered as `test-00000-of-00002` are all there, and nothing else is beside them."""
    numbered = [(int(found[1]), int(found[2])) for path in paths if (found := NUMBERED.match(path.stem, len(split)))]
    if not numbered:
        return
    count = numbered[0][1]
    if (
        len(numbered) < len(paths)
        or len({each for _, each in numbered}) > 1
        or len({i for i, _ in numbered}) < len(numbered)
    ):
        names = " and ".join(path.name for path in (paths[0], paths[-1]))
        raise DataError(
            f"{paths[0].parent} has {names}, which belong to different sets of files; move one set elsewhere"
        )
    if len(numbered) < count:
        raise DataError(
            f"{paths[0].parent} has {len(numbered)} of the {count} files of the split {split!r}, such as {paths[0].name}; get the others "
            "too, or rename these if they are the whole split"
        )


def read(paths: Iterable[Path], split: str, own: bool = False) -> Iterator[Problem]:
    """Yield the problems of one split's files; a row without an id is called `<split>-<row>`.

    Pictures are decoded once here, to find damaged ones, and again when they are used; those of this project's `own` files are
    not decoded here. Raises `DataError`, which names the file and the row.
    """
    number = 0
    for path in paths:
        finder = Finder(path.parent)
        for row in _rows(path):
            try:
                yield to_problem(_row(row, f"{split}-{number}", finder), own)
            except ProblemError as error:
                raise DataError(f"{path}: {error}; mend it or get the file anew") from error
            number += 1


def _row(row: dict, name: str, finder: Finder) -> dict:
    """The row that `to_problem` takes. Raises `ProblemError`."""
    name = identity(row.get("id"), name)
    try:
        return {**row, "id": name, "image": finder.find(row["image"])}
    except ValueError as error:
        raise ProblemError(f"problem {called(name)}: {error}") from error


def write(path: Path, problems: Iterable[Problem]) -> None:
    """Stream `problems` to a file beside `path` and rename it when it is whole. Raises `DataError`."""
    aside, schema = path.with_suffix(f".{os.getpid()}.part"), FEATURES.arrow_schema
    problems = iter(problems)
    try:
        with writing(path):
            writer = pq.ParquetWriter(aside, schema)
        with closing(writer):  # also after an error: Windows cannot delete an open file, and would hide the cause
            while rows := [_stored(problem) for problem in islice(problems, ROWS)]:
                with writing(path):
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            with writing(path):
                writer.close()  # writes the footer: a full disk may only show here
        with writing(path):
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _stored(problem: Problem) -> dict:
    row = to_row(problem)
    return {**row, "image": row["image"] and {"bytes": row["image"], "path": f"{problem.id}.png"}}


def _rows(path: Path) -> Iterator[dict]:
    try:
        file = pq.ParquetFile(path, pre_buffer=False)  # or else the whole file is held twice
        if missing := [name for name in FEATURES if name not in (*file.schema_arrow.names, *OWN)]:
            raise DataError(f"{path} has no column {', '.join(missing)}; it needs ScienceQA's 13 fields")
        if twice := [name for name in FEATURES if file.schema_arrow.names.count(name) > 1]:
            raise DataError(f"{path} has several columns called {twice[0]}; keep one of them")
        first = 0
        for batch in file.iter_batches(ROWS):
            yield from _values(batch, path, first)
            first += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet ({reason(error)}); delete it and get it anew") from error


def _values(rows: pa.RecordBatch, path: Path, first: int) -> list[dict]:
    try:
        return rows.to_pylist()
    except (ValueError, OverflowError) as error:  # such as a text that is not UTF-8
        if rows.num_rows > 1:
            return [row for place in range(rows.num_rows) for row in _values(rows.slice(place, 1), path, first + place)]
        raise DataError(
            f"{path}, row {first}: it cannot be read ({reason(error)}); mend it or get the file anew"
        ) from error
