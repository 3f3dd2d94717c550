"""One row of docs/recipe.md: train with one recipe for a fixed time, score, write results/recipe/NAME.json.

    python benchmarks/recipe.py shipped
    python benchmarks/recipe.py rank-4 --rank 4
    python benchmarks/recipe.py answer-only --format answer --method likelihood

Every row has the same problems, the same seed and the same minutes of training; what a recipe needs besides (its cache,
its scoring) is recorded next to its accuracy. Rows are compared on the validation split. Run them one at a time: two at
once measure each other.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from safetensors.torch import load_file, save_file

from mmlora.cli import with_settings
from mmlora.experiment import Experiment
from mmlora.paths import RESULTS
from mmlora.settings import Settings
from mmlora.smolbridge.assemble import CONNECTOR, assembled

#: Large enough to rank recipes ten points apart, small enough to try many; MiniSQA's validation split has 500.
SIZES = {"train_problems": 1500, "test_problems": 500, "split": "validation"}
MINUTES = 3.0  # of training, unless --train-minutes or --steps says otherwise


def fewer_tokens(connector: Path, tokens: int, folder: Path) -> Path:
    """A connector that says only its first `tokens` words; they come in reading order."""
    tensors = load_file(connector)
    keep = tokens * len(tensors["connector.word_ids"])
    for name in ("connector.write.weight", "connector.write.bias"):
        tensors[name] = tensors[name][:keep].contiguous()
    save_file(tensors, folder / "connector.safetensors")
    return folder / "connector.safetensors"


@with_settings
def main(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="of the row")],
    tokens: Annotated[int, typer.Option(help="visual tokens, of the connector's 24")] = 24,
):
    """Measure one recipe and write results/recipe/NAME.json."""
    settings = replace(settings, **SIZES)
    if settings.steps is None and settings.train_minutes is None:
        settings = replace(settings, train_minutes=MINUTES)
    with tempfile.TemporaryDirectory(prefix="recipe-") as work:
        if tokens < 24:
            settings = replace(settings, model=str(assembled(fewer_tokens(CONNECTOR, tokens, Path(work)))))
        run = Experiment(settings, Path(work) / "run")
        metrics = run.run()
    target = RESULTS / "recipe" / f"{name}.json"
    metrics.save(target)
    print(f"{name}: {run.scores.accuracy} {run.scores.ci95}, IMG {run.scores.columns['IMG'].accuracy} -> {target}")
    for skill, share in sorted(run.scores.by_skill.items(), key=lambda item: item[1].correct / item[1].n):
        print(f"  {share.correct:3d}/{share.n:3d}  {skill}")


if __name__ == "__main__":
    typer.run(main)
