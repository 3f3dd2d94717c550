"""What a run is worth where nobody wrote captions: fifteen minutes each, everything inside, on validation problems.

    python benchmarks/without_captions.py captions    # the connector reads the captions first, for comparison
    python benchmarks/without_captions.py solutions   # it reads the first sentence of each solution instead
    python benchmarks/without_captions.py together    # it learns with the adapter, from the answers alone
    python benchmarks/without_captions.py neither     # it stays as the base has it

MiniSQA's problems as if they lay in somebody's own folder: no picture is drawn beside those of the training problems. Each writes
results/without_captions/NAME.json, and NAME.jsonl, which says which problems were solved. Run them one at a time.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from recipe import keep

from mmlora.experiment import Experiment
from mmlora.paths import RESULTS
from mmlora.settings import Settings

Way = Literal["captions", "solutions", "together", "neither"]
SAME = Settings(minutes=15, test_problems=600, split="validation")
WAYS: dict[Way, dict] = {
    "captions": {},
    "solutions": {},
    "together": {"align_minutes": 0, "train_connector": True},
    "neither": {"align_minutes": 0},
}


class OwnFolder(Experiment):
    """A run of MiniSQA's problems and of no further pictures, with or without what a caption says of them."""

    def __init__(self, way: Way, folder: Path):
        super().__init__(replace(SAME, **WAYS[way]), folder)
        self.way = way

    def load_problems(self) -> None:
        super().load_problems()
        self.settings = replace(self.settings, data="minisqa as an own folder")  # whose further pictures nobody draws
        if self.way != "captions":
            self.train = [replace(problem, caption="") for problem in self.train]


def main(way: Annotated[Way, typer.Argument(help="what the connector learns from")]):
    """Measure one way and write its record."""
    target = RESULTS / "without_captions" / f"{way}.json"
    with tempfile.TemporaryDirectory(prefix="captions-") as folder:
        run = OwnFolder(way, Path(folder))
        keep(run.run(), run, target)
    print(f"{way}: {run.scores.accuracy} {run.scores.ci95}, IMG {run.scores.columns['IMG'].accuracy} -> {target}")


if __name__ == "__main__":
    typer.run(main)
