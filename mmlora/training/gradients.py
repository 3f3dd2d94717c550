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
        self.all_reached = False  # every tower that trains has had a gradient

    def of(self, batch: Sequence[int], step: int) -> tuple[float, int]:
        """Compute the gradients of the mean loss over all processes' supervised tokens; returns that loss and their number.

        A share that does not fit in memory is taken in halves from then on: more forward passes, the same step.
        """
        self.step = step
        share, most = processes.mine(batch), -(-len(batch) // processes.count())
        while True:
            size = min(self.micro, most)
            try:
                total, tokens = self.accumulate([share[at : at + size] for at in range(0, most, size)], batch[:1])
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if size == 1 or processes.sharded():  # the others wait in a forward pass that takes all
                    raise TrainingError(
                        f"samples {self.names(share)} do not fit in memory, {size} at a time; train fewer layers, "
                        "take smaller pictures or a smaller model"
                    ) from error
            self.micro = -(-size // 2)
            for parameter in self.parameters:
                parameter.grad = None
            clear_device_cache(garbage_collection=True)
            self.say(
                f"out of memory: from now on {self.micro} samples a forward pass; a step still takes "
                f"{self.settings.batch_size}"
            )
        total, supervised = processes.add_up(self.parameters, total, tokens)
        if supervised == 0:
            raise TrainingError(f"no token of the samples {self.names(batch)} is supervised; check their labels")
        self.accelerator.unscale_gradients()
        torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], supervised)
        return total / supervised, int(supervised)

    def accumulate(self, parts: list[Sequence[int]], spare: Sequence[int]) -> tuple[float, int]:
        """Add up the gradients of the summed losses of `parts`; an empty one is `spare`, which counts nothing."""
        total, tokens = 0.0, 0
        for part in parts:
            with attention(self.accelerator.device):  # backward too: checkpointed layers are computed again there
                with self.accelerator.autocast():
                    loss_sum, supervised = self.data.loss(self.model, list(part or spare))
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
        return total, tokens

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
