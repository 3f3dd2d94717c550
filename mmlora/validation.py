"""Validation problems answered while a run trains: how many are right, and the adapter of the best such probe, in `best/`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from tqdm import tqdm

from mmlora.errors import MMLoraError
from mmlora.evaluation.scores import Prediction, wilson
from mmlora.files import refusals
from mmlora.models import processes
from mmlora.outcome import write_adapter
from mmlora.problems.load import load_problems
from mmlora.problems.record import Problem
from mmlora.problems.rows import DataError
from mmlora.training.probe import Probe
from mmlora.training.resume import BEST

if TYPE_CHECKING:
    from mmlora.experiment import Experiment

FILE = "probe.json"  # in `best/`: the probe that its adapter is of
KEPT = ("step", "seconds", "samples")  # what of the step's record stands there, beside `correct` and `n`


def validation_problems(run: Experiment) -> list[Problem]:
    """As many as the settings ask for or the minutes allow; none, with a line that says why, where the data has no such split."""
    chosen = run.settings
    wanted = run.budget.probe_problems if chosen.probe_problems is None else chosen.probe_problems
    if not wanted:
        return []
    problems: list[Problem] = []
    with processes.one_first():  # and no error out of it: the others would wait
        try:
            problems = load_problems(chosen.data, "validation", wanted, missing_images=chosen.missing_images)
        except DataError as error:
            print(f"no accuracy on the way: {error}")
    return problems if all(processes.gathered(bool(problems))) else []


class Validation:
    """`probe` for `fit`: it counts right answers to `problems`, and keeps the adapter whenever there are more than ever before.

    `answer` is how they are found. With `goes_on`, what is kept in the run's folder already counts as before: it may come from
    steps that an interrupted training takes again, and was measured all the same.
    """

    def __init__(
        self,
        run: Experiment,
        problems: list[Problem],
        answer: Callable[..., Sequence[Prediction]],
        goes_on: bool,
    ):
        self.run, self.problems, self.answer = run, problems, answer
        self.best = kept(run.folder) if goes_on else None

    @property
    def probe(self) -> Probe:
        return Probe(self.measure, keep=self.keep)

    def measure(self) -> dict:
        """How many answers of the model as it is are right."""
        began = perf_counter()
        answers = self.answer(self.problems, progress=False)
        self.run.timing.probed(perf_counter() - began, len(answers))
        return {"correct": sum(answer.correct for answer in answers), "n": len(answers)}

    def keep(self, record: dict) -> None:
        """Write the adapter into `best/` where this step's probe is better than all before; a disk that refuses ends nothing."""
        now = {name: record[name] for name in KEPT} | record["validation"]
        if not processes.first() or (
            self.best and self.best["n"] == now["n"] and self.best["correct"] >= now["correct"]
        ):
            return
        facts = {
            "probe": f"{now['correct']} of {now['n']} validation problems right after {now['step']} steps",
            "samples seen": now["samples"],
        }
        try:
            with refusals(self.run.folder):
                write_adapter(self.run, BEST, facts, {FILE: json.dumps(now, indent=1) + "\n"})
        except MMLoraError as error:
            tqdm.write(f"the adapter of the best probe so far cannot be kept: {error}; training goes on")
            return
        self.best = now


def kept(folder: Path) -> dict | None:
    """The probe whose adapter is in the run's `best/`: `step`, `seconds`, `samples`, `correct`, `n`. None where there is none."""
    try:
        return json.loads((folder / BEST / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def best_probe(folder: Path, records: Sequence[dict]) -> dict | None:
    """What metrics.json says of it: `kept`, the folder, and as `last` the step and counts of the last probe in `records`."""
    best = kept(folder)
    probes = [{"step": record["step"], **record["validation"]} for record in records if "validation" in record]
    return {**best, "folder": BEST, "last": probes[-1]} if best and probes else None


def said_of_best(folder: Path, records: Sequence[dict]) -> str | None:
    """A line where the last probe is worse than the best one, with what luck alone may do; None where it is not."""
    best = best_probe(folder, records)
    if best is None or best["last"]["n"] != best["n"] or best["last"]["correct"] >= best["correct"]:
        return None
    last, n = best["last"], best["n"]
    low, high = wilson(best["correct"], n)
    inside = last["correct"] >= low * n
    luck = "inside it, so the difference may be luck" if inside else "below it, so the difference is hardly luck"
    return (
        f"the last probe (step {last['step']}) has {last['correct']} of {n} validation problems right, the best one (step "
        f"{best['step']}) had {best['correct']}. The best one's 95 % interval is {100 * low:.1f} to {100 * high:.1f} %, and the last "
        f"one lies {luck}. The last state is what is scored; the best one's adapter is kept in {folder / BEST}"
    )
