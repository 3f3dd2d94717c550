"""What a run leaves in its folder when it has been scored: metrics, predictions, examples and the adapter."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from mmlora.adapters.files import save_adapter
from mmlora.adapters.towers import towers
from mmlora.evaluation.scores import Method, save_predictions
from mmlora.problems.load import licence
from mmlora.reporting.examples import keep_examples
from mmlora.reporting.record import Metrics

if TYPE_CHECKING:
    from mmlora.experiment import Experiment
    from mmlora.training.log import TrainLog

#: An untrained model rarely names a choice in words, so the base is scored by log-likelihood.
BASE_METHOD: Method = "likelihood"


def metrics(run: Experiment, log: TrainLog) -> Metrics:
    """The run's `metrics.json`."""
    method = run.settings.method
    return Metrics(
        **run.examination.figures(run.train),
        base=run.base.to_dict(),
        scored_by={"accuracy": method, "base": BASE_METHOD, "majority": "fixed guess", "blank_image": method},
        n_test=len(run.test),
        minutes=run.budget.to_dict(),
        samples_per_second=round(log.samples_per_second, 2),
        samples_seen=log.samples_seen,
        trainable_parameters=towers(run.model).trainable,
        model=run.vlm.name,
        base_model=asdict(run.vlm.base),
        data=f"{run.settings.data} {len(run.train)}/{len(run.test)}",
        seed=run.settings.seed,
        settings=run.settings.to_dict(),
        git=run.git,
    )


def keep(run: Experiment, found: Metrics) -> None:
    """Write it all, what took longest to make first."""
    facts = {
        "task": f"ScienceQA-style multiple choice ({run.settings.data})",
        "accuracy": f"{run.scores.accuracy} %, 95 % interval {run.scores.ci95}, of {run.scores.n} problems",
        "base model's accuracy": f"{run.base.accuracy} %, by {BASE_METHOD}",
        "samples seen": found.samples_seen,
    }
    save_adapter(
        run.model, run.folder / "adapter", facts, processor=run.vlm.processor,
        data_licence=licence(run.settings.data, run.train),
    )  # fmt: skip
    found.save(run.folder / "metrics.json")
    run.examination.save(run.folder)
    save_predictions(run.base_predictions, run.folder / "base_predictions.jsonl")
    keep_examples(run.folder, run.test, run.predictions)
