"""The training loop: a wall-clock budget, a schedule that follows it, and a checkpoint every few minutes.

One optimizer step sees one batch; its loss is the mean over all supervised tokens of that batch, however it is cut
into micro-batches. The place in the run, every random state and every moment is in a checkpoint, so on a CPU a run that
was interrupted and resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from accelerate.utils.memory import clear_device_cache
from torch import nn

from mmlora.adapters.fused import fused
from mmlora.adapters.lora import AdapterError
from mmlora.adapters.towers import Tower, gradient_norms, training_mode
from mmlora.models import processes
from mmlora.models.memory import give_back, out_of_memory
from mmlora.models.precision import attention, precision
from mmlora.training import checkpoint, resume
from mmlora.training.clock import OFTEN, Allowed, Clock
from mmlora.training.log import Journal, TrainingError, TrainLog
from mmlora.training.order import batches, by_rate, schedule
from mmlora.training.probe import Probe
from mmlora.training.settings import TrainingSet, TrainSettings

PATIENCE = 16  # steps in which each tower that trains must get a gradient


def fit(
    model: nn.Module,
    data: TrainingSet,
    settings: TrainSettings,
    folder: str | Path,
    *,
    resume: bool = False,
    on_step: Callable[[dict], None] | None = None,
    probe: Probe | None = None,
    allowed: Allowed | None = None,
) -> TrainLog:
    """Train in place whatever `requires_grad` in `model`, and leave it in evaluation mode.

    `folder` receives `log.jsonl` and checkpoints. With `resume`, training goes on from the newest verified checkpoint
    there, or begins when there is none; a time budget counts the part before the interruption. `on_step` receives each
    record; what `probe` found stands in the record of its moment as `validation`. `allowed` changes the minutes while
    training goes on (see `Clock`). Seeds the global random generators.
    Raises `TrainingError`, `CheckpointError` (made by another run, or the disk is full before the first step) and
    `AdapterError` (a tower without gradient).
    """
    run = _Run(model, data, Clock(settings, allowed), Path(folder), probe)
    try:
        run.begin(resume)
        fast = fused(run.model) if settings.fused else nullcontext()
        while run.goes_on():
            with fast:
                record = run.step()
            if on_step:  # outside: it may copy the model, or switch its adapter off
                on_step(record)
        run.save(then="training is over, and its last steps are in no checkpoint")
    finally:
        run.close()
    return TrainLog(run.journal.records, run.place.samples, run.clock.seconds(), run.clock.before)


@dataclass
class _Place:
    """How far a run has come: what a resume needs beside tensors."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # batches taken from this epoch
    samples: int = 0
    tokens: int = 0
    probed: float = 0.0  # share of the budget where the last probe ended


class _Run:
    """One `fit`: model, optimizer, clock, place and journal."""

    def __init__(self, model: nn.Module, data: TrainingSet, clock: Clock, folder: Path, probe: Probe | None = None):
        self.clock, self.settings = clock, (settings := clock.settings)
        self.data, self.folder, self.probe = data, folder, probe
        if not len(data):
            raise TrainingError("the training set has no samples; give it at least one")
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise TrainingError("nothing in this model is trainable; attach an adapter first")
        self.accelerator = Accelerator(mixed_precision=precision(), cpu=processes.on_processor())
        self.model = model.to(self.accelerator.device)
        adam = torch.optim.AdamW(by_rate(model), settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
        self.optimizer = self.accelerator.prepare_optimizer(adam)
        self.place, self.journal = _Place(), Journal(folder, quiet=not processes.first())
        self.micro = settings.micro_batch_size or settings.batch_size  # samples a forward pass; halved if too many
        self.order: list[list[int]] = []
        self.saved_step: int | None = None
        self.saved_at = 0.0  # seconds
        self.all_reached = False  # every tower that trains has had a gradient

    def begin(self, resume: bool):
        found = processes.said(checkpoint.newest(self.folder) if processes.first() else None)
        if found and not resume:
            raise TrainingError(f"{found.path} is of an earlier run; resume it or choose another folder")
        if len(numbers := set(processes.gathered(precision()))) > 1:
            raise TrainingError(f"the processes multiply {' and '.join(numbers)}; set MMLORA_PRECISION for all of them")
        processes.share_start(self.parameters)
        set_seed(self.settings.seed, device_specific=True)  # each process drops other units
        training_mode(self.model)
        self.optimizer.zero_grad(set_to_none=True)  # an interrupted training may have left half a step's
        if found:
            self.resume_from(found)
        else:
            self.order = self.epoch_order()  # before the first step, whose time says how long the others take
            self.save(must=True)  # a disk that is full should say so before an hour is spent
            self.journal.open([])

    def goes_on(self) -> bool:
        """Whether there is time for one more step, by the first process's clock."""
        return bool(*processes.agreed(self.clock.time_for_a_step(self.place.step)))

    def step(self) -> dict:
        place, clock = self.place, self.clock
        began = clock.seconds()
        (share,) = processes.agreed(clock.share(place.step))
        rate = self.settings.learning_rate * schedule(share, self.settings.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        batch = self.next_batch()
        loss, tokens = self.backward(batch)
        by_tower = None if self.all_reached else self.reached()
        norm = self.clip(batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        place.step, place.samples, place.tokens = place.step + 1, place.samples + len(batch), place.tokens + tokens
        record: dict[str, Any] = {
            "step": place.step,
            "seconds": round(clock.seconds(), 3),
            "loss": loss,
            "learning_rate": rate,
            "samples": place.samples,
            "tokens": place.tokens,
            "gradient_norm": norm,
        }
        if place.step % OFTEN == 0:
            give_back()  # batches differ in length, and what was freed for one does not fit the next
            clock.estimate_anew()
        if by_tower:
            record["gradient_norm_by_tower"] = by_tower
            norms = ", ".join(f"{tower} {value:.3g}" for tower, value in by_tower.items())
            self.journal.say(f"gradient norm at step {place.step}: {norms}")
        clock.recent.append(clock.seconds() - began)
        is_late = clock.seconds() - self.saved_at >= 60 * self.settings.checkpoint_minutes
        share, late, fits = processes.agreed(clock.share(place.step), is_late, clock.time_for_a_probe())
        if self.probe and fits and self.probe.due(share, place.probed):
            before = clock.seconds()
            record["validation"] = self.probe.ask()
            training_mode(self.model)
            clock.probe_seconds, place.probed = clock.seconds() - before, *processes.agreed(clock.share(place.step))
        self.journal.write(record, share, clock.seconds_left(place.step))
        if late:
            self.save()
        return record

    def next_batch(self) -> list[int]:
        place = self.place
        if place.position == len(self.order):
            place.epoch, place.position = place.epoch + 1, 0
            self.order = self.epoch_order()
        place.position += 1
        return self.order[place.position - 1]

    def epoch_order(self) -> list[list[int]]:
        return batches(self.data.lengths, self.settings.batch_size, self.settings.seed, self.place.epoch)

    def backward(self, batch: Sequence[int]) -> tuple[float, int]:
        """Gradients of the mean loss over all processes' supervised tokens; returns that loss and their number.

        A share that does not fit in memory is taken in halves from then on: more forward passes, the same step.
        """
        share, most = processes.mine(batch), -(-len(batch) // processes.count())
        while True:
            size = min(self.micro, most)
            try:
                total, tokens = self.accumulate([share[at : at + size] for at in range(0, most, size)], batch[:1])
                break
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if size == 1 or processes.sharded():  # the others wait in a forward pass that takes all
                    raise TrainingError(
                        f"samples {self.names(share)} do not fit in memory, {size} at a time; train fewer layers, "
                        "take smaller pictures or a smaller model"
                    ) from error
            self.micro = -(-size // 2)
            self.optimizer.zero_grad(set_to_none=True)
            clear_device_cache(garbage_collection=True)
            self.journal.say(
                f"out of memory: from now on {self.micro} samples a forward pass; a step still takes "
                f"{self.settings.batch_size}"
            )
        total, supervised = processes.add_up(self.parameters, total, tokens)
        if supervised == 0:
            raise TrainingError(f"no token of the samples {self.names(batch)} is supervised; check their labels")
        self.accelerator.unscale_gradients()
        torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], supervised)
        return total / supervised, int(supervised)

    def reached(self) -> dict[Tower, float] | None:
        """The gradient's norm by tower, once every tower has one; None until then, for a batch may hold no picture.

        Raises `AdapterError` for a tower that none of the first steps reached.
        """
        norms = gradient_norms(self.model)
        silent = [tower for tower, norm in norms.items() if norm == 0]
        self.all_reached = not silent and all(map(math.isfinite, norms.values()))  # a scaler's first steps may overflow
        if silent and self.place.step + 1 >= min(PATIENCE, self.settings.steps or PATIENCE):
            raise AdapterError(
                f"the {silent[0]} tower has trainable parameters but no gradient reached them in {self.place.step + 1} "
                "steps; leave that tower out, or check that the loss depends on it and that no cache replaces it"
            )
        return norms if self.all_reached else None

    def accumulate(self, parts: list[Sequence[int]], spare: Sequence[int]) -> tuple[float, int]:
        """Add up the gradients of the summed losses of `parts`; an empty one is `spare`, which counts nothing."""
        total, tokens = 0.0, 0
        for part in parts:
            with self.accelerator.autocast(), attention(self.accelerator.device):
                loss_sum, supervised = self.data.loss(self.model, list(part or spare))
            if not part:  # all processes take as many forward passes
                loss_sum, supervised = 0 * loss_sum, 0
            value = loss_sum.item()
            if not math.isfinite(value):
                raise self.not_finite("loss", part)
            self.accelerator.backward(loss_sum)
            total, tokens = total + value, tokens + supervised
        return total, tokens

    def clip(self, batch: list[int]) -> float | None:
        """The gradient's norm before clipping; None where fp16 overflowed and the scaler will skip the step."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm).item()
        scaler = self.accelerator.scaler
        if math.isfinite(norm):
            return norm
        if scaler is None or scaler.get_scale() < 1:  # it was halved so often that this is no overflow of its making
            raise self.not_finite("gradient", batch)
        return None

    def not_finite(self, what: str, batch: Sequence[int]) -> TrainingError:
        return TrainingError(
            f"the {what} is not finite at step {self.place.step + 1} (samples {self.names(batch)}); look at these or "
            f"lower the learning rate; the checkpoint of step {self.saved_step} is kept in {self.folder}"
        )

    def names(self, batch: Sequence[int]) -> str:
        return ", ".join(str(self.data.ids[i]) for i in batch[:8]) + (" and more" if len(batch) > 8 else "")

    def save(self, must: bool = False, then: str = "training goes on"):
        """Write a checkpoint unless this step has one. A failure is said, and what comes `then`, unless it `must` be."""
        if self.saved_step == self.place.step:
            return
        began = self.clock.seconds()
        state = resume.state(self.model, self.settings, self.data, asdict(self.place), began)
        files = resume.files(self.model, self.accelerator, self.optimizer.optimizer, state, self.journal.text)
        written = self.saved_step
        try:
            if processes.first():
                checkpoint.write(self.folder, self.place.step, files)
            written = self.place.step
        except checkpoint.CheckpointError as error:
            if must:
                raise
            self.journal.say(f"{error}; {then}")
        self.saved_step = processes.said(written)
        self.saved_at = self.clock.seconds()
        self.clock.save_seconds = self.saved_at - began

    def resume_from(self, found: checkpoint.Checkpoint):
        mine = resume.state(self.model, self.settings, self.data, asdict(self.place), 0.0)
        said = resume.check(found, mine)
        resume.restore(found, self.model, self.accelerator, self.optimizer.optimizer)
        self.place = _Place(**{field.name: found.state[field.name] for field in fields(_Place)})
        self.clock.before, self.order = found.state["elapsed"], self.epoch_order()
        self.saved_at, self.saved_step = self.clock.seconds(), self.place.step
        self.all_reached = b"gradient_norm_by_tower" in found.files["log.jsonl"]
        self.journal.open([json.loads(line) for line in found.files["log.jsonl"].splitlines()])
        self.journal.say(f"resumed from {found.path.name} after {found.state['elapsed'] / 60:.1f} minutes{said}")

    def close(self):
        self.model.eval()
        give_back()
        self.journal.close()
