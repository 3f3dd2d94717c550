"""How fast is a training step, beside what a user would pick? One process after another, in turns, on the same batches.

    pip install "mmlora[speed]"
    python benchmarks/speed.py                       # SmolBridge, five turns in bfloat16 and in float32
    python benchmarks/speed.py --model smolvlm-256m  # that architecture with random weights

(a) transformers' Trainer with peft, all decoder layers; (b) TRL's SFTTrainer as it comes for a picture model, the loss on the
completion only, and without its recomputation of activations, which is on by default and slower; both with the C library's heap as it comes; (a_held) and (b_held) the same
with frozen weights held in bfloat16, where that is multiplied, so that no step converts them; (c) ours, nothing cached, all layers; (d) ours, pictures cached, all layers; (e) ours, upper half, cached up
to there; (before) the same as e through the plain layers of transformers and peft. Every contender sees the same problems in the
same batches, the same rank, seed and optimizer, and its whole loop is timed, data included. Writes results/speed/MODEL.json, on a card MODEL-CARD.json; what it
holds of other numbers stays, each with its own machine, versions and date.
"""

from __future__ import annotations

import mmlora  # noqa: F401 - before torch, so that its threads share the cores

# isort: split
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from gpu import random_model
from torch.nn.functional import linear
from transformers import Trainer, TrainerCallback, TrainingArguments

from mmlora import minisqa
from mmlora.adapters.files import load_vlm
from mmlora.adapters.lora import attach
from mmlora.encoding.conversation import Conversation
from mmlora.encoding.loss import IGNORED
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.prompts import taught
from mmlora.encoding.sample import Sample, collate
from mmlora.encoding.samples import Samples, without_pixels
from mmlora.models import vlm as loading
from mmlora.models.precision import DTYPES, device, precision
from mmlora.models.vlm import VLM, decoder_layers
from mmlora.paths import RESULTS
from mmlora.reporting import machine as metrics
from mmlora.training.fit import fit
from mmlora.training.order import batches
from mmlora.training.settings import TrainSettings


@dataclass(frozen=True)
class Sizes:
    problems: int = 1000 if torch.cuda.is_available() else 160  # with a picture, each seen once; a card is soon done
    batch: int = 8
    warm: int = 2  # steps before the clock: the first ones prepare kernels
    epochs: int = 3  # that a cache is paid over
    whole: int = 1000  # problems of such an epoch


class Stamps(TrainerCallback):
    """When each step of a Trainer ended, and its loss."""

    def __init__(self):
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(perf_counter())

    def on_log(self, *_: Any, logs: dict, **__: Any) -> None:
        self.losses += [float(logs["loss"])] if "loss" in logs else []


@dataclass(frozen=True)
class Timed:
    """What a contender's loop took."""

    seconds: list[float]  # at the end of each step
    losses: list[float]
    cache_seconds: float = 0.0  # of the whole training set, before the first step


@dataclass(frozen=True)
class Work:
    """What every contender is given."""

    vlm: VLM
    lessons: list[Conversation]  # in the order of the batches
    sizes: Sizes
    folder: Path

    @property
    def depth(self) -> int:
        return len(decoder_layers(self.vlm.model))

    def arguments(self) -> dict:
        """What both Trainers are told: our optimizer and batches, each batch once."""
        settings = TrainSettings(steps=1, batch_size=self.sizes.batch)
        once = {"num_train_epochs": 1, "train_sampling_strategy": "sequential", "logging_steps": 1}
        return trainer_arguments(settings, self.folder) | once


def trainer_arguments(settings: TrainSettings, folder: Path) -> dict:
    """What a Trainer is told to train as `settings` say, and to do nothing beside the loop."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "seed": settings.seed,
        "remove_unused_columns": False,
        "bf16": precision() == "bf16",
        "fp16": precision() == "fp16",
        "use_cpu": device().type == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def by_trainer(work: Work) -> Timed:
    """(a)"""
    model, stamps = attach(work.vlm.model, layers=range(work.depth)), Stamps()
    samples, settings = Samples(work.vlm, work.lessons), TrainingArguments(**work.arguments())
    Trainer(model, settings, train_dataset=samples, data_collator=collate, callbacks=[stamps]).train()
    return Timed(stamps.seconds, stamps.losses)


def by_trl(work: Work) -> Timed:
    """(b)"""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": lesson.prompt}],
                "completion": [{"role": "assistant", "content": lesson.reply}],
                "images": list(lesson.pictures),
            }
            for lesson in work.lessons
        ]
    )
    model, stamps = attach(work.vlm.model, layers=range(work.depth)), Stamps()
    settings = SFTConfig(**work.arguments(), max_length=None, completion_only_loss=True, gradient_checkpointing=False)
    SFTTrainer(model, settings, train_dataset=data, processing_class=work.vlm.processor, callbacks=[stamps]).train()
    return Timed(stamps.seconds, stamps.losses)


def held(way: Callable[[Work], Timed], work: Work) -> Timed:
    """(a_held) and (b_held): decoder layers and vocabulary; the adapter's factors stay in float32, as peft makes them."""
    for module in (*decoder_layers(work.vlm.model), work.vlm.model.get_output_embeddings()):
        module.to(DTYPES[precision()])
    return way(work)


def by_us(work: Work, upper: bool, cached: bool, fused: bool = True) -> Timed:
    """(c), (d), (e) and before."""
    model = attach(work.vlm.model, layers=range(work.depth // 2 if upper else 0, work.depth))
    samples: Any = Samples(work.vlm, work.lessons)
    began = perf_counter()
    if cached:
        samples = PrefixCache.build(model, samples, work.folder / "cache")
    cache_seconds = perf_counter() - began
    steps = len(work.lessons) // work.sizes.batch
    settings = TrainSettings(steps=steps, batch_size=work.sizes.batch, fused=fused)
    log = fit(model, samples, settings, work.folder / "run")
    return Timed([r["seconds"] for r in log.records], [r["loss"] for r in log.records], cache_seconds)


CONTENDERS: dict[str, Callable[[Work], Timed]] = {
    "a": by_trainer,
    "b": by_trl,
    "a_held": partial(held, by_trainer),
    "b_held": partial(held, by_trl),
    "c": partial(by_us, upper=False, cached=False),
    "d": partial(by_us, upper=False, cached=True),
    "e": partial(by_us, upper=True, cached=True),
    "before": partial(by_us, upper=True, cached=True, fused=False),
}
UPPER = ("e", "before")
HELD = ("a_held", "b_held")
PEERS = ("a", "b", *HELD)
OVER = (("e", "before"), ("e", "a"), ("e", "b"), ("e", "a_held"), ("e", "b_held"), ("d", "a"), ("d", "b"), ("c", "a"))


def matrix_peak() -> float:
    """Floating-point operations a second of a large product, in the numbers of the run: the best of five."""
    side, seconds = 8192 if torch.cuda.is_available() else 2048, []
    left, right = (torch.ones(side, side, dtype=DTYPES[precision()], device=device()) for _ in range(2))
    for _ in range(6):
        began = perf_counter()
        linear(left, right).sum().item()
        seconds.append(perf_counter() - began)
    return 2 * side**3 / min(seconds[1:])


def weights_of(vlm: VLM, layers: int) -> tuple[int, int]:
    """Numbers in the matrices of the uppermost `layers`, and in the head."""
    upper = list(decoder_layers(vlm.model))[-layers:]
    matrices = [m for layer in upper for m in layer.modules() if type(m) is torch.nn.Linear]
    return sum(m.weight.numel() for m in matrices), vlm.model.get_output_embeddings().weight.numel()


def operations(vlm: VLM, samples: list[Sample], layers: int) -> float:
    """What a step on the uppermost `layers` cannot do without, a sample: the frozen products forward and the gradient
    through them, and the head's."""
    weights, head = weights_of(vlm, layers)
    tokens, supervised = sum(map(len, samples)), sum(int((s.labels != IGNORED).sum()) for s in samples)
    return 4 * (weights * tokens + head * supervised) / len(samples)


def pictured(count: int) -> list[Conversation]:
    """So many problems that have a picture, with what is to be said."""
    problems = (problem for problem in minisqa.generate("train", 8 * count) if problem.image is not None)
    return [taught(problem, "explanation_answer") for problem in islice(problems, count)]


def measure(name: str, model: str, sizes: Sizes, folder: Path) -> dict:
    """One contender, in a process of its own."""
    if name in PEERS:
        loading.reuse_blocks = lambda: False  # who uses them has the C library's heap as it comes
    vlm, lessons = load_vlm(model), pictured(sizes.problems)
    samples = Samples(vlm, lessons)
    # Pictures that are kept here would count as the contender's memory
    encoded = [without_pixels(samples[i]) for i in range(len(samples))]
    order = batches([len(sample) for sample in encoded], sizes.batch, seed=0, epoch=0)
    depth = len(decoder_layers(vlm.model))
    peak, needed = matrix_peak(), operations(vlm, encoded, depth - depth // 2 if name in UPPER else depth)
    # Trainers take the batches as they come; ours makes the same ones out of any order
    ordered = [lessons[i] for batch in order for i in batch] if name in PEERS else lessons
    timed = CONTENDERS[name](Work(vlm, ordered, sizes, folder))
    seconds = timed.seconds[-1] - timed.seconds[sizes.warm - 1]
    seen = [i for batch in order[sizes.warm :] for i in batch]
    rate = len(seen) / seconds
    return {
        "samples_per_second": rate,
        "tokens_per_second": sum(len(encoded[i]) for i in seen) / seconds,
        "share_of_peak": rate * needed / peak,
        "matrix_peak_gflops": peak / 1e9,
        "peak_memory_gb": metrics.peak_memory_gb(),
        "cache_seconds_a_sample": timed.cache_seconds / len(lessons),
        "first_loss": timed.losses[0],
    }


def in_its_own_process(name: str, model: str, numbers: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--model", model, "--contender", name, "--folder", folder]
        done = subprocess.run(command, env={**os.environ, "MMLORA_PRECISION": numbers}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def minutes(found: dict, epochs: int, problems: int) -> float:
    """Of so many epochs of so many problems, from the rates of one turn: first everything is cached, where there is a cache."""
    return problems * (found["cache_seconds_a_sample"] + epochs / found["samples_per_second"]) / 60


def spread(values: list[float]) -> dict:
    return {"median": round(median(values), 3), "low": round(min(values), 3), "high": round(max(values), 3)}


def summary(turns: list[dict[str, dict]], sizes: Sizes) -> dict:
    """Medians and spreads over the turns; a ratio is taken within one turn."""
    contenders = {
        name: {key: spread([turn[name][key] for turn in turns]) for key in turns[0][name]} for name in turns[0]
    }
    pairs = [(one, other) for one, other in OVER if {one, other} <= turns[0].keys()]
    ratios = {
        f"{one}_over_{other}": spread([t[one]["samples_per_second"] / t[other]["samples_per_second"] for t in turns])
        for one, other in pairs
    }
    for epochs in (1, sizes.epochs):
        for one, other in pairs:
            taken = [minutes(t[other], epochs, sizes.whole) / minutes(t[one], epochs, sizes.whole) for t in turns]
            ratios[f"{one}_over_{other}_{epochs}_epochs_with_cache"] = spread(taken)
    shares = {name: contenders[name]["share_of_peak"] for name in ("d", "e", "before") if name in contenders}
    return {"contenders": contenders, "ratios": ratios, "share_of_peak": shares}


def main(
    model: Annotated[
        str, typer.Option(help="smolbridge, smolvlm-256m (random weights), or what load_vlm takes")
    ] = "smolbridge",
    numbers: Annotated[str, typer.Option(help="what is multiplied, separated by commas")] = "bfloat16,float32",
    only: Annotated[str, typer.Option(help="contenders, separated by commas")] = ",".join(CONTENDERS),
    turns: Annotated[int, typer.Option(help="times that every contender has its turn")] = 5,
    contender: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[Path, typer.Option(hidden=True)] = Path(),
):
    """Measure all contenders in turns and write results/speed/MODEL.json."""
    sizes = Sizes()
    if contender:
        found = measure(contender, model, sizes, folder)
        print("\n" + json.dumps(found))
        return
    card = f"-{torch.cuda.get_device_name().replace(' ', '_')}" if torch.cuda.is_available() else ""
    target = RESULTS / "speed" / f"{model.replace('/', '--')}{card}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {"model": model}
    state = metrics.git_state()
    with tempfile.TemporaryDirectory() as work:
        path = str(random_model(Path(work) / "model")) if model == "smolvlm-256m" else model
        for chosen in numbers.split(","):
            taken: list[dict[str, dict]] = []
            names = [name for name in only.split(",") if chosen != "float32" or name not in HELD]
            for turn in range(turns):
                first = turn % len(names)  # another one begins each turn
                taken.append({n: in_its_own_process(n, path, chosen) for n in names[first:] + names[:first]})
                print(
                    chosen, turn + 1, {n: round(f["samples_per_second"], 2) for n, f in taken[-1].items()}, flush=True
                )
            circumstances = metrics.circumstances(state)
            circumstances["machine"]["precision"] = chosen  # the contenders', which this process does not share
            record[chosen] = summary(taken, sizes) | {
                "settings": {**asdict(sizes), "turns": turns, "contenders": ",".join(names)},
                "peers": {name: version(name) for name in ("trl",) if find_spec(name)},
                **circumstances,
            }
            target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"-> {target}")


if __name__ == "__main__":
    typer.run(main)
