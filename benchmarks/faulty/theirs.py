"""The other side: transformers' Trainer with peft, set up as its documentation advises.

A checkpoint at every step and two of them kept, `resume_from_checkpoint` with what `get_last_checkpoint` finds, safetensors.
The nearest thing to the prefix cache is a data set that was encoded once and kept with `datasets`' `save_to_disk`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars, load_from_disk
from peft import PeftConfig, PeftModel
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from faulty.ours import said
from faulty.world import BATCH, RATE, STEPS, Progress, World, digest, end
from mmlora.encoding.sample import Sample, collate
from mmlora.encoding.samples import Samples

NAME = "Trainer"
REPORT = ("all_results.json", "trainer_state.json")
disable_progress_bars()


class Watch(TrainerCallback):
    """Records how far the training came, and ends it after step `stop`."""

    def __init__(self, progress: Progress, stop: int | None = None):
        self.progress, self.stop = progress, stop

    def on_step_end(self, args, state, control, **_):
        self.progress.began_step(state.global_step)

    def on_save(self, args, state, control, **_):
        self.progress.saved(state.global_step)
        control.should_training_stop = control.should_training_stop or state.global_step == self.stop


def trainer(
    world: World, folder: Path, model: torch.nn.Module, samples: Samples | None = None, find: bool = False,
    watch: Watch | None = None,
) -> Trainer:  # fmt: skip
    """`find` lets it look for a batch size that fits in memory."""
    told = TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        logging_steps=1,
        seed=0,
        use_cpu=True,
        remove_unused_columns=False,
        auto_find_batch_size=find,
        report_to="none",
        disable_tqdm=True,
    )
    return Trainer(
        model, told, train_dataset=samples or world.samples(), data_collator=collate, processing_class=world.vlm.processor,
        callbacks=[watch] if watch else None,
    )  # fmt: skip


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
    """Training (resumed if there is a checkpoint) and adapter; `cache` and `plain` matter on the other side only."""
    model = world.adapted(dropout, rows=rows)
    work = trainer(world, folder, model, samples, rows is not None, Watch(progress, stop))
    run = folder / "run"
    work.train(resume_from_checkpoint=get_last_checkpoint(str(run)) if run.is_dir() else None)
    work.save_model(str(folder / "adapter"))
    if not work.is_world_process_zero():
        return {}
    world.vlm.processor.save_pretrained(folder / "adapter")
    return {"end": end(folder / "adapter")}


experiment_run = train


def keep_cache(world: World, folder: Path) -> dict:
    """Encode the samples and save them, or reuse the saved ones; the result is the losses of all samples."""
    model, kept = world.learned(1), folder / "cache"
    if not kept.is_dir():
        samples = world.samples()
        rows = [_row(samples[i]) for i in range(len(samples))]
        Dataset.from_list(rows).save_to_disk(kept)
    rows = load_from_disk(str(kept)).with_format("torch")
    with torch.no_grad():
        losses = [model(**collate([_sample(row)])).loss for row in rows]
    return {"end": digest(losses)}


def _row(sample: Sample) -> dict:
    pictures = {name: tensor.numpy() for name, tensor in sample.pictures.items()}
    return {"input_ids": sample.input_ids.numpy(), "labels": sample.labels.numpy(), **pictures}


def _sample(row: dict) -> Sample:
    seen = {name: tensor for name, tensor in row.items() if name not in ("input_ids", "labels")}
    return Sample("", {"input_ids": row["input_ids"]}, row["labels"], seen)


def save(world: World, folder: Path, seed: int) -> dict:
    world.learned(seed).save_pretrained(folder / "adapter")
    world.vlm.processor.save_pretrained(folder / "adapter")
    return {"end": end(folder / "adapter")}


def use_adapter(world: World, folder: Path) -> dict:
    named = PeftConfig.from_pretrained(str(folder / "adapter")).base_model_name_or_path
    base = AutoModelForImageTextToText.from_pretrained(named, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    return {"end": said(model, AutoProcessor.from_pretrained(folder / "adapter"), world)}


def use_base(world: World, folder: Path) -> dict:
    model = AutoModelForImageTextToText.from_pretrained(folder / "base", dtype=torch.float32).eval()
    return {"end": said(model, AutoProcessor.from_pretrained(folder / "base"), world)}


def report(world: World, folder: Path, source: Path) -> dict:
    """What the Trainer writes about a run: metrics and state; `source` matters on the other side only."""
    work = trainer(world, folder, world.adapted())
    metrics = {f"figure_{i}": i / 7 for i in range(400)}  # as large as a report's figures
    work.save_metrics("all", metrics)
    work.save_state()
    return {"end": " ".join(f"{name} {len((folder / 'run' / name).read_text().splitlines())}" for name in REPORT)}
