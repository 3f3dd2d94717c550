"""What do five minutes give? A run of five, and what it learned asked of thrice the problems that its minutes have room for.

    python benchmarks/five_minutes.py bfloat16     # or float32; eight minutes; writes results/speed/five_minutes-bfloat16.json

The run is that of `mmlora run --minutes 5`: its 150 test problems and its controls are scored within its minutes, `run`.
Then adapter, base and controls answer 450, those 150 among them; these minutes do not count.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from mmlora.evaluation.answering import evaluate
from mmlora.evaluation.controls import best_guess, swapped
from mmlora.evaluation.scores import compare, score
from mmlora.experiment import BASE_METHOD, Experiment
from mmlora.models.vlm import load_base
from mmlora.paths import RESULTS
from mmlora.problems.load import load_problems
from mmlora.settings import Settings

COUNT = 450  # problems: a little more than half of the interval that 150 give


def main(numbers: Annotated[Literal["bfloat16", "float32"], typer.Argument(help="what is multiplied")]):
    """Run five minutes, ask, and write the record."""
    with tempfile.TemporaryDirectory(prefix="five-") as folder:
        run = Experiment(Settings(minutes=5, precision=numbers), Path(folder))
        metrics = asdict(run.run())
    problems = load_problems(run.settings.data, "test", COUNT)
    others = swapped(problems)
    said = {
        "trained": evaluate(run.learner, problems, run.settings.method),
        "base": evaluate(load_base(run.settings.model), problems, BASE_METHOD),
        "best_guess": best_guess(problems, run.train),
    }
    found = {name: score(problems, answers).to_dict() for name, answers in said.items()}
    found["swapped"] = score(others, evaluate(run.learner, others, run.settings.method)).to_dict()
    record = {
        **{name: metrics[name] for name in ("model", "seed", "settings", "versions", "machine", "git", "date")},
        "n_test": COUNT,
        **found,
        "trained_to_base": asdict(compare(said["trained"], said["base"])),
        "run": {name: metrics[name] for name in ("accuracy", "base", "n_test", "minutes", "samples_seen")},
    }
    target = RESULTS / "speed" / f"five_minutes-{numbers}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print({name: (found[name]["avg"], found[name]["ci95"]) for name in found}, record["run"]["minutes"], "->", target)


if __name__ == "__main__":
    typer.run(main)
