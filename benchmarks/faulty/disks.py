"""A disk that is full after so many bytes of a cache, a checkpoint, an adapter or a report, and has room again later."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from faulty import harms, verdict
from faulty.children import Fault, Outcome
from faulty.kinds import Case, end_of
from faulty.world import Progress

PLACES = ("cache", "checkpoint", "adapter", "report")
ROOM = 2**26  # bytes: enough for everything
OLDER = 2  # the seed of an adapter that was there before


def full(case: Case) -> Fault:
    """The disk fills up while one of `PLACES` is written; then there is room, and it is written again."""
    place, older = PLACES[case.number % 4], case.number % 8 >= 4
    disk, progress = case.folder / "disk", Progress(case.folder / "progress")
    with harms.disk(disk) as way:
        _prepare(case, place, disk, older)
        free = int(case.rng.random() * 1.1 * case.reference.sizes[place])
        do = _doing(case, place, disk, progress)
        if way == "tmpfs":
            harms.resize(disk, free)
            first = yield case.job(do, "first")
            saved = max(progress.read()["saved"], default=0)
            left = _left(case, place, disk, older)
            harms.resize(disk, ROOM)
        else:
            first = yield case.job(partial(_limited, do, free), "first")
            saved, left = max(progress.read()["saved"], default=0), _left(case, place, disk, older)
        progress.path.unlink(missing_ok=True)
        second = yield case.job(do, "second")
        if min(progress.read()["step"], default=saved + 1) <= saved:
            left.add(verdict.LOST)  # steps that a checkpoint had kept are taken again
    return _judged(case, place, first, second, left, way=way, free=free, older=older, saved=saved)


def _limited(do: Callable[[], dict], size: int) -> dict:
    harms.limit_files(size)
    return do()


def _prepare(case: Case, place: str, disk: Path, older: bool) -> None:
    """Put on the disk what was there before."""
    reference = case.reference.folder
    if place == "adapter" and older:
        shutil.copytree(reference / "older" / "adapter", disk / "adapter")
    if place == "report":
        shutil.copytree(reference / "report" / "run", disk / "run")
        if not older:
            for path in case.side.REPORT:
                (disk / "run" / path).unlink()


def _doing(case: Case, place: str, disk: Path, progress: Progress) -> Callable[[], dict]:
    side, world = case.side, case.world
    if place == "checkpoint":
        return partial(side.train, world, disk, progress, cache=case.reference.folder / "cache" / "cache")
    if place == "adapter":
        return partial(side.save, world, disk, 1)
    if place == "report":
        return partial(side.report, world, disk, case.reference.folder / "experiment_run" / "run")
    return partial(side.keep_cache, world, disk)


def _left(case: Case, place: str, disk: Path, older: bool) -> set[str]:
    """What is wrong with what lies there under its final name while the disk is full."""
    if place == "adapter":
        found, known = end_of(disk / "adapter"), case.reference.ends
        if older and found not in (known["older"], known["adapter file"]):
            return {verdict.LOST}
        torn = found is None and (disk / "adapter" / "adapter_model.safetensors").exists()
        return {verdict.HALF} if torn else set()
    if place == "report":
        torn = [name for name in case.side.REPORT if (disk / "run" / name).exists() and not whole(disk / "run" / name)]
        return {verdict.LOST if older else verdict.HALF} if torn else set()
    return set()


def whole(path: Path) -> bool:
    """Whether a page or a JSON file has its end."""
    content = path.read_text(encoding="utf-8", errors="replace").rstrip()
    return content.endswith("</html>" if path.suffix == ".html" else ("}", "]"))


def _judged(case: Case, place: str, first: Outcome, second: Outcome, left: set[str], *, saved: int, **done) -> dict:
    kind, name = case.kind, case.side.NAME
    files = {
        "checkpoint": ("checkpoint-",),
        "cache": ("/cache/",),
        "adapter": ("adapter_",),
        "report": case.side.REPORT,
    }[place]
    one, two = (verdict.ending(outcome, kind, name, files) for outcome in (first, second))
    counted = {one, two} & {verdict.CRASH} | left
    known = case.reference.ends["train" if place == "checkpoint" else "adapter file" if place == "adapter" else place]
    for outcome, how in ((first, one), (second, two)):
        if how == "ended" and outcome.result["end"] != known:
            counted.add(verdict.WRONG)
    if two != "ended" and (place != "checkpoint" or saved):
        counted.add(verdict.LOST)  # it cannot go on even with room again
    words = f"{one}{' and said so' if one == 'ended' and verdict.said(first, kind, ()) else ''}"
    outcome = f"full disk: {words}; with room again: {two}"
    if one != "ended" and two != "ended":
        done["then"] = verdict.message(second)
    return case.record(place, outcome, counted, second if one == "ended" else first, **done)
