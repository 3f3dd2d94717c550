"""What a model says after its prompts, a token at a time: rows leave when they have ended, and tokens find room kept for them."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.utils import ModelOutput

from mmlora.encoding.sample import SAID
from mmlora.models.memory import HELD
from mmlora.models.vlm import VLM, base_model

ROOM = 16  # tokens that a KV cache grows by: growing copies it all, and so costs a sixteenth of what it would for each


class Roomy(DynamicLayer):
    """Keys and values of one layer, (rows, heads, length and room, size) each, with zeros where room is left.

    Attention gets all of it, and the mask hides the room: a part of a tensor would be copied whole by every batched product.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.keys, self.values, self.length = keys, values, keys.shape[2]
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
        lacking = self.length + query_length - self.keys.shape[2]
        return self.keys.shape[2] + (-(-lacking // ROOM) * ROOM if lacking > 0 else 0), 0


class Speech:
    """Prompts that a model has read, left-padded in one batch, with what was said after them: `hear` adds tokens."""

    def __init__(self, vlm: VLM, batch: dict[str, torch.Tensor], cache: Cache):
        self.model, self.cache, ids = vlm.model, cache, batch["input_ids"]
        self.tokens = {name: t for name, t in batch.items() if t.shape == ids.shape}
        deltas = getattr(base_model(vlm.model).model, "rope_deltas", None)
        self.deltas = torch.zeros_like(ids[:, :1]) if deltas is None else deltas

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
        return self.model(**{**step, "position_ids": places.expand(3, -1, -1) if _moves(self.model) else places})


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Each token's place in its row, as generation counts: padding on the left shifts nothing."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _moves(model: torch.nn.Module) -> bool:
    """Whether pictures move what follows them, as Qwen's do: places have three parts, and each row an offset after them."""
    return hasattr(base_model(model).model, "rope_deltas")


def begun(vlm: VLM, batch: dict[str, torch.Tensor], keep: int) -> tuple[ModelOutput, Speech]:
    """The prompts read: the model's output with the logits of the last `keep` positions, and the `Speech` to go on with."""
    places, counted = _places(batch["attention_mask"]), {}
    if not _moves(vlm.model):
        counted = {"position_ids": places}
    else:
        base_model(vlm.model).model.rope_deltas = None  # of an earlier batch
        if "pixel_values" not in batch:  # or else it counts itself
            counted = {"position_ids": places.expand(3, -1, -1)}
    out = vlm.model(**batch, **counted, use_cache=True, logits_to_keep=keep)
    return out, Speech(vlm, batch, out.cache)


def joined(parts: list[Speech]) -> list[Speech]:
    """The speeches as one, in order, with room for what is said; as they are where the cache is of another kind or too large.

    A step costs little more for many rows than for few.
    """
    layers = [layer for speech in parts for layer in speech.cache.layers]
    if any(
        type(layer) is not DynamicLayer or not layer.is_initialized for layer in layers
    ):  # sliding windows and others
        return parts
    if len(parts) > 1 and sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) > HELD:
        return [whole for speech in parts for whole in joined([speech])]
    first, length = parts[0], max(speech.tokens["input_ids"].shape[1] for speech in parts)

    def beside(tensors: list[torch.Tensor], dim: int) -> torch.Tensor:
        """All rows in one tensor, their ends side by side."""
        return torch.cat([F.pad(t, (0, 0) * (t.dim() - 1 - dim) + (length - t.shape[dim], 0)) for t in tensors])

    first.tokens = {name: beside([speech.tokens[name] for speech in parts], 1) for name in first.tokens}
    first.deltas = torch.cat([speech.deltas for speech in parts])
    for i in range(len(first.cache.layers)):
        one = [speech.cache.layers[i] for speech in parts]
        whole = Roomy(beside([layer.keys for layer in one], 2), beside([layer.values for layer in one], 2))
        for speech in parts:
            speech.cache.layers[i] = whole  # lets go of the part
    return [first]
