"""The order of the samples and the learning rate over a run."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


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
