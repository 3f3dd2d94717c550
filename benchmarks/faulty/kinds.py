"""One fault of each kind, as a generator of jobs for the child processes; each returns its record.

A record: `kind`, `side`, `number` (the seed's), `place`, what was done, `outcome` in words, `counted` (see `verdict.COUNTED`),
and what was said where it ended with an exception.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType

from safetensors.numpy import load_file

from faulty import harms, verdict
from faulty.children import Fault, Job, Outcome
from faulty.world import ADAPTER, HALF, Poisoned, Progress, World, end

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM}
WHOLE = 10  # one of so many kills hits a whole run of mmlora
DAMAGED = ("checkpoint", "cache", "adapter")


@dataclass
class Reference:
    """What one side produces without any fault, and the folders that faults begin from."""

    folder: Path
    ends: dict[str, str] = field(default_factory=dict)  # by what was done
    seconds: dict[str, float] = field(default_factory=dict)  # the same
    sizes: dict[str, int] = field(default_factory=dict)  # bytes that it takes, by place


@dataclass
class Case:
    """One fault before it happens."""

    world: World
    side: ModuleType
    reference: Reference
    kind: str
    number: int
    seed: int
    folder: Path  # its own

    def __post_init__(self):
        #: The same draw for both sides.
        self.rng = random.Random(f"{self.seed} {self.kind} {self.number}")

    def job(self, do: Callable[[], dict], name: str, **how) -> Job:
        return Job(do, self.folder / name, **how)

    def record(self, place: str, outcome: str, counted: set[str], last: Outcome, **done) -> dict:
        found = {"kind": self.kind, "side": self.side.NAME, "number": self.number, "place": place, **done}
        found |= {"outcome": outcome, "counted": sorted(counted)}
        if words := verdict.message(last):
            found["message"] = words
        found = {
            name: value.replace(str(self.folder.parent), "…") if isinstance(value, str) else value
            for name, value in found.items()
        }
        shutil.rmtree(self.folder, ignore_errors=True)
        return found


def killed(case: Case) -> Fault:
    """SIGKILL or SIGTERM at a random moment of a training, then the same call again: it goes on."""
    whole = case.kind == "kill" and case.number % WHOLE == WHOLE - 1
    name = "experiment_run" if whole else "train"
    train, work = getattr(case.side, name), case.folder / "work"
    work.mkdir(parents=True)
    progress = Progress(work / "progress")
    after = case.rng.random() * case.reference.seconds[name]
    do = partial(train, case.world, work, progress)
    first = yield case.job(do, "first", kill=(SIGNALS[case.kind], after))
    saved = max(progress.read()["saved"], default=0)
    progress.path.unlink(missing_ok=True)
    second = yield case.job(do, "second")
    steps = progress.read()["step"]
    counted = set()
    how = verdict.ending(second, case.kind, case.side.NAME, ("checkpoint-",))
    went_on = min(steps, default=saved + 1) - 1
    if how == verdict.CRASH or first.hung:
        counted.add(verdict.CRASH)
    if saved and (how != "ended" or went_on < saved):
        counted.add(verdict.LOST)
    if how == "ended" and second.result["end"] != case.reference.ends[name]:
        counted.add(verdict.WRONG)
    same = how == "ended" and verdict.WRONG not in counted
    outcome = f"went on from step {went_on} to {'the same end' if same else 'another end'}" if how == "ended" else how
    return case.record(name, outcome, counted, second, seconds=round(after, 3), saved=saved, first=_first(first))


def _first(outcome: Outcome) -> str:
    """How the process ended after the signal."""
    if outcome.killed:
        return f"ended by signal {outcome.signal}"
    return "had ended before" if outcome.result is not None else verdict.message(outcome)


def damaged(case: Case) -> Fault:
    """A bit flipped or a file cut in a checkpoint, a cache or an adapter, which is then resumed, reused or loaded."""
    place = DAMAGED[case.number % len(DAMAGED)]
    work = harms.copied(case.reference.folder / place, case.folder / "work")
    folder = {"checkpoint": work / "run", "cache": work / "cache", "adapter": work / "adapter"}[place]
    if place == "checkpoint":
        folder = max(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    file = case.rng.choice(harms.files_of(folder))
    done = harms.damage(file, case.rng)
    progress = Progress(case.folder / "progress")
    last = yield case.job(_use(case, place, work, progress), "use")
    files = (file.name, *([folder.name] if place == "checkpoint" else []))
    how, words = verdict.ending(last, case.kind, case.side.NAME, files), verdict.said(last, case.kind, files[:1])
    counted, outcome = {how} & {verdict.CRASH}, how
    if how == "ended":
        same = last.result["end"] == case.reference.ends[place]
        outcome = ("the same end" if same else "another end") + (", and said so" if words else "")
        if not same and not words:
            counted.add(verdict.WRONG)
        if place == "checkpoint" and min(progress.read()["step"], default=HALF) < HALF:
            counted.add(verdict.LOST)  # an older one was there
    return case.record(place, outcome, counted, last, file=str(file.relative_to(folder)), **done)


def _use(case: Case, place: str, work: Path, progress: Progress) -> Callable[[], dict]:
    side, world = case.side, case.world
    if place == "checkpoint":
        return partial(side.train, world, work, progress)
    return partial(side.keep_cache if place == "cache" else side.use_adapter, world, work)


def hostile_places() -> list[tuple[str, Callable[[Path, Path], None]]]:
    return [(place, harm) for place, harmful in harms.HOSTILE.items() for harm in harmful]


def hostile(case: Case) -> Fault:
    """A pickle with code in it, or code that a folder brings: loaded as a person would load it."""
    places = hostile_places()
    place, harm = places[case.number % len(places)]
    mark, work = case.folder / "mark", case.folder / "work"
    if place == "base":
        harms.copied(case.world.base, work / "base")
    else:
        harms.copied(case.reference.folder / place, work)
    folder = work / place
    if place == "checkpoint":
        folder = max((work / "run").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    harm(folder, mark)
    do = (
        partial(case.side.use_base, case.world, work)
        if place == "base"
        else _use(case, place, work, Progress(case.folder / "progress"))
    )
    last = yield case.job(do, "use")
    how = verdict.ending(last, case.kind, case.side.NAME)
    counted = {how} & {verdict.CRASH}
    if mark.exists():
        counted.add(verdict.CODE)
    same = how == "ended" and last.result["end"] == case.reference.ends[place]
    if how == "ended" and not same and not verdict.said(last, case.kind, ()):
        counted.add(verdict.WRONG)
    outcome = ("the same end" if same else "another end") if how == "ended" else how
    return case.record(place, outcome, counted, last, harm=harm.__name__)


def not_a_number(case: Case) -> Fault:
    """NaN or infinity in one picture, with the cache and without it."""
    plain, value = case.number % 2 == 1, float("inf") if case.number >= 2 else float("nan")
    at = case.rng.randrange(len(case.world.lessons))
    work = case.folder / "work"
    samples = Poisoned(case.world, at, value)
    do = partial(case.side.train, case.world, work, Progress(case.folder / "progress"), samples=samples, plain=plain)
    work.mkdir(parents=True)
    last = yield case.job(do, "train")
    ident = samples.ids[at]
    how = verdict.ending(last, case.kind, case.side.NAME, (ident,))
    counted, outcome = {how} & {verdict.CRASH}, how
    if how == "refused":
        outcome = "refused, and named the sample" if ident in last.message else "refused"
    if how == "ended":
        words = verdict.said(last, case.kind, (ident,))
        outcome = "trained on" + (", NaN stands in its log" if words else "")
        if not words and last.result["end"] != case.reference.ends["train"]:
            counted.add(verdict.WRONG)
    place = "step" if plain else "cache"
    return case.record(place, outcome, counted, last, sample=ident, value=str(value))


def no_memory(case: Case) -> Fault:
    """The allocator refuses what more than `rows` samples at a time would take."""
    rows, plain = (2, 1, 0, 2)[case.number % 4], case.number % 4 == 3
    work = case.folder / "work"
    work.mkdir(parents=True)
    progress = Progress(case.folder / "progress")
    do = partial(case.side.train, case.world, work, progress, dropout=0.0, rows=rows, plain=plain)
    last = yield case.job(do, "train")
    how, words = verdict.ending(last, case.kind, case.side.NAME), verdict.said(last, case.kind, ())
    counted, outcome = {how} & {verdict.CRASH}, how
    if how == "ended":
        gap = difference(work / "adapter", case.reference.folder / "plain" / "adapter")
        outcome = "the same end" if gap < 1e-3 else f"another end, by {gap:.1g}"
        outcome += ", and said so" if words else ""
        if gap >= 1e-3 and not words:
            counted.add(verdict.WRONG)
    return case.record("step" if plain else "cache and step", outcome, counted, last, rows=rows)


def difference(one: Path, other: Path) -> float:
    """The largest difference between two adapters' numbers."""
    ours, theirs = load_file(one / ADAPTER), load_file(other / ADAPTER)
    return float(max(abs(ours[name] - theirs[name]).max() for name in ours))


def end_of(folder: Path) -> str | None:
    """The hash of the adapter in the folder; None where none can be read."""
    try:
        return end(folder)
    except Exception:  # whatever is wrong with it, it cannot be read
        return None
