"""Is a run's accuracy that of its test split alone? The same adapter on one that is drawn with another seed.

    python benchmarks/drawn_anew.py one_hour_smolbridge      # minutes; writes results/drawn_anew/one_hour_smolbridge.json and .jsonl

MiniSQA was mended where an earlier hour's answers to its test split showed weak skills, so that split is no longer unseen by
those who made it. These are other problems (a few short texts come again); no text of theirs and no picture is in a training split.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from recipe import keep_solved

from mmlora.adapters.files import load_vlm
from mmlora.evaluation.answering import evaluate
from mmlora.evaluation.controls import Answered
from mmlora.evaluation.examination import worded
from mmlora.evaluation.scores import score
from mmlora.minisqa import generate
from mmlora.paths import RESULTS
from mmlora.reporting import machine
from mmlora.reporting.record import Metrics

SEED = 1  # of the problems; 0 is the test split itself


def main(
    name: Annotated[str, typer.Argument(help="a folder of results/ that holds an adapter")],
):
    """Answer as many problems as the run did, and write the record."""
    state, run = machine.git_state(), Metrics.load(RESULTS / name / "metrics.json")
    problems = list(generate("test", run.n_test, seed=SEED))
    said = evaluate(load_vlm(RESULTS / name / "adapter"), problems, run.settings["method"])
    whole = Answered(problems, said)
    parts = {"accuracy": whole, "seen_wording": worded(whole, "seen"), "unseen_wording": worded(whole, "unseen")}
    found = {part: score(*answered).to_dict() for part, answered in parts.items()}
    record = {"run": name, "seed": SEED, **found, "of_the_run": run.accuracy, **machine.circumstances(state)}
    target = RESULTS / "drawn_anew" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")
    keep_solved(said, target)
    print(f"{found['accuracy']['avg']} % of {len(problems)}, the run's own {run.accuracy['avg']} % -> {target}")


if __name__ == "__main__":
    typer.run(main)
