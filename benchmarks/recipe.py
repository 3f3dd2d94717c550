"""One row of docs/recipe.md: train with one recipe for a fixed time, score, write results/recipe/NAME.json.

    python benchmarks/recipe.py shipped
    python benchmarks/recipe.py rank-64 --rank 64
    python benchmarks/recipe.py answer-only --format answer --method likelihood
    python benchmarks/recipe.py batch/4-0 --model smolbridge --train-minutes 3 --batch-size 4

Every row has the same problems of the validation split and, unless an option says otherwise, the same seed, the same minutes of
training, and the connector that the recorded hour aligned, so that none pays for it (`smolbridge` keeps its own); what a recipe needs besides (its cache, its scoring) is recorded next to its
accuracy. NAME.jsonl says which problems were solved, so that rows are compared problem by problem. Run them one at a time: two at once
measure each other.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mmlora.cli import with_settings
from mmlora.evaluation.scores import Prediction, save_predictions
from mmlora.experiment import Experiment
from mmlora.models.connector import FILE
from mmlora.paths import RESULTS
from mmlora.reporting.record import Metrics
from mmlora.settings import Settings

#: Enough to rank recipes ten points apart, few enough to try many; ten minutes' worth of controls.
SAME = {"train_problems": 2000, "test_problems": 600, "split": "validation", "probe_problems": 0, "minutes": 10}
MINUTES = 5.0  # of training, unless --train-minutes or --steps says otherwise
ALIGNED = RESULTS / "one_hour_smolbridge" / "adapter" / FILE


def keep(metrics: Metrics, run: Experiment, target: Path) -> None:
    """Write the record, and beside it which problems were solved."""
    target.parent.mkdir(exist_ok=True)
    metrics.save(target)
    keep_solved(run.predictions, target)


def keep_solved(said: Sequence[Prediction], target: Path) -> None:
    """Write which problems were solved into a .jsonl beside the record; the words that were said are left out."""
    save_predictions([replace(answer, text="") for answer in said], target.with_suffix(".jsonl"))


@with_settings
def main(settings: Settings, name: Annotated[str, typer.Argument(help="of the row")]):
    """Measure one recipe and write results/recipe/NAME.json and NAME.jsonl."""
    settings = replace(settings, **SAME)
    if settings.steps is None and settings.train_minutes is None:
        settings = replace(settings, train_minutes=MINUTES)
    target = RESULTS / "recipe" / f"{name}.json"
    with tempfile.TemporaryDirectory(prefix="recipe-") as folder:
        shutil.copy(ALIGNED, folder)
        run = Experiment(settings, Path(folder))
        keep(run.run(), run, target)
    print(f"{name}: {run.scores.accuracy} {run.scores.ci95}, IMG {run.scores.columns['IMG'].accuracy} -> {target}")
    for skill, share in sorted(run.scores.by_skill.items(), key=lambda item: item[1].correct / item[1].n):
        print(f"  {share.correct:3d}/{share.n:3d}  {skill}")


if __name__ == "__main__":
    typer.run(main)
