"""Direct preference optimization: of two replies the chosen one becomes likelier than the rejected one (arXiv 2305.18290)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

from mmlora.encoding.loss import Supervised, log_probabilities
from mmlora.training.log import TrainingError


@dataclass(frozen=True)
class DPO:
    """How pairs of replies are turned into a loss."""

    beta: float = 0.1  # the paper's; larger stays nearer to the reference. With per_token 2 and more (SimPO's)
    label_smoothing: float = 0.0  # share of pairs taken to be the wrong way round: conservative DPO
    per_token: bool = False  # log-probabilities divided by the reply's tokens, so that length by itself does not pay
    reference: Literal["base", "start"] = "base"  # without the adapter; "start": with it as it is, after sft

    def __post_init__(self):
        if not self.beta > 0:
            raise TrainingError(f"beta is {self.beta}; give a number above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise TrainingError(f"label_smoothing is {self.label_smoothing}; give a share from 0 to below 0.5")


def scores(states: Supervised, settings: DPO) -> torch.Tensor:
    """The log-probability of each reply, float32 (batch,): the sum over its tokens, or their mean under `per_token`."""
    sums = states.by_sample(log_probabilities(states))
    return sums / states.counts if settings.per_token else sums


def dpo(policy: torch.Tensor, reference: torch.Tensor, settings: DPO) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss summed over pairs (0-dim) and the summed metrics, from `scores` (pairs, 2): the chosen reply's, the rejected's.

    A reward is beta times what the model's score is above the reference's; the margin is the chosen reply's reward less the
    rejected one's, and the accuracy the share of pairs whose margin is above 0. These are TRL's losses "sigmoid" and, with
    `per_token`, "sigmoid_norm" (SimPO's normalisation, 2405.14734, kept against a reference). Label smoothing is that of
    conservative DPO, which TRL's "sigmoid" leaves out and its "robust" corrects for.
    """
    rewards = settings.beta * (policy - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    smoothing = settings.label_smoothing
    losses = -(1 - smoothing) * logsigmoid(margins) - smoothing * logsigmoid(-margins)
    found = torch.cat([rewards, margins[:, None], margins[:, None] > 0], 1).detach().double().sum(0)
    return losses.sum(), dict(zip(("rewards_chosen", "rewards_rejected", "margin", "accuracy"), found.tolist()))
