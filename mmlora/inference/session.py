"""A decoding session: the prompts' prefill, then decode steps on their KV cache, for a batch of rows.

Rows leave a session when they have ended, are repeated where a prompt gets several replies, and sessions are concatenated
so that prompts of different prefill batches are answered together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import functional as F
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.utils import ModelOutput

from mmlora.adapters.fused import fused
from mmlora.adapters.named import adapter_per_row
from mmlora.encoding.loss import on_device
from mmlora.encoding.sample import SAID, Sample, collate
from mmlora.models import processes
from mmlora.models.precision import mixed
from mmlora.models.vlm import VLM, base_model, evaluation_mode

SPARE = 16  # tokens that a KV cache grows by: growing copies all of it, so this divides the copies by sixteen


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, (rows, heads, length + spare, size) each, with zeros in the spare places.

    Attention gets the spare places too, and the mask hides them: a slice without them would be copied by every batched product.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int):
        super().__init__()
        self.keys, self.values = keys, values
        self.length = length
        self.device, self.dtype = keys.device, keys.dtype
        self.is_initialized = True

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: object, **__: object) -> tuple:
        """Add further tokens' keys and values; all of them, spare places included."""
        start = self.length
        lacking = self.get_mask_sizes(keys.shape[2])[0] - self.keys.shape[2]
        self.length += keys.shape[2]
        if lacking:
            self.keys, self.values = (F.pad(t, (0, 0, 0, lacking)) for t in (self.keys, self.values))
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens so far, without the spare places."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a mask must cover after `query_length` further tokens, and the position of the first."""
        lacking = max(0, self.length + query_length - self.keys.shape[2])
        return self.keys.shape[2] + -(-lacking // SPARE) * SPARE, 0


class Session:
    """Prompts after their prefill, left-padded in one batch, with their KV cache; `decode_step` adds tokens.

    `tokens`: `input_ids`, `attention_mask` and what else the architecture takes for each token, int64 (rows, length).
    `offsets`: what a picture shifts the positions behind it by, int64 (rows, 1).
    `adapters`: the adapter of each row, by peft's names; None where the active one computes all of them.
    """

    def __init__(self, vlm: VLM, batch: dict[str, torch.Tensor], cache: Cache, adapters: list[str] | None = None):
        ids = batch["input_ids"]
        offsets = getattr(_position_module(vlm.model), "rope_deltas", None)
        self.model = vlm.model
        self.cache = cache
        self.tokens = {name: t for name, t in batch.items() if t.shape == ids.shape}
        self.offsets = torch.zeros_like(ids[:, :1]) if offsets is None else offsets
        self.adapters = adapters

    @property
    def can_concatenate(self) -> bool:
        """Whether every layer caches one key and value for each token; sliding windows, for one, do not."""
        length = self.tokens["input_ids"].shape[1]
        layers = self.cache.layers
        return all(type(one) is DynamicLayer and one.is_initialized and one.keys.shape[2] == length for one in layers)

    @property
    def nbytes(self) -> int:
        """Bytes of a KV cache that `can_concatenate`."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, int64 (rows,); a row may be taken more than once."""
        self.cache.batch_select_indices(rows)
        self.tokens = {name: t[rows] for name, t in self.tokens.items()}
        self.offsets = self.offsets[rows]
        if self.adapters is not None:
            self.adapters = [self.adapters[row] for row in rows.tolist()]

    def decode_step(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> ModelOutput:
        """The model's output for further tokens, int64 (rows, length); `mask` is 0 where one is padding."""
        new = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}
        self.tokens = {
            name: torch.cat([t, new.get(name, torch.full_like(ids, SAID.get(name, 0)))], 1)
            for name, t in self.tokens.items()
        }
        # Architectures differ in what a forward pass on a filled cache needs, so the model's own method prepares it.
        inputs = self.model.prepare_inputs_for_generation(
            **self.tokens, cache=self.cache, next_sequence_length=ids.shape[1], use_cache=True, is_first_iteration=False
        )
        positions = (_positions(self.tokens["attention_mask"]) + self.offsets)[:, -ids.shape[1] :]
        return self.model(**{**inputs, "position_ids": positions}, **_adapter_names(self.adapters))


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Position of each token in its row, as generation counts: padding on the left does not shift it."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _position_module(model: torch.nn.Module) -> torch.nn.Module | None:
    """The module that computes position ids itself because a picture shifts those behind it (Qwen's multimodal RoPE)."""
    base = base_model(model)
    return next((part for part in (base.model, base) if hasattr(part, "get_rope_index")), None)


def _adapter_names(adapters: list[str] | None) -> dict[str, list[str]]:
    """What an adapted model is told about a mixed batch; nothing otherwise."""
    return {} if adapters is None else {"adapter_names": adapters}


def prefill(
    vlm: VLM, batch: dict[str, torch.Tensor], logits_to_keep: int, adapters: Sequence[str | None] | None = None
) -> tuple[ModelOutput, Session]:
    """One forward pass over the prompts: the output with the last `logits_to_keep` positions' logits, and the session.

    `adapters` names the adapter of each row, None for the base alone. Raises `AdapterError` for those that cannot be mixed.
    """
    names = None if adapters is None else adapter_per_row(vlm.model, adapters)
    module = _position_module(vlm.model)
    positions = {"position_ids": _positions(batch["attention_mask"])}
    if module is not None:
        module.rope_deltas = None  # of an earlier batch
        if "pixel_values" in batch:
            positions = {}
    out = vlm.model(**batch, **positions, use_cache=True, logits_to_keep=logits_to_keep, **_adapter_names(names))
    return out, Session(vlm, batch, out.cache, names)


def concatenated(sessions: list[Session]) -> Session:
    """Sessions that `can_concatenate` as one, rows in order, with spare places; each part's cache is freed layer by layer."""
    first = sessions[0]
    length = max(session.tokens["input_ids"].shape[1] for session in sessions)

    def stacked(tensors: list[torch.Tensor], dim: int, spare: int = 0) -> torch.Tensor:
        """All rows in one tensor, padded on the left of `dim` to one length."""
        return torch.cat([F.pad(t, (0, 0) * (t.dim() - 1 - dim) + (length - t.shape[dim], spare)) for t in tensors])

    tokens = [session.tokens for session in sessions]
    first.tokens = {
        name: stacked([some.get(name, torch.zeros_like(some["input_ids"])) for some in tokens], 1)
        for name in {name for some in tokens for name in some}
    }
    first.offsets = torch.cat([session.offsets for session in sessions])
    if first.adapters is not None:
        first.adapters = [name for session in sessions for name in session.adapters or ()]
    for i in range(len(first.cache.layers)):
        both = ([getattr(session.cache.layers[i], kind) for session in sessions] for kind in ("keys", "values"))
        keys, values = (stacked(tensors, 2, SPARE) for tensors in both)
        whole = GrowingLayer(keys, values, length)
        for session in sessions:
            session.cache.layers[i] = whole
    return first


def left_padded(vlm: VLM, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """One batch on the model's device whose rows end together, as generation needs it; without labels."""
    batch = on_device(vlm.model, collate(samples, side="left"))
    del batch["labels"]
    tokenizer = vlm.processor.tokenizer
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    batch["input_ids"][batch["attention_mask"] == 0] = pad
    return batch


@contextmanager
def evaluating(vlm: VLM, layers: fused | None = None) -> Iterator[None]:
    """Evaluation mode without gradients, in the machine's precision; all modules' training flags are restored.

    `layers` are fused layers to enter again, so that what they prepared in an earlier call is not prepared anew.
    """
    without = torch.no_grad if processes.sharded() else torch.inference_mode  # a shard's buffers serve training too
    with evaluation_mode(vlm.model), without(), mixed(vlm.model.device), layers or fused(vlm.model):
        yield
