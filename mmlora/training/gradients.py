"""The gradients of one step: of a whole batch's mean loss, in as many forward passes as fit in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import nn

from mmlora.adapters.lora import AdapterError
from mmlora.adapters.towers import Tower, gradient_norms
from mmlora.models import processes
from mmlora.models.memory import out_of_memory
from mmlora.models.precision import attention
from mmlora.training.log import TrainingError
from mmlora.training.recompute import can_recompute, recompute
from mmlora.training.settings import TrainingSet, TrainSettings

PATIENCE = 16  # steps in which each tower that trains must get a gradient


class Gradients:
    """Gradients of `parameters`; `say` prints a line, and `kept` says for error messages which checkpoint is kept."""

    def __init__(
        self,
        model: nn.Module,
        data: TrainingSet,
        settings: TrainSettings,
        accelerator: Accelerator,
        parameters: list[nn.Parameter],
        say: Callable[[str], None],
        kept: Callable[[], str],
    ):
        self.model, self.data, self.settings, self.accelerator = model, data, settings, accelerator
        self.parameters, self.say, self.kept = parameters, say, kept
        self.micro = settings.micro_batch_size or settings.batch_size  # samples a forward pass; halved if too many
        self.step = 0  # the step of the last gradients
        self.recomputed = False  # gradient checkpointing was switched on here
        self.all_reached = False  # every tower that trains has had a gradient
        self.metrics: dict[str, float] = {}  # the objective's own, means over the last batch as the loss is

    def of(self, batch: Sequence[int], step: int) -> tuple[float, int]:
        """Compute the gradients of the mean loss over all processes' supervised tokens; returns that loss and their number.

        A share that does not fit in memory is taken in halves from then on: more forward passes, the same step. Where a single
        sample does not fit, gradient checkpointing is switched on.
        """
        self.step = step
        share, most = processes.mine(batch), -(-len(batch) // processes.count())
        while True:
            size = min(self.micro, most)
            try:
                total, tokens, sums = self.accumulate([share[at : at + size] for at in range(0, most, size)], batch[:1])
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                # Where weights are sharded, the other processes wait in a forward pass that takes all of them.
                if processes.sharded() or (size == 1 and not can_recompute(self.model)):
                    raise TrainingError(
                        f"samples {self.names(share)} do not fit in memory, {size} at a time; train fewer layers, "
                        "take smaller pictures or a smaller model"
                    ) from error
            self.make_room(size)  # outside: the error holds what the forward pass kept
        total, supervised, *values = processes.add_up(self.parameters, total, tokens, *sums.values())
        if supervised == 0:
            raise TrainingError(f"no token of the samples {self.names(batch)} is supervised; check their labels")
        self.accelerator.unscale_gradients()
        torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], supervised)
        self.metrics = {name: value / supervised for name, value in zip(sums, values)}
        return total / supervised, int(supervised)

    def make_room(self, size: int) -> None:
        """Let a step need less memory, after `size` samples a forward pass needed too much."""
        for parameter in self.parameters:
            parameter.grad = None
        clear_device_cache(garbage_collection=True)
        if size > 1:
            self.micro = -(-size // 2)
            self.say(
                f"out of memory: from now on {self.micro} samples a forward pass; a step still takes "
                f"{self.settings.batch_size}"
            )
            return
        recompute(self.model)
        self.recomputed = True
        self.micro = self.settings.micro_batch_size or self.settings.batch_size
        self.say(
            "out of memory with one sample a forward pass: gradient checkpointing is on from now on, which computes activations "
            f"again instead of keeping them and takes longer; trying {self.micro} samples a forward pass again"
        )

    def accumulate(self, parts: list[Sequence[int]], spare: Sequence[int]) -> tuple[float, int, dict[str, float]]:
        """Add up the gradients of the summed losses of `parts`; an empty one is `spare`, which counts nothing."""
        total, tokens = 0.0, 0
        sums: dict[str, float] = {}
        for part in parts:
            with attention(self.accelerator.device):  # backward too: checkpointed layers are computed again there
                with self.accelerator.autocast():
                    loss_sum, supervised, *metrics = self.data.loss(self.model, list(part or spare))
                if not part:  # all processes take as many forward passes
                    loss_sum, supervised = 0 * loss_sum, 0
                value = loss_sum.item()
                if not math.isfinite(value):
                    raise self.not_finite("loss", part)
                if not loss_sum.requires_grad:
                    raise TrainingError(
                        f"the loss of the samples {self.names(part or spare)} depends on nothing that trains; where gradient "
                        "checkpointing is on, enable it with gradient_checkpointing_kwargs={'use_reentrant': False}, or else "
                        "look at how the training set computes its loss"
                    )
                self.accelerator.backward(loss_sum)
            total, tokens = total + value, tokens + supervised
            for name, metric in (metrics[0] if metrics else {}).items():
                sums[name] = sums.get(name, 0.0) + (metric if part else 0.0)
        return total, tokens, sums

    def reached(self) -> dict[Tower, float] | None:
        """The gradient's norm by tower, at the first step at which every tower has one; None at all others.

        A batch may hold no picture. Raises `AdapterError` for a tower that none of the first steps reached.
        """
        if self.all_reached:
            return None
        norms = gradient_norms(self.model)
        silent = [tower for tower, norm in norms.items() if norm == 0]
        self.all_reached = not silent and all(map(math.isfinite, norms.values()))  # a scaler's first steps may overflow
        if silent and self.step >= min(PATIENCE, self.settings.steps or PATIENCE):
            raise AdapterError(
                f"the {silent[0]} tower has trainable parameters but no gradient reached them in {self.step} "
                "steps; leave that tower out, or check that the loss depends on it and that no cache replaces it"
            )
        return norms if self.all_reached else None

    def clip(self, batch: Sequence[int]) -> float | None:
        """The norm before clipping; None where fp16 overflowed and the scaler will skip the step."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm).item()
        scaler = self.accelerator.scaler
        if math.isfinite(norm):
            return norm
        if scaler is None or scaler.get_scale() < 1:  # after so many halvings the scale is not the cause
            raise self.not_finite("gradient", batch)
        return None

    def not_finite(self, what: str, batch: Sequence[int]) -> TrainingError:
        return TrainingError(
            f"the {what} is not finite at step {self.step} (samples {self.names(batch)}); look at these or "
            f"lower the learning rate; {self.kept()}"
        )

    def names(self, batch: Sequence[int]) -> str:
        return ", ".join(str(self.data.ids[i]) for i in batch[:8]) + (" and more" if len(batch) > 8 else "")
