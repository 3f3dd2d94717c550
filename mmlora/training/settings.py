"""What `fit` is given: a training set, and how to train on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Literal, Protocol

from mmlora.training.log import TrainingError

if TYPE_CHECKING:  # the command line reads these settings, and must not wait for torch
    import torch
    from torch import nn


class TrainingSet(Protocol):
    """What can be trained on: `encoding.samples.Samples`, with its prefix computed once `encoding.prefix.PrefixCache`, or what
    `training.objectives` make of either."""

    @property
    def ids(self) -> Sequence[str]:
        """What a message calls each sample."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each sample."""

    @property
    def fingerprint(self) -> str:
        """Of the data and of the stored frozen weights, however these were loaded."""

    def __len__(self) -> int: ...

    def loss(
        self, model: nn.Module, indices: list[int]
    ) -> tuple[torch.Tensor, int] | tuple[torch.Tensor, int, dict[str, float]]:
        """The loss (0-dim) summed over what it is the mean of, such as the supervised tokens of these samples, and their number.

        An objective with metrics of its own gives their sums as well; `log.jsonl` has the means.
        """


Tracker = Literal["none", "tensorboard", "trackio", "wandb"]
NO_TRACKER: Tracker = "none"
WIDTH = 576  # of the decoder that the rate was searched with, SmolLM2-135M's


@dataclass(frozen=True)
class TrainSettings:
    """How to train; exactly one of `minutes` and `steps` is given."""

    minutes: float | None = None  # wall-clock, checkpoints included: a run ends when it was promised to
    steps: int | None = None  # optimizer steps instead, for runs that must repeat exactly
    learning_rate: float = 2e-3  # the peak up to `WIDTH`; LoRA takes more than ten times the rate of full tuning
    warmup_share: float = 0.05  # of the budget; before that Adam's moments are noise
    batch_size: int = 8  # samples a step; in an hour on a small machine steps are scarcer than samples
    micro_batch_size: int | None = None  # samples a forward pass, where a whole batch does not fit in memory
    clip_norm: float = 1.0  # one odd batch must not undo an adapter
    b_rate: float = 1.0  # of LoRA's B matrices, as a multiple of A's; LoRA+ takes up to 16, with a lower learning_rate
    weight_decay: float = 0.0  # an adapter starts at zero and stays small: nothing to decay
    seed: int = 0  # order of the samples, and dropout
    checkpoint_minutes: float = 5.0  # the most that a crash can cost
    fused: bool = (
        True  # fewer, larger products for the same numbers; without, the plain layers, which are the reference
    )
    report_to: Tracker = NO_TRACKER  # who gets each record besides log.jsonl; nothing leaves this machine unasked

    def __post_init__(self):
        if (self.minutes is None) == (self.steps is None):
            raise TrainingError("training needs either minutes or steps; give exactly one of them")
        for name in ("minutes", "steps", "learning_rate", "b_rate", "batch_size", "micro_batch_size", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and value > 0):
                raise TrainingError(f"{name} is {value!r}; give a number above 0")
            if value == math.inf and name != "clip_norm":  # which then clips nothing
                raise TrainingError(f"{name} is {value}; give a finite number")
            if value is not None and name in ("steps", "batch_size", "micro_batch_size") and value != int(value):
                raise TrainingError(f"{name} is {value}; give a whole number")
        if not 0 <= self.weight_decay < math.inf:
            raise TrainingError(f"weight_decay is {self.weight_decay}; give 0 for none, or a number above 0")
        if not 0 <= self.warmup_share < 1:
            raise TrainingError(f"warmup_share is {self.warmup_share}; give a share from 0 to below 1")


def usual_rate(width: int) -> float:
    """The peak rate for a decoder whose states are `width` numbers: from `WIDTH` on it falls as one over the width.

    Adam's does so in muP (arXiv 2203.03466). At 4,096 this gives 2.8e-4, where LLaVA-1.5's LoRA recipe has 2e-4 (arXiv
    2310.03744). Measured here at 576 only.
    """
    return TrainSettings.learning_rate * min(1.0, WIDTH / width)
