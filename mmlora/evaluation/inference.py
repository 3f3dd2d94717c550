"""What every forward pass without gradients needs: batches that end together, evaluation mode, greedy generation.

Nothing here knows what the words are about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image
from transformers import Cache, TextStreamer
from transformers.utils import ModelOutput

from mmlora import guests
from mmlora.adapters.fused import fused
from mmlora.encoding.conversation import Conversation
from mmlora.encoding.loss import on_device
from mmlora.encoding.sample import SAID, Sample, collate, encode
from mmlora.errors import MMLoraError
from mmlora.models import processes
from mmlora.models.precision import finite, mixed, products
from mmlora.models.vlm import VLM, base_model


class InferenceError(MMLoraError):
    """A model that says nothing that could be read; the message says what to do."""


def generate(vlm: VLM, conversations: Sequence[Conversation], max_new_tokens: int) -> tuple[list[str], int]:
    """Greedy replies to the prompts, and how many of them did not reach their end token.

    The batch shrinks as replies end: a row that has said everything costs nothing more. Raises `InferenceError` where the
    first logits are not finite, as some models' are in float16.
    """
    tokenizer, pad = vlm.processor.tokenizer, _pad(vlm)
    batch = left_padded(vlm, [encode(vlm.processor, conversation) for conversation in conversations])
    out, speech = begun(vlm, batch, 1)
    if not out.logits.isfinite().all():
        raise InferenceError(f"what {vlm.name} would say next is not finite in {products()}; {finite()}")
    said = torch.full((len(conversations), max_new_tokens), pad, device=batch["input_ids"].device)
    speaking = torch.arange(len(said), device=said.device)
    for at in range(max_new_tokens):
        tokens = out.logits[:, -1].argmax(-1)
        said[speaking, at] = tokens
        goes_on = tokens != tokenizer.eos_token_id
        if at + 1 == max_new_tokens or not goes_on.any():
            break
        if not goes_on.all():
            kept = goes_on.nonzero()[:, 0]
            speech.keep(kept)
            speaking, tokens = speaking[kept], tokens[kept]
        out = speech.hear(tokens[:, None])
    unfinished = int((said != tokenizer.eos_token_id).all(-1).sum())
    return [text.strip() for text in tokenizer.batch_decode(said, skip_special_tokens=True)], unfinished


class Speech:
    """Prompts that a model has read, left-padded in one batch, with what was said after them: `hear` adds tokens."""

    def __init__(self, vlm: VLM, batch: dict[str, torch.Tensor], cache: Cache):
        self.model, self.cache = vlm.model, cache
        self.deltas = getattr(base_model(vlm.model).model, "rope_deltas", None)
        shape = batch["input_ids"].shape
        self.tokens = {name: t for name, t in batch.items() if t.shape == shape}

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, int64 (rows,); a row may be taken more than once."""
        self.cache.batch_select_indices(rows)
        self.tokens = {name: t[rows] for name, t in self.tokens.items()}
        if self.deltas is not None:
            self.deltas = self.deltas[rows]

    def hear(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> ModelOutput:
        """The model's output after further tokens, int64 (rows, length) each; `mask` is 0 where one is padding."""
        new = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}
        self.tokens = {
            name: torch.cat([t, new.get(name, torch.full_like(ids, SAID.get(name, 0)))], 1)
            for name, t in self.tokens.items()
        }
        whole = dict(self.tokens)
        if self.deltas is not None:  # Qwen's models count on from where a row's picture moved them
            whole["position_ids"] = (whole["attention_mask"].cumsum(-1) - 1 + self.deltas).expand(3, -1, -1)
        # The model's own rule says what a forward over a filled cache needs: it differs between architectures.
        step = self.model.prepare_inputs_for_generation(
            **whole, cache=self.cache, next_sequence_length=ids.shape[1], use_cache=True, is_first_iteration=False
        )
        return self.model(**step)


def begun(vlm: VLM, batch: dict[str, torch.Tensor], keep: int) -> tuple[ModelOutput, Speech]:
    """The prompts read: the model's output with the logits of the last `keep` positions, and the `Speech` to go on with."""
    core = base_model(vlm.model).model
    if hasattr(core, "rope_deltas"):
        core.rope_deltas = None  # of an earlier batch
    out = vlm.model(**batch, use_cache=True, logits_to_keep=keep)
    return out, Speech(vlm, batch, out.cache)


def ask(vlm: VLM, text: str, picture: Image.Image | None = None, max_new_tokens: int = 80) -> str:
    """Ask the model anything: its greedy reply, printed word by word as it comes, and returned.

    Raises `EncodingError` for a picture that cannot be read.
    """
    tokenizer = vlm.processor.tokenizer
    asked = Conversation("yours", text, () if picture is None else (picture,))
    batch = left_padded(vlm, [encode(vlm.processor, asked)])
    with evaluating(vlm):
        row = vlm.model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=_pad(vlm),
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )[0, batch["input_ids"].shape[1] :]
    return tokenizer.decode(row, skip_special_tokens=True).strip()


def reader(vlm: VLM) -> Callable[[Image.Image], str] | None:
    """A function from a picture to the words that the model reads in it; None where its guest has no `words_read`."""
    guest = guests.guest("models", base_model(vlm.model).config.model_type)
    words_read = getattr(guest, "words_read", None)
    if words_read is None:
        return None
    return lambda picture: " ".join("".join(word for word, _ in words_read(vlm, picture)).split())  # silence is no line


def left_padded(vlm: VLM, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """One batch whose rows end together."""
    batch = on_device(vlm.model, collate(samples, side="left"))
    del batch["labels"]
    batch["input_ids"][batch["attention_mask"] == 0] = _pad(vlm)
    return batch


def _pad(vlm: VLM) -> int:
    tokenizer = vlm.processor.tokenizer
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


@contextmanager
def evaluating(vlm: VLM) -> Iterator[None]:
    """Evaluation mode without gradients; the training flags of all modules come back as they were."""
    training: list[torch.nn.Module] = [m for m in vlm.model.modules() if m.training]
    vlm.model.eval()
    without = torch.no_grad if processes.sharded() else torch.inference_mode  # a shard's buffers serve training too
    try:
        with without(), mixed(vlm.model.device), fused(vlm.model):
            yield
    finally:
        for module in training:
            module.training = True
