"""MiniSQA on disk: parquet files in ScienceQA's schema, written once and read back as Problems."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image
from tqdm import tqdm

from mmlora.errors import MMLoraError
from mmlora.minisqa.core import SPLIT_SIZES, find_skills, generate
from mmlora.paths import WORK
from mmlora.scienceqa import Problem
from mmlora.weights import sha256

#: Where MiniSQA lies unless a folder is given.
FOLDER = WORK / "data" / "minisqa"

#: The 13 fields of derek-thomas/ScienceQA, in its order and with its types, and two more: `id` and `caption`.
FEATURES = Features({
    "image": ImageFeature(), "question": Value("string"), "choices": Sequence(Value("string")), "answer": Value("int8"),
    **{name: Value("string") for name in ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture",
                                          "solution", "id", "caption")},
})  # fmt: skip

ROWS = 100  # a row group: the rows (about 6 MB) that are held in memory while a file is written or read


class DataError(MMLoraError, RuntimeError):
    """Data that cannot be written or read; the message is one sentence with the place and the remedy."""


def build(folder: str | Path | None = None, *, sizes: dict[str, int] | None = None, seed: int = 0,
          skills: list[str] | None = None) -> Path:  # fmt: skip
    """Write `<split>.parquet` for each split of `sizes` and return the folder (default `data/minisqa`).

    Returns at once where the folder already holds exactly this; builds anew where a setting, the code of
    the skills or a file's size differs. A build that breaks off leaves no manifest, so the next call starts over.
    Raises `UnknownSkill`, or `DataError` where the folder cannot be written or is full.
    """
    folder, sizes = Path(folder or FOLDER), dict(sizes or SPLIT_SIZES)
    names = [each.name for each in find_skills(skills)]
    settings = {"seed": seed, "sizes": sizes, "skills": names, "version": _version()}
    manifest = folder / "manifest.json"
    if _is_built(manifest, settings):
        return folder
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        manifest.unlink(missing_ok=True)
    files = {}
    with tqdm(total=sum(sizes.values()), desc="MiniSQA", unit="problem") as progress:
        for split, size in sizes.items():
            path = folder / f"{split}.parquet"
            _write(path, generate(split, size, seed=seed, skills=skills), progress)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    with _writing(folder):
        aside = manifest.with_suffix(f".{os.getpid()}.part")
        aside.write_text(json.dumps({**settings, "files": files}, indent=1))
        aside.replace(manifest)
    return folder


def load_problems(source: str | Path = "minisqa", split: str = "test", limit: int | None = None) -> list[Problem]:
    """The first `limit` (default all) problems of `<source>/<split>*.parquet`; "minisqa" builds it first if need be.

    Works for every parquet file with ScienceQA's fields; a row without an id is called `<split>-<row>`. Images are
    checked here but decoded at their first use, so that 4,000 problems load in seconds. Raises `DataError`, which
    names the file and the row.
    """
    folder = build() if source == "minisqa" else Path(source)
    paths = sorted(folder.glob(f"{split}*.parquet"))
    if not paths:
        raise DataError(f'{folder} has no {split}*.parquet; give "minisqa" or a folder with ScienceQA\'s parquet files')
    problems = (problem for path in paths for problem in _read(path, split))
    return list(islice(problems, limit))


def _is_built(manifest: Path, settings: dict) -> bool:
    try:
        found = json.loads(manifest.read_text())
        files = found.pop("files")
        whole = all((manifest.parent / name).stat().st_size == file["bytes"] for name, file in files.items())
    except (OSError, ValueError, KeyError):
        return False
    return whole and found == settings


def _version() -> str:
    """A hash of this package's code: when a skill changes, the data is built anew."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(here.glob("*.py")))).hexdigest()[:16]


@contextmanager
def _writing(folder: Path):
    """Turn what the disk objects to into a `DataError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot write MiniSQA to {folder}: {reason}; free 1 GB there or give another one") from error


def _write(path: Path, problems: Iterator[Problem], progress: tqdm):
    """Stream `problems` to a file beside `path` and rename it when it is whole."""
    aside, schema, rows = path.with_suffix(f".{os.getpid()}.part"), FEATURES.arrow_schema, True
    try:
        with _writing(path.parent):
            writer = pq.ParquetWriter(aside, schema)
        while rows:
            rows = [_row(problem) for problem in islice(problems, ROWS)]
            with _writing(path.parent):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            progress.update(len(rows))
        with _writing(path.parent):
            writer.close()
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _row(problem: Problem) -> dict:
    row = {name: getattr(problem, name) for name in FEATURES if name != "image"}
    if problem.image is None:
        return {**row, "image": None}
    buffer = io.BytesIO()
    problem.image.save(buffer, "PNG", compress_level=1)  # higher levels take three times as long for a tenth less
    return {**row, "image": {"bytes": buffer.getvalue(), "path": f"{problem.id}.png"}}


def _read(path: Path, split: str) -> Iterator[Problem]:
    number = 0
    try:
        file = pq.ParquetFile(path, pre_buffer=False)  # or else the whole file is held twice
        if missing := [name for name in FEATURES if name not in (*file.schema_arrow.names, "id", "caption")]:
            raise DataError(f"{path} has no column {', '.join(missing)}; it needs ScienceQA's 13 fields")
        for batch in file.iter_batches(ROWS):
            for row in batch.to_pylist():
                yield _problem(row, path, row.get("id") or f"{split}-{number}")
                number += 1
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet ({error}); delete it and get it anew") from error


def _problem(row: dict, path: Path, row_id: str) -> Problem:
    try:
        known = {name: row[name] for name in FEATURES if row.get(name) is not None}  # nulls get Problem's defaults
        return Problem(**{**known, "id": row_id, "choices": tuple(row["choices"]), "image": _image(row["image"])})
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for a broken file
        raise DataError(f"{path}, row {row_id}: cannot be read ({error}); delete the file and get it anew") from error


def _image(stored: dict | None) -> Image.Image | None:
    """The stored picture as RGB: checked against its checksums now, decoded when it is first used."""
    if stored is None:
        return None
    Image.open(io.BytesIO(stored["bytes"])).verify()
    picture = Image.open(io.BytesIO(stored["bytes"]))
    return picture if picture.mode == "RGB" else picture.convert("RGB")
