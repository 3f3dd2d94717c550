"""Pairs of replies as a training set for `dpo`, with the reference's log-probabilities computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from mmlora.encoding.conversation import Conversation
from mmlora.training.log import TrainingError
from mmlora.training.objectives.dpo import DPO, dpo, scores
from mmlora.training.objectives.kept import Source, kept, key_of, of_each


def both_replies(preferences: Iterable[tuple[Conversation, str]]) -> list[Conversation]:
    """What `Samples` takes: each conversation, which ends in the chosen reply, then the same with the rejected reply instead.

    Raises `TrainingError` for a pair whose replies are the same.
    """
    pairs = [(chosen, chosen.answered(rejected)) for chosen, rejected in preferences]
    for chosen, rejected in pairs:
        if chosen.reply == rejected.reply:
            raise TrainingError(f"the two replies of the pair {chosen.id} are the same; leave it out")
    return [conversation for pair in pairs for conversation in pair]


class PreferencePairs:
    """A training set (`training.settings.TrainingSet`) whose samples are pairs, and whose loss is a mean over pairs."""

    def __init__(self, source: Source, reference: torch.Tensor, settings: DPO, key: str):
        self.source, self.reference, self.settings = source, reference.view(-1, 2), settings
        self.ids = source.ids[::2]
        self.lengths = [max(pair) for pair in zip(source.lengths[::2], source.lengths[1::2])]
        self.fingerprint = hashlib.sha256(f"{key} {settings}".encode()).hexdigest()

    @classmethod
    def build(cls, model: nn.Module, source: Source, settings: DPO, file: Path | str) -> PreferencePairs:
        """With the reference's log-probabilities (float32) from `file`; computed where they are missing or of something else.

        `source` is `Samples` of `both_replies`, or its prefix cache. Raises `FileError`, and `TrainingError` for sharded weights.
        """
        base = settings.reference == "base"
        key = key_of(model, source, "dpo", settings.reference, settings.per_token, adapter=not base)

        def compute() -> dict[str, torch.Tensor]:
            with model.disable_adapter() if base and isinstance(model, PeftModel) else nullcontext():
                rows = of_each(model, source, lambda states: scores(states, settings).tolist())
            return {"log_probabilities": torch.tensor(rows)}

        return cls(source, kept(Path(file), key, compute)["log_probabilities"], settings, key)

    def __len__(self) -> int:
        return len(self.ids)

    def loss(self, model: nn.Module, indices: list[int]) -> tuple[torch.Tensor, int, dict[str, float]]:
        """The loss summed over these pairs, their number, and the summed metrics of `dpo`."""
        states = self.source.forward(model, [row for i in indices for row in (2 * i, 2 * i + 1)])
        policy = scores(states, self.settings).view(-1, 2)
        total, metrics = dpo(policy, self.reference[indices].to(policy.device), self.settings)
        return total, len(indices), metrics
