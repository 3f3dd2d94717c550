"""Is the recorded hour its seed's luck? The same hour again with another seed, and once on problems drawn anew.

    python benchmarks/seeds.py 1                  # an hour; writes results/seeds/one_hour_smolbridge-1.json
    python benchmarks/seeds.py 2 --data-seed 1    # all splits of MiniSQA are drawn with that seed, before the hour begins; …-2-data-1.json

The run's seed decides the order of the samples, the adapter's start and what the connector reads first; the data's seed all problems
and pictures. Beside the record, NAME.jsonl says which problems were solved, so that hours on the same problems are compared one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from recipe import keep

from mmlora.experiment import Experiment
from mmlora.minisqa.dataset import build
from mmlora.paths import RESULTS
from mmlora.reporting.record import Metrics
from mmlora.settings import Settings
from mmlora.training.probe import Probe

NAME = "one_hour_smolbridge"


class DrawnAnew(Experiment):
    """A run of MiniSQA whose problems lie in another folder; what it says of its data is MiniSQA's still."""

    def __init__(self, settings: Settings, folder: Path, problems: str):
        super().__init__(settings, folder)
        self.problems = problems

    def load_problems(self) -> None:
        with self.drawn():
            super().load_problems()

    def _probe(self, goes_on: bool) -> Probe | None:
        with self.drawn():
            return super()._probe(goes_on)

    @contextmanager
    def drawn(self) -> Iterator[None]:
        settings = self.settings
        self.settings = replace(settings, data=self.problems)
        yield
        self.settings = settings


def main(
    seed: Annotated[int, typer.Argument(help="of the run; the recorded hour has 0")],
    data_seed: Annotated[int, typer.Option(help="of MiniSQA; 0 is the one that is recorded everywhere")] = 0,
):
    """Run the recorded hour's settings with other seeds and write the record."""
    settings = replace(Settings.of(Metrics.load(RESULTS / f"{NAME}.json").settings), seed=seed)
    target = RESULTS / "seeds" / f"{NAME}-{seed}{f'-data-{data_seed}' if data_seed else ''}.json"
    with TemporaryDirectory(prefix="seeds-") as folder:
        problems = str(build(Path(folder) / "minisqa", seed=data_seed)) if data_seed else settings.data
        run = DrawnAnew(settings, Path(folder) / "run", problems)
        metrics = run.run()
        drawn = f"minisqa of seed {data_seed} {len(run.train)}/{len(run.test)}" if data_seed else metrics.data
        keep(replace(metrics, data=drawn), run, target)
    print(f"seed {seed}, data {data_seed}: {run.scores.accuracy} {run.scores.ci95} -> {target}")


if __name__ == "__main__":
    typer.run(main)
