"""The order of the samples and the learning rate over a run."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

B_MATRICES = re.compile(r"\.lora_(embedding_)?B\.")
OWN_SHARE = 0.1  # of LoRA's rate, for a model's own weights that train beside it: what they know is soon forgotten


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


def by_rate(model: nn.Module, b_rate: float = 1.0) -> list[dict[str, Any]]:
    """What trains, as an optimizer's groups with their `share` of the learning rate.

    LoRA's B matrices take `b_rate` times the rate of its A matrices (LoRA+, arXiv 2402.12354). Beside LoRA's factors a model's
    own weights, as a connector's, take `OWN_SHARE`: LLaVA-1.5's LoRA recipe has 2e-5 for its projector and 2e-4 for the
    adapter (arXiv 2310.03744). Alone they take the whole rate.
    """
    training = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    own = [p for name, p in training if ".lora_" not in name]
    added = [(name, p) for name, p in training if ".lora_" in name]
    faster = [p for name, p in added if b_rate != 1.0 and B_MATRICES.search(name)]
    known = {id(p) for p in faster}
    rest = [p for _, p in added if id(p) not in known]
    groups = (rest, 1.0), (faster, b_rate), (own, OWN_SHARE if added else 1.0)
    return [{"params": params, "share": share} for params, share in groups if params]
