"""How soon is an accuracy reached? One training of so many minutes, asked on the way how many validation problems it solves.

    python benchmarks/time_to_accuracy.py e --minutes 10 --seed 0
    python benchmarks/time_to_accuracy.py a --minutes 10 --seed 0

Contenders are (a), (c) and (e) of `speed.py`: transformers' Trainer with peft, all layers; ours, all layers, nothing cached;
ours, upper half, cached up to there. (e4) is (e) with batches of four. All else is the same: problems, batches of eight, rank,
peak rate and schedule over the same minutes, in which the cache is filled and the questions are asked, too; what is reached
is told in minutes without the asking. Writes
results/time_to_accuracy/MODEL-NUMBERS-CONTENDER-MINUTES-SEED.json, where NUMBERS is what is multiplied (MMLORA_PRECISION).
"""

from __future__ import annotations

import mmlora  # noqa: F401 - before torch, so that its threads share the cores

# isort: split
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from speed import trainer_arguments
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from mmlora.adapters.files import load_vlm
from mmlora.adapters.lora import attach
from mmlora.budget import Budget
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.prompts import taught
from mmlora.encoding.sample import collate
from mmlora.encoding.samples import Samples
from mmlora.evaluation.answering import evaluate
from mmlora.experiment import SPARE
from mmlora.models.vlm import VLM, decoder_layers
from mmlora.paths import RESULTS
from mmlora.problems.load import load_problems
from mmlora.problems.record import Problem
from mmlora.reporting import machine
from mmlora.training.fit import fit
from mmlora.training.order import schedule
from mmlora.training.probe import Probe
from mmlora.training.settings import TrainSettings

MARKS = (60, 70, 80, 85)  # per cent
ANSWER = 0.32  # seconds, more than one takes: the last questions must still fit in


@dataclass
class Exam:
    """A model's answers on the way; the clock stands while it is asked."""

    vlm: VLM
    problems: list[Problem]
    limit: int  # tokens of an answer
    began: float = field(default_factory=perf_counter)
    asking: float = 0.0  # seconds so far
    answers: list[dict] = field(default_factory=list)

    def minutes(self) -> float:
        return (perf_counter() - self.began - self.asking) / 60

    def ask(self, model: nn.Module) -> dict:
        at, began = self.minutes(), perf_counter()
        said = evaluate(self.vlm.with_model(model), self.problems, "generate", max_new_tokens=self.limit,
                        progress=False)  # fmt: skip
        found = {"minutes": round(at, 2), "correct": sum(answer.correct for answer in said), "n": len(said)}
        self.answers.append(found)
        print(found, flush=True)
        self.asking += perf_counter() - began
        return found


class ByTheClock(TrainerCallback):
    """Our schedule and our moments for a Trainer."""

    def __init__(self, exam: Exam, model: nn.Module, settings: TrainSettings, moments: list[float], whole: int):
        self.exam, self.model, self.settings, self.moments = exam, model, settings, moments
        self.whole, self.samples = whole, 0  # samples of an epoch, and seen

    def share(self) -> float:
        return (self.exam.minutes() + self.exam.asking / 60) / (self.settings.minutes or 1)

    def on_step_begin(self, *_: Any, optimizer: Any, **__: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * schedule(self.share(), self.settings.warmup_share)

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        epochs, steps = divmod(state.global_step, -(-self.whole // self.settings.batch_size))
        self.samples = epochs * self.whole + steps * self.settings.batch_size
        if self.moments and self.share() >= self.moments[0]:
            self.moments = [moment for moment in self.moments if moment > self.share()]
            self.exam.ask(self.model)
            self.model.train()
        control.should_training_stop = self.share() >= 1


def by_trainer(exam: Exam, samples: Samples, settings: TrainSettings, moments: list[float], folder: Path) -> int:
    """(a) Samples seen."""
    model = attach(exam.vlm.model, layers=range(len(decoder_layers(exam.vlm.model))), seed=settings.seed)
    clock = ByTheClock(exam, model, settings, moments, len(samples))
    untimed = {
        "max_steps": 10**6,
        "lr_scheduler_type": "constant",
        "logging_strategy": "no",
    }  # the callback has the clock
    arguments = TrainingArguments(**trainer_arguments(settings, folder), **untimed)
    Trainer(model, arguments, train_dataset=samples, data_collator=collate, callbacks=[clock]).train()
    return clock.samples


def by_us(
    exam: Exam, samples: Samples, settings: TrainSettings, moments: list[float], folder: Path, upper: bool
) -> int:
    """(c), and (e) and (e4), which cache. Samples seen."""
    depth = len(decoder_layers(exam.vlm.model))
    model = attach(exam.vlm.model, layers=range(depth // 2 if upper else 0, depth), seed=settings.seed)
    data: Any = PrefixCache.build(model, samples, folder / "cache") if upper else samples
    settings = replace(settings, minutes=(settings.minutes or 0) - exam.minutes())
    log = fit(model, data, settings, folder / "run", probe=Probe(lambda: exam.ask(model), moments))
    return log.samples_seen


CONTENDERS: dict[str, Callable[..., int]] = {
    "a": by_trainer,
    "c": lambda *given: by_us(*given, upper=False),
    "e": lambda *given: by_us(*given, upper=True),
    "e4": lambda exam, samples, settings, *given: by_us(
        exam, samples, replace(settings, batch_size=4), *given, upper=True
    ),
}


def asked_at(minutes: float, problems: int, moments: int) -> list[float]:
    """Shares of the budget at which it is asked, evenly, the last time as late as the answers fit."""
    last = 1 - ANSWER * problems / 60 / minutes
    if last <= 0:
        raise typer.BadParameter(
            f"{problems} answers may take {ANSWER * problems / 60:.1f} minutes, and there are {minutes:g} in all: give more "
            "--minutes or fewer --problems"
        )
    return [last * (i + 1) / moments for i in range(moments)]


def reached(answers: list[dict]) -> dict[str, float | None]:
    """Minutes until each mark, a line drawn from one answer to the next; None where it was not reached."""
    found: dict[str, float | None] = {}
    points = [(0.0, 0.0), *((a["minutes"], 100 * a["correct"] / a["n"]) for a in answers)]
    for mark in MARKS:
        pairs = ((x, y) for x, y in zip(points, points[1:]) if y[1] >= mark)
        first = next(pairs, None)
        found[str(mark)] = None
        if first:
            (before, low), (after, high) = first
            found[str(mark)] = round(before + (after - before) * (mark - low) / (high - low), 2)
    return found


def main(
    contender: Annotated[str, typer.Argument(help="a, c, e or e4")],
    minutes: Annotated[float, typer.Option(help="of the cache, of training and of the answers on the way")] = 10.0,
    seed: Annotated[int, typer.Option(help="of the samples' order and of the adapter's start")] = 0,
    model: Annotated[str, typer.Option(help="what load_vlm takes")] = "smolbridge",
    problems: Annotated[int, typer.Option(help="of the validation split, at each moment")] = 500,
    moments: Annotated[int, typer.Option(help="how often it is asked, the last time as late as the answers fit")] = 6,
):
    """Train one contender and write results/time_to_accuracy/MODEL-NUMBERS-CONTENDER-MINUTES-SEED.json."""
    shares = asked_at(minutes, problems, moments)
    vlm = load_vlm(model)
    vlm.model.requires_grad_(False)
    train, asked = (
        load_problems("minisqa", "train", Budget(minutes).train_problems),
        load_problems("minisqa", "validation", problems),
    )
    lessons = [taught(problem, "explanation_answer") for problem in train]
    samples, replies = Samples(vlm, lessons), vlm.processor.tokenizer([lesson.reply for lesson in lessons])["input_ids"]
    exam, state = Exam(vlm, asked, max(map(len, replies)) + SPARE), machine.git_state()
    with tempfile.TemporaryDirectory() as folder:
        seen = CONTENDERS[contender](exam, samples, TrainSettings(minutes=minutes, seed=seed), shares, Path(folder))
    record = {
        "model": vlm.name,
        "contender": contender,
        "answers": exam.answers,
        "reached": reached(exam.answers),
        "samples_seen": seen,
        "minutes_asking": round(exam.asking / 60, 2),
        "settings": {"minutes": minutes, "seed": seed, "problems": len(asked), "train_problems": len(train)},
        **machine.circumstances(state),
    }
    numbers = record["machine"]["precision"]
    target = RESULTS / "time_to_accuracy" / f"{Path(model).name}-{numbers}-{contender}-{minutes:g}-{seed}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{record['reached']} -> {target}")


if __name__ == "__main__":
    typer.run(main)
