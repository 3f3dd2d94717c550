"""Distillation: a student learns its teacher's distribution over the next token (arXiv 1503.02531; reverse KL, 2306.13649).

Of a distribution the teacher's `top` most probable tokens are kept, and all the others together are one more outcome, the
rest. A divergence between the two distributions over these outcomes is never above that over the whole vocabulary, equal to it
where `top` is the whole vocabulary, and zero for a student that equals its teacher; cutting the rest off and renormalising
would instead teach the student that nothing else can follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import cross_entropy

from mmlora.encoding.loss import Supervised, token_losses
from mmlora.training.log import TrainingError


@dataclass(frozen=True)
class Distillation:
    """How a student is taught by a teacher's distributions."""

    top: int = 32  # the teacher's tokens that are kept at each position, in 194 bytes; the rest is seldom much
    temperature: float = 1.0  # divides both models' logits; above 1 the teacher's less likely tokens count for more
    divergence: Literal["forward", "reverse"] = "forward"  # KL from the teacher, or from the student: it seeks one mode
    weight: float = 0.5  # of the divergence; the labels' cross-entropy has the rest

    def __post_init__(self):
        if self.top < 1 or not self.temperature > 0 or not 0 <= self.weight <= 1:
            raise TrainingError("top is 1 or more, temperature above 0, and weight from 0 to 1; change these settings")


def outcomes(log_probabilities: torch.Tensor, ids: torch.Tensor, rest: bool) -> torch.Tensor:
    """Those of the tokens `ids` (tokens, top), and with `rest` that of all others together: (tokens, top + 1)."""
    kept = log_probabilities.gather(1, ids)
    if not rest:
        return kept
    others = log_probabilities.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
    return torch.cat([kept, others], 1)


def distill(
    states: Supervised, ids: torch.Tensor, teacher: torch.Tensor, settings: Distillation
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss summed over supervised tokens (0-dim) and the summed metrics, `divergence` and `cross_entropy` in nats.

    `ids` int64 (tokens, top), `teacher` log-probabilities (tokens, top), or (tokens, top + 1) with the rest's. The divergence
    counts temperature squared times, so that its gradient is as large at every temperature.
    """

    def mixed(logits: torch.Tensor, part: slice) -> torch.Tensor:
        theirs = teacher[part].float().log_softmax(1)  # float16 rounds them; their sum is 1 again
        scaled = (logits / settings.temperature).log_softmax(1)
        ours = outcomes(scaled, ids[part], rest=theirs.shape[1] > ids.shape[1])
        p, q = (theirs, ours) if settings.divergence == "forward" else (ours, theirs)
        divergence = (p.exp() * (p - q)).sum(1)
        labels = cross_entropy(logits, states.targets[part], reduction="none")
        loss = settings.weight * settings.temperature**2 * divergence + (1 - settings.weight) * labels
        return torch.stack([loss, divergence, labels], 1)

    found = token_losses(states, mixed)
    sums = found[:, 1:].detach().double().sum(0)
    return found[:, 0].sum(), dict(zip(("divergence", "cross_entropy"), sums.tolist()))
