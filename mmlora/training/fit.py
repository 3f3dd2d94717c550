"""The training loop: a wall-clock budget, a schedule that follows it, and a checkpoint every few minutes.

One optimizer step sees one batch; its loss is the mean over all supervised tokens of that batch, however it is cut
into micro-batches. The place in the run, every random state and every moment is in a checkpoint, so on a CPU a run that
was interrupted and resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from mmlora.adapters.fused import fused
from mmlora.adapters.towers import training_mode
from mmlora.models import processes
from mmlora.models.memory import give_back
from mmlora.models.precision import precision
from mmlora.training import checkpoint, resume, tracking
from mmlora.training.clock import OFTEN, Allowed, Clock
from mmlora.training.gradients import Gradients
from mmlora.training.interruption import Interruption, Moment, Place
from mmlora.training.log import Journal, TrainingError, TrainLog
from mmlora.training.order import batches, by_rate, schedule
from mmlora.training.probe import Probe
from mmlora.training.recompute import keep_activations
from mmlora.training.saturation import Saturation
from mmlora.training.settings import TrainingSet, TrainSettings


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
    training goes on (see `Clock`); a training of minutes ends before them when it has nothing left to learn (see
    `Saturation`). Seeds the global random generators.
    Raises `TrainingError`, `CheckpointError` (made by another run, or the disk is full before the first step) and
    `AdapterError` (a tower without gradient). When it is interrupted, it writes a checkpoint of the last whole step. The
    exception that it raises then, or after any step, has the training so far as its attribute `log`.
    """
    run = _Run(model, data, Clock(settings, allowed), Path(folder), probe)
    with run.interruption:
        try:
            run.begin(resume)
            fast = fused(run.model) if settings.fused else nullcontext()
            while run.goes_on():
                with fast:
                    record = run.step()
                if on_step:  # outside: it may copy the model, or switch its adapter off
                    on_step(record)
            run.save(then="training is over, and its last steps are in no checkpoint")
        except BaseException as error:
            run.break_off(error)
            raise
        finally:
            run.close()
    return run.log()


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
        self.accelerator = tracking.accelerator(
            settings, folder, mixed_precision=precision(), cpu=processes.on_processor()
        )
        self.model = model.to(self.accelerator.device)
        adam = torch.optim.AdamW(
            by_rate(model, settings.b_rate), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.optimizer = self.accelerator.prepare_optimizer(adam)
        self.place, self.journal = Place(), Journal(folder, quiet=not processes.first())
        self.tracking = tracking.Tracking(self.accelerator, settings, folder, self.journal.say)
        self.saturation = Saturation(len(data))
        self.gradients = Gradients(
            model, data, settings, self.accelerator, self.parameters, self.journal.say, self.kept
        )
        self.order: list[list[int]] = []
        self.saved_step: int | None = None
        self.saved_at = 0.0  # seconds
        self.interruption = Interruption()
        self.moment = Moment(self.place)

    def begin(self, resume: bool):
        found = processes.said(checkpoint.newest(self.folder) if processes.first() else None)
        if found and not resume:
            raise TrainingError(f"{found.path} is of an earlier run; resume it or choose another folder")
        if len(numbers := set(processes.gathered(precision()))) > 1:
            raise TrainingError(f"the processes multiply {' and '.join(numbers)}; set MMLORA_PRECISION for all of them")
        self.tracking.start()
        processes.share_start(self.parameters)
        set_seed(self.settings.seed, device_specific=True)  # each process drops other units
        training_mode(self.model)
        self.optimizer.zero_grad(set_to_none=True)  # an interrupted training may have left half a step's
        if found:
            self.resume_from(found)
        else:
            self.order = self.epoch_order()  # before the first step, whose time says how long the others take
            with self.interruption.whole():  # a checkpoint that is there is one that this training knows of
                self.save(must=True)  # a disk that is full should say so before an hour is spent
            self.journal.open([])
        self.moment = Moment(self.place)

    def goes_on(self) -> bool:
        """Whether there is time for one more step, by the first process's clock, and something left to learn."""
        self.interruption.agreed()
        (time,) = processes.agreed(self.clock.time_for_a_step(self.place.step))
        reason = None if self.settings.steps else self.saturation.reason(self.probe is not None)
        if time and reason:
            self.journal.say(
                f"nothing is left to learn, so training stops after step {self.place.step}, {self.clock.seconds() / 60:.1f} of "
                f"{self.clock.budget / 60:.1f} minutes: {reason}; a run that counts steps (--steps) trains on all the same"
            )
        return bool(time) and not reason

    def step(self) -> dict:
        place, clock, self.moment = self.place, self.clock, Moment(self.place)
        began = clock.seconds()
        (share,) = processes.agreed(clock.share(place.step))
        rate = self.settings.learning_rate * schedule(share, self.settings.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        batch = self.next_batch()
        loss, tokens = self.gradients.of(batch, place.step + 1)
        by_tower, norm = self.gradients.reached(), self.gradients.clip(batch)
        with self.interruption.whole():
            self.optimizer.step()
            place.step, place.samples, place.tokens = place.step + 1, place.samples + len(batch), place.tokens + tokens
            record: dict[str, Any] = {
                "step": place.step,
                "seconds": round(clock.seconds(), 3),
                "loss": loss,
                "learning_rate": rate,
                "samples": place.samples,
                "tokens": place.tokens,
                "gradient_norm": norm,
                **self.gradients.metrics,
            }
            self.journal.keep(record)
            self.moment = Moment(place)
        self.optimizer.zero_grad(set_to_none=True)
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
            self.take_probe(self.probe, record)
        self.saturation.add(record)
        self.tracking.log(record)
        self.journal.write(share, clock.seconds_left(place.step))
        if late:
            self.save()
        return record

    def take_probe(self, probe: Probe, record: dict[str, Any]):
        """Ask the probe about the model after this step; its time counts."""
        before = self.clock.seconds()
        probe.ask(record)
        training_mode(self.model)
        self.clock.probe_seconds = self.clock.seconds() - before
        (self.place.probed,) = processes.agreed(self.clock.share(self.place.step))

    def next_batch(self) -> list[int]:
        place = self.place
        if place.position == len(self.order):
            place.epoch, place.position = place.epoch + 1, 0
            self.order = self.epoch_order()
        place.position += 1
        return self.order[place.position - 1]

    def epoch_order(self) -> list[list[int]]:
        return batches(self.data.lengths, self.settings.batch_size, self.settings.seed, self.place.epoch)

    def kept(self) -> str:
        return f"the checkpoint of step {self.saved_step} is kept in {self.folder}"

    def break_off(self, error: BaseException):
        """Drop the unfinished step, save a checkpoint after an interruption, and put the log so far on the exception."""
        self.interruption.no_more()
        if self.saved_step is None:  # this training has nothing of its own yet
            return
        if isinstance(error, KeyboardInterrupt):
            self.place = self.moment.again()
            self.journal.say(f"training was interrupted after step {self.place.step}")
            if math.isfinite(self.settings.checkpoint_minutes):
                self.save(then="what was learned since is in no checkpoint")
        setattr(error, "log", self.log())  # noqa: B010 - no exception declares it

    def log(self) -> TrainLog:
        return TrainLog(self.journal.records, self.place.samples, self.clock.seconds(), self.clock.before)

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
        self.place = Place(**{field.name: found.state[field.name] for field in fields(Place)})
        self.clock.before, self.order = found.state["elapsed"], self.epoch_order()
        self.saved_at, self.saved_step = self.clock.seconds(), self.place.step
        self.gradients.all_reached = b"gradient_norm_by_tower" in found.files["log.jsonl"]
        records = [json.loads(line) for line in found.files["log.jsonl"].splitlines()]
        for record in records:
            self.saturation.add(record)
        self.journal.open(records)
        self.journal.say(f"resumed from {found.path.name} after {found.state['elapsed'] / 60:.1f} minutes{said}")

    def close(self):
        self.model.eval()
        if self.gradients.recomputed:
            keep_activations(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        give_back()
        self.tracking.finish()
        self.journal.close()
