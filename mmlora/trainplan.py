"""What a training run intends: its settings, the order of its samples, its learning rate."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from mmlora.trainlog import TrainingError


class Source(Protocol):
    """Where the samples come from, cached or not (`mmlora.cache`)."""

    ids: Sequence[str]
    lengths: Sequence[int]  # tokens of each sample
    fingerprint: str  # of the data and of the frozen weights

    def __len__(self) -> int: ...

    def loss(self, model: nn.Module, indices: list[int]) -> tuple[torch.Tensor, int]:
        """The loss (0-dim) summed over the supervised tokens of these samples, and the number of those tokens."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train; exactly one of `minutes` and `steps` is given."""

    minutes: float | None = None  # wall-clock, checkpoints included: a run ends when it was promised to
    steps: int | None = None  # optimizer steps instead, for runs that must repeat exactly
    learning_rate: float = 2e-3  # the peak; LoRA takes more than ten times the rate of full tuning
    warmup_share: float = 0.05  # of the budget; before that Adam's moments are noise
    batch_size: int = 8  # samples a step; in an hour on a small machine steps are scarcer than samples
    micro_batch_size: int | None = None  # samples a forward pass, where a whole batch does not fit in memory
    clip_norm: float = 1.0  # one odd batch must not undo an adapter
    weight_decay: float = 0.0  # an adapter starts at zero and stays small: nothing to decay
    seed: int = 0  # order of the samples, and dropout
    checkpoint_minutes: float = 5.0  # the most that a crash can cost

    def __post_init__(self):
        if (self.minutes is None) == (self.steps is None):
            raise TrainingError("training needs either minutes or steps; give exactly one of them")
        for name in ("minutes", "steps", "learning_rate", "batch_size", "micro_batch_size", "clip_norm"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise TrainingError(f"{name} is {getattr(self, name)}; give a number above 0")
        if not 0 <= self.warmup_share < 1:
            raise TrainingError(f"warmup_share is {self.warmup_share}; give a share from 0 to below 1")


def batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """All indices once, in batches of alike lengths, in an order that only `seed` and `epoch` decide.

    Sorting by length within buckets of 16 batches saves most of the padding and keeps the batches mixed.
    """
    rng = random.Random(f"{seed} {epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    bucket = 16 * batch_size
    for start in range(0, len(order), bucket):
        order[start : start + bucket] = sorted(order[start : start + bucket], key=lambda i: lengths[i])
    made = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rng.shuffle(made)
    return made


def schedule(share: float, warmup_share: float) -> float:
    """The learning rate's factor at `share` of the budget: linear up, then a cosine down to zero."""
    if share < warmup_share:
        return share / warmup_share
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warmup_share) / (1 - warmup_share))))
