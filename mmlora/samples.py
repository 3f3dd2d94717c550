"""Problems as batches: tokens padded, pictures joined, and the loss over what is supervised."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from mmlora.loss import IGNORED, supervised_loss
from mmlora.models import VLM, base_model
from mmlora.prompts import Format, PromptError, Sample, encode
from mmlora.scienceqa import Problem


def collate(samples: Sequence[Sample], side: str = "right", stride: int = 1) -> dict[str, torch.Tensor]:
    """`input_ids`, `labels`, `attention_mask` and what else is known of every token, (batch, length), padded on `side`;
    and the pictures of all samples one after the other. `length` is the longest one's, rounded up to `stride`."""

    def pad(rows, value=0):
        length = -(-max(map(len, rows)) // stride) * stride
        padded = pad_sequence([*rows, rows[0].new_empty(length)], True, value, padding_side=side)
        return padded[:-1]

    names = {name: None for s in samples for name in s.tokens}
    batch = {name: pad([s.tokens[name] if name in s.tokens else torch.zeros_like(s.input_ids) for s in samples])
             for name in names}
    batch["labels"] = pad([s.labels for s in samples], IGNORED)
    batch["attention_mask"] = pad([torch.ones_like(s.input_ids) for s in samples])
    for name in {name: None for s in samples for name in s.pictures}:
        batch[name] = _joined([s.pictures[name] for s in samples if name in s.pictures])
    return batch


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """One after the other; where the other dimensions differ (a picture cut into more tiles), zeros fill them up."""
    sizes = [max(s) for s in zip(*(t.shape[1:] for t in tensors))]
    whole = tensors[0].new_zeros(sum(len(t) for t in tensors), *sizes)
    start = 0
    for t in tensors:
        whole[(slice(start, start + len(t)), *(slice(n) for n in t.shape[1:]))] = t
        start += len(t)
    return whole


class Samples:
    """Problems encoded on the fly: the plain path, and the reference that the cache is tested against."""

    def __init__(self, vlm: VLM, problems: list[Problem], format: Format):
        self.processor, self.problems, self.format = vlm.processor, problems, format
        digest = hashlib.sha256(format.encode())
        self.ids, self.rows = [p.id for p in problems], []
        for problem in tqdm(problems, desc="encode", leave=False):
            sample = encode(vlm.processor, problem, format)
            _update(digest, sample)
            self.rows.append(_without_pixels(sample))
        self.lengths, self.fingerprint = [len(row) for row in self.rows], digest.hexdigest()
        self._check_lengths(vlm.model.config.get_text_config().max_position_embeddings)

    def _check_lengths(self, room: int):
        """Nothing is ever cut short, so what does not fit is an error before anything is computed."""
        long = [i for i, length in enumerate(self.lengths) if length > room]
        if long:
            named = ", ".join(f"{self.ids[i]} ({self.lengths[i]} tokens)" for i in long[:5])
            raise PromptError(f"{len(long)} of {len(self.ids)} problems do not fit in the model's {room} tokens: {named}; leave "
                              "them out, or give load_vlm a smaller side for their pictures")

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> Sample:
        return encode(self.processor, self.problems[index], self.format)

    def loss(self, model, indices: list[int]) -> tuple[torch.Tensor, int]:
        """Summed loss over the supervised tokens of these samples, and their number."""
        return batch_loss(model, on_device(model, collate([self[i] for i in indices])))


def on_device(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch where the model is, its pictures in the model's precision."""
    model = base_model(model)
    return {n: t.to(model.device, model.dtype if t.is_floating_point() else t.dtype) for n, t in batch.items()}


def batch_loss(model, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Summed loss over the supervised tokens of a batch, and their number."""
    model, labels = base_model(model), batch.pop("labels")
    hidden = model.model(**batch, use_cache=False)[0]
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return supervised_loss(hidden, model.get_output_embeddings(), labels, cap)


def _without_pixels(sample: Sample) -> Sample:
    """What is needed beside the states that were kept: a grid or size of a picture places its tokens."""
    small = {n: t for n, t in sample.pictures.items() if t.dim() <= 2 and not t.is_floating_point()}
    return replace(sample, pictures=small)


def _update(digest, sample: Sample) -> None:
    for tensor in (*sample.tokens.values(), sample.labels, *sample.pictures.values()):
        digest.update(tensor.contiguous().numpy().tobytes())
