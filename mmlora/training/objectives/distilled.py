"""Conversations as a training set for `distill`, with a teacher's distributions computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from mmlora.encoding.loss import Supervised, token_losses
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.samples import Samples
from mmlora.models.vlm import VLM, base_model
from mmlora.training.log import TrainingError
from mmlora.training.objectives.distill import Distillation, distill, outcomes
from mmlora.training.objectives.kept import Source, kept, key_of, of_each

LEAST = torch.finfo(torch.float16).min  # a log-probability of what is impossible


class Distilled:
    """A training set (`training.settings.TrainingSet`): a source's samples with what a teacher says of their supervised tokens.

    `tensors`: `ids` int32 (tokens, top), `log_probabilities` float16 (tokens, top), or (tokens, top + 1) with the rest's, and
    `targets` int32 (tokens,), the samples one after the other; `counts` int64 (samples,), tokens of each.
    """

    def __init__(self, source: Source, tensors: dict[str, torch.Tensor], settings: Distillation, key: str):
        self.source, self.settings = source, settings
        self.ids, self.lengths = source.ids, source.lengths
        self.fingerprint = hashlib.sha256(f"{source.fingerprint} {key} {settings}".encode()).hexdigest()
        counts = tensors["counts"].tolist()
        names = "ids", "log_probabilities", "targets"
        self.rows = list(zip(*(tensors[name].split(counts) for name in names)))

    @classmethod
    def build(
        cls, model: nn.Module, source: Source, teacher: VLM, settings: Distillation, file: Path | str
    ) -> Distilled:
        """With the distributions of `teacher` from `file`, computed where they are missing or of something else.

        Each model reads the conversations through its own processor. Raises `TrainingError` where their vocabularies differ and
        for sharded weights, `FileError` where the disk refuses.
        """
        samples = source.samples if isinstance(source, PrefixCache) else source
        if samples.processor.tokenizer.get_vocab() != teacher.processor.tokenizer.get_vocab():
            raise TrainingError(
                f"the teacher {teacher.name} has another vocabulary than the student, so its tokens mean something else; choose a "
                "teacher with the same tokenizer"
            )
        theirs = Samples(teacher, samples.conversations)
        size = len(base_model(model).get_output_embeddings().weight)
        key = key_of(teacher.model, theirs, "distill", settings.top, settings.temperature, size)

        def rows(states: Supervised) -> list[tuple[torch.Tensor, ...]]:
            ids, values = most_probable(states, settings, size)
            parts = (each.cpu().split(states.counts.tolist()) for each in (ids, values, states.targets.int()))
            return list(zip(*parts))

        def compute() -> dict[str, torch.Tensor]:
            with _frozen(teacher.model):
                found = of_each(teacher.model, theirs, rows)
            ids, values, targets = (torch.cat(parts) for parts in zip(*found))
            counts = torch.tensor([len(row[0]) for row in found])
            return {"ids": ids, "log_probabilities": values, "targets": targets, "counts": counts}

        return cls(source, kept(Path(file), key, compute), settings, key)

    def __len__(self) -> int:
        return len(self.ids)

    def loss(self, model: nn.Module, indices: list[int]) -> tuple[torch.Tensor, int, dict[str, float]]:
        """The loss summed over the supervised tokens of these samples, their number, and the summed metrics of `distill`.

        Raises `TrainingError` where the teacher was asked about other tokens, as by another chat template.
        """
        states = self.source.forward(model, indices)
        device = states.targets.device
        ids, values, targets = (torch.cat(parts).to(device) for parts in zip(*(self.rows[i] for i in indices)))
        if not torch.equal(targets.long(), states.targets):
            names = ", ".join(str(self.ids[i]) for i in indices[:8])
            raise TrainingError(
                f"teacher and student supervise other tokens in one of the samples {names}: their chat templates differ; choose a "
                "teacher with the student's template"
            )
        total, metrics = distill(states, ids.long(), values, self.settings)
        return total, len(targets), metrics


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter trains, so that a vocabulary projection that could is an ordinary one all the same."""
    training = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in training:
            parameter.requires_grad_(True)


def most_probable(states: Supervised, settings: Distillation, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A teacher's most probable tokens, int32 (tokens, top), and their log-probabilities in float16, with the rest's behind.

    Only among the first `size` tokens, the rows of the student's vocabulary projection: what lies beyond pads the teacher's.
    """

    def columns(logits: torch.Tensor, part: slice) -> torch.Tensor:
        found = (logits[:, :size] / settings.temperature).log_softmax(1)
        ids = found.topk(min(settings.top, found.shape[1]), 1).indices
        return torch.cat([ids, outcomes(found, ids, rest=ids.shape[1] < size).clamp_min(LEAST)], 1)

    found = token_losses(states, columns)
    top = found.shape[1] // 2
    return found[:, :top].int(), found[:, top:].half()
