"""What every forward pass without gradients needs: batches that end together, evaluation mode, greedy generation.

Nothing here knows what the words are about.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from transformers import TextStreamer

from mmlora import guests
from mmlora.adapters.fused import fused
from mmlora.encoding.conversation import Conversation
from mmlora.encoding.loss import on_device
from mmlora.encoding.room import refuse_longer, room
from mmlora.encoding.sample import Sample, collate, encode
from mmlora.errors import MMLoraError
from mmlora.evaluation.speech import Speech, begun, joined
from mmlora.models import processes
from mmlora.models.precision import finite, mixed, products
from mmlora.models.vlm import VLM, base_model

READ = 64  # prompts in one forward pass: their products are large enough
CACHED = 2**30  # bytes of KV cache that are answered together, where more prompts are given
NAMED = 10  # the most ids that a message names
LEAVING = 0.75  # rows that have ended leave a batch when only so much of it still speaks: leaving copies all that stay


class InferenceError(MMLoraError):
    """A model that says nothing that could be read; the message says what to do."""


def generate(
    vlm: VLM,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
    ended: Callable[[int], object] = lambda count: None,
) -> tuple[list[str], int]:
    """Greedy replies to the prompts, and how many of them did not reach their end token.

    Prompts of like length are read `READ` at a time and answered together, as far as `CACHED` allows; `ended` hears how
    many more replies are done. A reply is cut at the model's context length, and a warning names the replies cut there.
    Raises `EncodingError` for a prompt that leaves no room for a reply, and `InferenceError` where the first logits are not
    finite, as some models' are in float16.
    """
    tokenizer = vlm.processor.tokenizer
    samples = [encode(vlm.processor, conversation) for conversation in conversations]
    left = [_left(vlm, sample) for sample in samples]
    order = sorted(range(len(samples)), key=lambda i: -len(samples[i]))
    begins = _begun(vlm, [samples[i] for i in order])
    said = torch.cat([_said(vlm, logits, speech, max_new_tokens, ended) for logits, speech in begins])
    cut = (said != tokenizer.eos_token_id).all(-1).tolist()
    _warn_of_room(vlm, [samples[i].id for i, unfinished in zip(order, cut) if unfinished and left[i] < max_new_tokens])
    texts = dict(zip(order, decoded(tokenizer, said), strict=True))
    return [texts[i] for i in range(len(samples))], sum(cut)


def decoded(tokenizer: Any, rows: Sequence[Sequence[int]] | torch.Tensor) -> list[str]:
    """The texts of these tokens, without special tokens and outer white space; inner white space stays as it is."""
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]


def _left(vlm: VLM, sample: Sample) -> int:
    """How many tokens a reply to this prompt may have. Raises `EncodingError` if none."""
    refuse_longer(sample.id, len(sample) + 1, room(vlm.model))
    return room(vlm.model) - len(sample)


def _warn_of_room(vlm: VLM, ids: Sequence[str]) -> None:
    """Warn that these replies were cut at the model's context length."""
    if ids:
        named = ", ".join(ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
        warnings.warn(
            f"the replies to {named} ({len(ids)} in all) were cut at the {room(vlm.model)} tokens that the model can read",
            stacklevel=3,
        )


def _begun(vlm: VLM, samples: Sequence[Sample]) -> Iterator[tuple[torch.Tensor, Speech]]:
    """All samples read, as many in one `Speech` as are answered together: logits of their first words, (rows, vocabulary)."""
    read: list[tuple[torch.Tensor, Speech]] = []
    for at in range(0, len(samples), READ):
        out, speech = begun(vlm, left_padded(vlm, samples[at : at + READ]), 1)
        if not out.logits.isfinite().all():
            raise InferenceError(f"what {vlm.name} would say next is not finite in {products()}; {finite()}")
        if not speech.joins:
            yield out.logits[:, -1], speech
            continue
        read.append((out.logits[:, -1], speech))
        if at + READ >= len(samples) or sum(part.nbytes for _, part in read) + speech.nbytes > CACHED:
            yield torch.cat([logits for logits, _ in read]), joined([part for _, part in read])
            read = []


def _said(
    vlm: VLM, logits: torch.Tensor, speech: Speech, max_new_tokens: int, ended: Callable[[int], object]
) -> torch.Tensor:
    """The tokens of each row, int64 (rows, max_new_tokens), from the logits of the first; padding after the end token and
    beyond the model's context length."""
    end = vlm.processor.tokenizer.eos_token_id
    said = torch.full((len(logits), max_new_tokens), _pad(vlm), device=logits.device)
    speaking = torch.arange(len(said), device=said.device)
    over = torch.zeros(len(said), dtype=torch.bool, device=said.device)
    left = room(vlm.model) - speech.tokens["attention_mask"].sum(-1)
    for at in range(max_new_tokens):
        tokens = logits.max(-1).indices  # argmax takes three times as long in bfloat16
        said[speaking[~over], at] = tokens[~over]
        last = ~over & ((tokens == end) | (left == at + 1))
        over = over | last
        ended(int(last.sum()))
        if at + 1 == max_new_tokens or over.all():
            break
        kept = (~over).nonzero()[:, 0]
        if len(kept) <= LEAVING * len(over):
            speech.keep(kept)
            speaking, tokens, over, left = speaking[kept], tokens[kept], over[kept], left[kept]
        logits = speech.hear(tokens[:, None]).logits[:, -1]
    ended(int((~over).sum()))
    return said


def ask(vlm: VLM, text: str, picture: Image.Image | None = None, max_new_tokens: int = 80) -> str:
    """Ask the model anything: its greedy reply, printed word by word as it comes, and returned.

    It is cut at the model's context length, with a warning. Raises `EncodingError` for a picture that cannot be read, for
    anything else that the processor cannot encode, and for a text that leaves no room for a reply.
    """
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise InferenceError(f"max_new_tokens is {max_new_tokens!r}; give a whole number above 0")
    tokenizer = vlm.processor.tokenizer
    asked = encode(vlm.processor, Conversation("yours", text, () if picture is None else (picture,)))
    left = _left(vlm, asked)
    batch = left_padded(vlm, [asked])
    with evaluating(vlm):
        row = vlm.model.generate(
            **batch,
            max_new_tokens=min(max_new_tokens, left),
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=_pad(vlm),
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )[0, batch["input_ids"].shape[1] :]
    if left < max_new_tokens and tokenizer.eos_token_id not in row:
        _warn_of_room(vlm, [asked.id])
    return decoded(tokenizer, row[None])[0]


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
