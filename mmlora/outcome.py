"""What a run leaves in its folder when it has been scored: metrics, predictions, examples and the adapter."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmlora.adapters.files import save_adapter
from mmlora.adapters.towers import towers
from mmlora.evaluation.occlusion import occlusion
from mmlora.evaluation.scores import Method, Prediction, save_predictions
from mmlora.files import ROOM, FileError, refusals, whole_folder, write_whole
from mmlora.models import processes
from mmlora.problems.load import licence
from mmlora.problems.record import Problem
from mmlora.reporting.examples import keep_examples
from mmlora.reporting.record import Metrics

if TYPE_CHECKING:
    from mmlora.experiment import Experiment
    from mmlora.training.log import TrainLog

#: An untrained model rarely names a choice in words, so the base is scored by log-likelihood.
BASE_METHOD: Method = "likelihood"


def metrics(run: Experiment, log: TrainLog, best_probe: dict | None) -> Metrics:
    """The figures for the run's `metrics.json`."""
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
        best_probe=best_probe,
    )


def keep(run: Experiment, found: Metrics) -> None:
    """Write everything, first what took longest to make; if one file cannot be written, the others still are.

    Raises `FileError` that names what is missing. If the disk is full, the prefix cache is removed first.
    """
    parts: dict[str, Callable[[], object]] = {
        "the adapter": lambda: _keep_adapter(run, found),
        "metrics.json": lambda: found.save(run.folder / "metrics.json"),
        "the predictions": lambda: run.examination.save(run.folder),
        "the base's predictions": lambda: save_predictions(run.base_predictions, run.folder / "base_predictions.jsonl"),
        "the examples": lambda: keep_examples(run.folder, run.test, run.predictions),
    }
    refused = {name: error for name, write in parts.items() if (error := _refusal(run.folder, write))}
    if refused:
        raise FileError(
            f"{' and '.join(refused)} could not be written: {next(iter(refused.values()))}. What was learned is in the newest "
            f"checkpoint in {run.folder}: go on with the run there (--resume, or RESUME in notebook 04), or call score() again"
        )


def _refusal(folder: Path, write: Callable[[], object]) -> FileError | None:
    """Call `write`; return the error if it cannot write, else None."""
    cache = folder / "cache"
    for last in (not cache.exists(), True):
        try:
            with refusals(folder):
                write()
            return None
        except FileError as error:
            if last or ROOM not in str(error):
                return error
            print(f"{error}; the prefix cache is removed to make room, and cache() makes it anew")
            shutil.rmtree(cache, ignore_errors=True)
    return None


def _keep_adapter(run: Experiment, found: Metrics) -> None:
    facts = {
        "accuracy": f"{run.scores.accuracy} %, 95 % interval {run.scores.ci95}, of {run.scores.n} problems",
        "base model's accuracy": f"{run.base.accuracy} %, by {BASE_METHOD}",
        "samples seen": found.samples_seen,
    }
    write_adapter(run, "adapter", facts)


def write_adapter(
    run: Experiment, name: str, facts: Mapping[str, object], beside: Mapping[str, str] | None = None
) -> None:
    """The run's adapter as it is now, as a whole folder of this name in the run's, with texts `beside` it by their file names.

    `facts` stand in its card. Raises `OSError` as the disk does.
    """
    task = f"ScienceQA-style multiple choice ({run.settings.data})"
    data_licence = licence(run.settings.data, run.train)
    with whole_folder(run.folder / name) as folder:
        save_adapter(run.model, folder, {"task": task, **facts}, processor=run.vlm.processor, data_licence=data_licence)
        for file, text in (beside or {}).items():
            write_whole(folder / file, text)


def explain(run: Experiment, count: int) -> tuple[list[tuple[Problem, Prediction]], dict[str, Any]]:
    """Occlusion maps of so many answered problems with a picture, by id, kept beside the run's examples."""
    seen = [(p, q) for p, q in zip(run.test, run.predictions) if p.image is not None]
    chosen = seen[:: max(1, len(seen) // (count + 1))][:count]
    maps = {problem.id: occlusion(run.learner, problem, said) for problem, said in chosen}
    if processes.first():
        keep_examples(run.folder, run.test, run.predictions, maps)
    return chosen, maps
