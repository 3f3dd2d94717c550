"""What each side comes to without a fault, and the folders that faults begin from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import ModuleType

from faulty import children, disks, together
from faulty.children import Fault, Job
from faulty.harms import files_of
from faulty.kinds import Reference
from faulty.world import HALF, Progress, World

LIMIT = 200.0  # seconds


class NoReference(Exception):
    """Something fails without any fault, so nothing can be measured."""


def made(sides: Collection[ModuleType], world: World, folder: Path, only: Collection[str]) -> dict[str, Reference]:
    """By the side's name. Only what the kinds in `only` need."""
    found = {side.NAME: Reference(folder / side.NAME) for side in sides}
    for stage in (_first, _second):
        jobs = [job for side in sides for job in stage(side, world, found[side.NAME], only)]
        for _ in children.run(jobs):
            pass
    for side in sides:
        known = found[side.NAME]
        known.ends["checkpoint"] = known.ends["train"]
        known.sizes = {place: _size(known.folder, place, side.REPORT) for place in disks.PLACES}
    return found


def _first(side: ModuleType, world: World, found: Reference, only: Collection[str]) -> list[Fault]:
    def trained(work: Path, **how) -> dict:
        return side.train(world, work, Progress(work / "progress"), **how)

    jobs = [
        _job(side, found, "train", trained),
        _job(side, found, "checkpoint", partial(trained, stop=HALF), fails=True),
        _job(side, found, "cache", partial(side.keep_cache, world)),
        _job(side, found, "adapter file", partial(side.save, world, seed=1), "adapter"),
        _job(side, found, "older", partial(side.save, world, seed=disks.OLDER)),
    ]
    if {"kill", "disk"} & set(only):
        run = lambda work: side.experiment_run(world, work, Progress(work / "progress"))  # noqa: E731
        jobs.insert(0, _job(side, found, "experiment_run", run))
    if "memory" in only:
        jobs.append(_job(side, found, "plain", partial(trained, dropout=0.0)))
    if "process" in only:
        jobs.append(_job(side, found, "process", lambda work: together.reference(world.base.parent, work, side.NAME)))
    return jobs


def _second(side: ModuleType, world: World, found: Reference, only: Collection[str]) -> list[Fault]:
    """What takes the first ones' folders."""
    folder = found.folder
    jobs = [
        _job(side, found, "adapter", partial(side.use_adapter, world)),
        _job(side, found, "base", lambda work: side.use_base(world, world.base.parent)),
    ]
    if "disk" in only:
        shutil.copytree(folder / "experiment_run", folder / "report")
        jobs.append(
            _job(side, found, "report", lambda work: side.report(world, work, folder / "experiment_run" / "run"))
        )
    return jobs


def _job(
    side: ModuleType, found: Reference, name: str, do: Callable[[Path], dict], place: str = "", fails: bool = False
) -> Fault:
    work = found.folder / (place or name)
    work.mkdir(parents=True, exist_ok=True)
    outcome = yield Job(partial(do, work), found.folder / "jobs" / name, limit=LIMIT)
    if outcome.result is None and not fails:
        raise NoReference(f"{side.NAME}, {name}: {outcome.where or outcome.output[-2000:]}")
    found.ends[name] = (outcome.result or {"end": ""})["end"]
    found.seconds[name] = outcome.seconds
    return {}


def _size(folder: Path, place: str, report: Collection[str]) -> int:
    """Bytes that the thing takes, to draw from where a disk is full."""
    if place == "report":
        return sum(path.stat().st_size for name in report if (path := folder / "report" / "run" / name).exists())
    parts = {
        "cache": ["cache/cache"],
        "checkpoint": ["checkpoint/run", "adapter/adapter"],
        "adapter": ["adapter/adapter"],
    }
    return sum(path.stat().st_size for part in parts[place] for path in files_of(folder / part))
