"""What each side produces without a fault, and the folders that faults begin from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import ModuleType

from faulty import children, disks, kinds, together
from faulty.children import Fault, Job
from faulty.harms import files_of
from faulty.kinds import Reference
from faulty.world import HALF, Progress, World

LIMIT = 200.0  # seconds


class NoReference(Exception):
    """Something fails without any fault, so nothing can be measured."""


#: The references that damaged, hostile and full places need.
BY_PLACE = {
    "checkpoint": {"train", "checkpoint"},
    "cache": {"cache"},
    "adapter": {"adapter file", "adapter"},
    "base": {"base"},
}
ON_DISK = {**BY_PLACE, "checkpoint": {"train", "checkpoint", "cache", "adapter file"}, "adapter": {"adapter file", "older"},
           "report": {"experiment_run", "report"}}  # fmt: skip


def needed(kind: str, count: int) -> set[str]:
    """The references that so many faults of this kind need."""
    if kind == "disk":
        return set().union(*(ON_DISK[place] for place in disks.PLACES[:count]))
    if kind in ("damage", "hostile"):
        places = kinds.DAMAGED if kind == "damage" else [place for place, _ in kinds.hostile_places()]
        return set().union(*(BY_PLACE[place] for place in places[:count]))
    if kind == "kill":
        return {"train", "experiment_run"} if count >= kinds.WHOLE else {"train"}
    return {{"memory": "plain", "process": "process"}.get(kind, "train")}


def made(sides: Collection[ModuleType], world: World, folder: Path, needs: Collection[str]) -> dict[str, Reference]:
    """By the side's name, what is in `needs`."""
    found = {side.NAME: Reference(folder / side.NAME) for side in sides}
    for stage in (_first, _second):
        jobs = []
        for side in sides:
            known = found[side.NAME]
            if stage is _second and "report" in needs:
                shutil.copytree(known.folder / "experiment_run", known.folder / "report")
            ways = {name: way for name, way in stage(side, world, known.folder).items() if name in needs}
            jobs += [_job(side, known, name, way) for name, way in ways.items()]
        for _ in children.run(jobs):
            pass
    for side in sides:
        known = found[side.NAME]
        known.ends["checkpoint"] = known.ends.get("train", "")
        known.sizes = {place: _size(known.folder, place, side.REPORT) for place in disks.PLACES}
    return found


def _first(side: ModuleType, world: World, folder: Path) -> dict[str, Callable[[Path], dict]]:
    """How each thing is made in its folder; what takes longest comes first."""

    def trained(work: Path, **how) -> dict:
        return side.train(world, work, Progress(work / "progress"), **how)

    return {
        "process": lambda work: together.reference(world.base.parent, work, side.NAME),
        "experiment_run": lambda work: side.experiment_run(world, work, Progress(work / "progress")),
        "train": trained,
        "plain": partial(trained, dropout=0.0),
        "checkpoint": partial(trained, stop=HALF),
        "cache": partial(side.keep_cache, world),
        "adapter file": partial(side.save, world, seed=1),
        "older": partial(side.save, world, seed=disks.OLDER),
    }


def _second(side: ModuleType, world: World, folder: Path) -> dict[str, Callable[[Path], dict]]:
    """How those things are made that need the folders of the first ones."""
    return {
        "adapter": partial(side.use_adapter, world),
        "base": lambda work: side.use_base(world, world.base.parent),
        "report": lambda work: side.report(world, work, folder / "experiment_run" / "run"),
    }


def _job(side: ModuleType, found: Reference, name: str, do: Callable[[Path], dict]) -> Fault:
    work = found.folder / ("adapter" if name == "adapter file" else name)
    work.mkdir(parents=True, exist_ok=True)
    outcome = yield Job(partial(do, work), found.folder / "jobs" / name, limit=LIMIT)
    if outcome.result is None and name != "checkpoint":  # mmlora's ends with `Stopped`, on purpose
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
