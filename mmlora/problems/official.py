"""ScienceQA's official layout (github.com/lupantech/ScienceQA): JSON files, and a folder of pictures.

    problems.json                         id -> question, choices, answer, hint, image, task, grade, …, split
    pid_splits.json                       split -> ids; train, val, test, trainval, minitrain, minival, minitest
    images/<split>/<id>/image.png         or the same without images/
    captions.json                         {"captions": {id: text}} or {id: text}; optional

The official repository keeps captions.json one folder above the others: copy it down to have captions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mmlora.problems.images import Finder, without_missing
from mmlora.problems.record import Problem, ProblemError, called
from mmlora.problems.rows import (
    DataError,
    MissingImages,
    NoSplit,
    by_lot,
    identity,
    to_problem,
    to_row,
    writing,
)
from mmlora.problems.texts import opened, whole

NAMES = {"validation": "val"}  # our split's official name
PICTURE = "image.png"


def read(folder: Path, split: str, limit: int | None = None, missing_images: MissingImages = "error") -> list[Problem]:
    """`limit` (default all) problems of a split, in the order of pid_splits.json; drawn by lot where it has more.

    A missing picture is an error, or with `missing_images="text-only"` a problem without one. Raises `DataError`.
    """
    problems, splits = _json(folder / "problems.json"), _json(folder / "pid_splits.json")
    name = split if split in splits else NAMES.get(split, split)
    if name not in splits:
        raise NoSplit(f"{folder / 'pid_splits.json'} has no split {split!r}; it has {', '.join(splits)}")
    names, captions, finder = _ids(folder, splits[name], name), _captions(folder), Finder(folder)
    try:
        rows = [_row(finder, problems, pid, captions) for pid in by_lot(names, limit, f"{folder} has", split)]

        def is_any() -> bool:
            found = (problems.get(pid) for pid in names)
            return any(
                isinstance(row, dict) and finder.is_there(row.get("image"), _below(row, pid))
                for pid, row in zip(names, found)
            )

        return [to_problem(row) for row in without_missing(rows, folder, missing_images, is_any)]
    except ProblemError as error:
        raise DataError(f"{folder / 'problems.json'}: {error}; mend it or get the files anew") from error


def write(problems: dict[str, Iterable[Problem]], folder: str | Path) -> Path:
    """Export each split's problems to a new folder in the official layout, and return it.

    Raises `DataError` where the folder holds a data set already, an id is there twice or cannot name a folder, or the
    disk is full. The JSON files come last, so that an export that broke off is not read as a whole one.
    """
    folder = Path(folder)
    if (folder / "problems.json").exists():
        raise DataError(f"{folder} holds a data set already; name another folder")
    records: dict[str, dict] = {}
    splits: dict[str, list[str]] = {}
    captions: dict[str, str] = {}
    for split, each in problems.items():
        split = NAMES.get(split, split)
        splits[split] = []
        for problem in each:
            row = to_row(problem)
            pid, image, caption = row.pop("id"), row.pop("image"), row.pop("caption")
            if pid in records or pid in ("", "..") or Path(pid).name != pid:
                raise DataError(f"problem {pid}: {'is there twice' if pid in records else 'its id names no folder'}")
            if image:
                path = folder / "images" / split / pid / PICTURE
                with writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(image)
            records[pid] = {**row, "image": PICTURE if image else None, "split": split}
            splits[split].append(pid)
            captions |= {pid: caption} if caption else {}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("captions", {"captions": captions}), ("pid_splits", splits), ("problems", records)):
            (folder / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return folder


def _ids(folder: Path, found: object, split: str) -> list[str]:
    """The split's ids as text. Raises `DataError` unless they are a list of texts or numbers."""
    if not isinstance(found, list) or not all(
        isinstance(pid, (str, int)) and not isinstance(pid, bool) for pid in found
    ):
        raise DataError(
            f"{folder / 'pid_splits.json'}: {split} is {found!r:.60}, not a list of ids; mend it or get it anew"
        )
    return list(map(str, found))


def _captions(folder: Path) -> dict:
    path = folder / "captions.json"
    captions = _json(path) if path.exists() else {}
    captions = captions.get("captions", captions)
    if captions is None:
        return {}
    if not isinstance(captions, dict):
        raise DataError(
            f'{path}: captions is {captions!r:.60}, not an object {{"id": "caption"}}; mend it or get it anew'
        )
    return captions


def _row(finder: Finder, problems: dict, pid: str, captions: dict) -> dict:
    """The row that `to_problem` takes. Raises `ProblemError`."""
    name = called(identity(pid, "without an id"))
    if pid not in problems:
        raise DataError(
            f"{finder.folder / 'problems.json'} has no problem {name}, which pid_splits.json names; get both anew"
        )
    row = problems[pid]
    try:
        if not isinstance(row, dict):
            raise ValueError(f"it is {row!r:.60}, not an object")
        image = row.get("image")
        if image and not isinstance(row.get("split"), str):
            raise ValueError("it has a picture but no split, and the split names the folder where the picture lies")
        image = finder.find(image, _below(row, pid))
    except ValueError as error:
        raise ProblemError(f"problem {name}: {error}") from error
    return {**row, "id": pid, "image": image, "caption": captions.get(pid), "where": f"problem {name}"}


def _below(row: dict, pid: str) -> list[str]:
    """Where a problem's picture may lie."""
    return [f"{row.get('split')}/{pid}", f"images/{row.get('split')}/{pid}"]


def _json(path: Path) -> dict:
    if not path.exists():
        raise DataError(
            f"{path} is missing; ScienceQA's official layout needs it (a problems.json of your own is a list, [{{…}}, {{…}}])"
        )
    with opened(path) as file:
        text = file.read()
    try:
        content = whole(text)
    except ValueError as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); get it anew") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object; get it anew")
    return content
