"""What a model says after its prompts, a token at a time: rows leave when they have ended, and tokens find room kept for them."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.utils import ModelOutput

from mmlora.encoding.sample import SAID
from mmlora.models.vlm import VLM, base_model

ROOM = 16  # tokens that a KV cache grows by: growing copies it all, and so costs a sixteenth of what it would for each


class Roomy(DynamicLayer):
    """Keys and values of one layer, (rows, heads, length and room, size) each, with zeros where room is left.

    Attention gets the room too, and the mask hides it: every batched product would first copy a slice without it.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int):
        super().__init__()
        self.keys, self.values, self.length = keys, values, length
        self.device, self.dtype, self.is_initialized = keys.device, keys.dtype, True

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: object, **__: object) -> tuple:
        """Put in further tokens' keys and values; all of them, room included."""
        start, more = self.length, self.get_mask_sizes(keys.shape[2])[0] - self.keys.shape[2]
        self.length += keys.shape[2]
        if more:
            self.keys, self.values = (F.pad(t, (0, 0, 0, more)) for t in (self.keys, self.values))
        self.keys[:, :, start : self.length], self.values[:, :, start : self.length] = keys, values
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens so far, without the room."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a mask must cover after so many further tokens, and the first one's place."""
        lacking = max(0, self.length + query_length - self.keys.shape[2])
        return self.keys.shape[2] + -(-lacking // ROOM) * ROOM, 0


class Speech:
    """Prompts that a model has read, left-padded in one batch, with what was said after them: `hear` adds tokens."""

    def __init__(self, vlm: VLM, batch: dict[str, torch.Tensor], cache: Cache):
        self.model, self.cache, ids = vlm.model, cache, batch["input_ids"]
        self.tokens = {name: t for name, t in batch.items() if t.shape == ids.shape}
        deltas = getattr(_counter(vlm.model), "rope_deltas", None)
        self.deltas = torch.zeros_like(ids[:, :1]) if deltas is None else deltas

    @property
    def joins(self) -> bool:
        """Whether its cache is one key and value for each token and layer; sliding windows and others are not."""
        layers, length = self.cache.layers, self.tokens["input_ids"].shape[1]
        return all(type(one) is DynamicLayer and one.is_initialized and one.keys.shape[2] == length for one in layers)

    @property
    def nbytes(self) -> int:
        """Bytes of a cache that `joins`."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, int64 (rows,); a row may be taken more than once."""
        self.cache.batch_select_indices(rows)
        self.tokens, self.deltas = {name: t[rows] for name, t in self.tokens.items()}, self.deltas[rows]

    def hear(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> ModelOutput:
        """The model's output after further tokens, int64 (rows, length) each; `mask` is 0 where one is padding."""
        new = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}
        self.tokens = {
            name: torch.cat([t, new.get(name, torch.full_like(ids, SAID.get(name, 0)))], 1)
            for name, t in self.tokens.items()
        }
        # The model's own rule says what a forward over a filled cache needs: it differs between architectures.
        step = self.model.prepare_inputs_for_generation(
            **self.tokens, cache=self.cache, next_sequence_length=ids.shape[1], use_cache=True, is_first_iteration=False
        )
        places = (_places(self.tokens["attention_mask"]) + self.deltas)[:, -ids.shape[1] :]
        return self.model(**{**step, "position_ids": places})


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Each token's place in its row, as generation counts: padding on the left shifts nothing."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _counter(model: torch.nn.Module) -> torch.nn.Module | None:
    """The part that counts places itself where a picture moves what follows it, as in Qwen's models."""
    base = base_model(model)
    return next((part for part in (base.model, base) if hasattr(part, "get_rope_index")), None)


def begun(vlm: VLM, batch: dict[str, torch.Tensor], keep: int) -> tuple[ModelOutput, Speech]:
    """The prompts read: the model's output with the logits of the last `keep` positions, and the `Speech` to go on with."""
    counter, places = _counter(vlm.model), {"position_ids": _places(batch["attention_mask"])}
    if counter is not None:
        counter.rope_deltas = None  # of an earlier batch
        if "pixel_values" in batch:
            places = {}
    out = vlm.model(**batch, **places, use_cache=True, logits_to_keep=keep)
    return out, Speech(vlm, batch, out.cache)


def joined(parts: list[Speech]) -> Speech:
    """Speeches that join as one, in order, with room for what is said; a part's cache is let go of layer by layer."""
    first, length = parts[0], max(speech.tokens["input_ids"].shape[1] for speech in parts)

    def side_by_side(tensors: list[torch.Tensor], dim: int, room: int = 0) -> torch.Tensor:
        """All rows in one tensor, which end together."""
        return torch.cat([F.pad(t, (0, 0) * (t.dim() - 1 - dim) + (length - t.shape[dim], room)) for t in tensors])

    tokens = [speech.tokens for speech in parts]
    first.tokens = {
        name: side_by_side([some.get(name, torch.zeros_like(some["input_ids"])) for some in tokens], 1)
        for name in {name for some in tokens for name in some}
    }
    first.deltas = torch.cat([speech.deltas for speech in parts])
    for i in range(len(first.cache.layers)):
        both = ([getattr(speech.cache.layers[i], kind) for speech in parts] for kind in ("keys", "values"))
        keys, values = (side_by_side(tensors, 2, ROOM) for tensors in both)
        whole = Roomy(keys, values, length)
        for speech in parts:
            speech.cache.layers[i] = whole
    return first
