"""Our side: what mmlora's user calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from faulty.world import BATCH, RANK, RATE, STEPS, Progress, World, digest, end
from mmlora import experiment
from mmlora.adapters.files import load_vlm, save_adapter
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.sample import collate, encode
from mmlora.encoding.samples import Samples
from mmlora.experiment import Experiment
from mmlora.models import processes
from mmlora.models.vlm import load_base
from mmlora.reporting.examples import keep_examples, load_examples
from mmlora.reporting.page import html_report
from mmlora.reporting.record import Metrics
from mmlora.settings import Settings
from mmlora.training.fit import fit
from mmlora.training.settings import TrainSettings

NAME = "mmlora"
REPORT = ("metrics.json", "examples.jsonl", "report.html")  # what `report` writes
SETTINGS = TrainSettings(steps=STEPS, batch_size=BATCH, learning_rate=RATE, checkpoint_minutes=0)  # saves at every step


class Stopped(Exception):
    """Ends a training at a chosen step."""


def train(
    world: World,
    folder: Path,
    progress: Progress,
    *,
    cache: Path | None = None,
    stop: int | None = None,
    samples: Samples | None = None,
    plain: bool = False,
    dropout: float = 0.1,
    rows: int | None = None,
) -> dict:
    """Cache, training (resumed if there is a checkpoint), adapter. `plain` uses no cache; only `rows` samples fit in memory."""
    model = world.adapted(dropout, rows=rows)
    data = samples or world.samples()
    known = data if plain else PrefixCache.build(model, data, cache or folder / "cache")

    def on_step(record: dict):
        told(progress, folder / "run", record["step"])
        if record["step"] == stop:
            raise Stopped

    fit(model, known, SETTINGS, folder / "run", resume=True, on_step=on_step)
    if not processes.first():
        return {}
    save_adapter(model, folder / "adapter", {"task": "colours"}, processor=world.vlm.processor)
    return {"end": end(folder / "adapter")}


def told(progress: Progress, run: Path, step: int) -> None:
    """Record that a step was taken and, if its checkpoint is there, that this was saved."""
    progress.began_step(step)
    if (run / f"checkpoint-{step:08d}").is_dir():
        progress.saved(step)


def experiment_run(world: World, folder: Path, progress: Progress) -> dict:
    """A whole run as notebook 04 makes it: baselines, cache, training, scores, adapter, occlusion."""
    settings = Settings(
        model=str(world.base), data=str(world.data), steps=STEPS, batch_size=BATCH, rank=RANK, method="likelihood",
        align_minutes=0, probe_problems=0,
    )  # fmt: skip
    original = experiment.fit

    def watched(*given, **named):
        return original(*given, **named, on_step=lambda record: told(progress, folder / "run", record["step"]))

    experiment.fit = watched
    training = Settings.training
    Settings.training = lambda self, minutes: replace(
        training(self, minutes), checkpoint_minutes=0
    )  # at every step, as above
    Experiment(settings, folder / "run", resume=(folder / "run" / "minutes.json").is_file()).run()
    html_report(folder / "run")
    return {"end": end(folder / "run" / "adapter")}


def keep_cache(world: World, folder: Path) -> dict:
    """Build the cache or reuse the one that is there, without training; the result is the losses of all samples."""
    model = world.learned(1)
    kept = PrefixCache.build(model, world.samples(), folder / "cache")
    with torch.no_grad():
        losses = [kept.loss(model, [i])[0] for i in range(len(kept))]
    return {"end": digest(losses)}


def save(world: World, folder: Path, seed: int) -> dict:
    save_adapter(world.learned(seed), folder / "adapter", {"task": "colours"}, processor=world.vlm.processor)
    return {"end": end(folder / "adapter")}


def use_adapter(world: World, folder: Path) -> dict:
    """The logits of the adapter in the folder, with the processor saved there."""
    vlm = load_vlm(folder / "adapter")
    return {"end": said(vlm.model, vlm.processor, world)}


def use_base(world: World, folder: Path) -> dict:
    vlm = load_base(folder / "base")
    return {"end": said(vlm.model, vlm.processor, world)}


@torch.inference_mode()
def said(model: torch.nn.Module, processor, world: World) -> str:
    """The hash of the logits of a few samples."""
    batches = [collate([encode(processor, lesson)]) for lesson in world.lessons[:3]]
    for batch in batches:
        batch.pop("labels")
    return digest([model(**batch).logits for batch in batches])


def report(world: World, folder: Path, source: Path) -> dict:
    """Figures, kept examples and the page, of the finished run in `source`, into the run that lies in `folder`."""
    run, kept = folder / "run", load_examples(source)
    Metrics.load(source / "metrics.json").save(run / "metrics.json")
    maps = {each.problem.id: each.occlusion for each in kept if each.occlusion is not None}
    keep_examples(run, [each.problem for each in kept], [each.prediction for each in kept], maps)
    html_report(run)
    return {"end": " ".join(f"{name} {len((run / name).read_text().splitlines())}" for name in REPORT)}
