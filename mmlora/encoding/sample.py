"""From a conversation to tokens: labels that cover the reply only, and batches of samples.

Nothing is ever cut short, and nothing here knows what the conversation is about.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PaliGemmaProcessor

from mmlora.encoding.conversation import Conversation, EncodingError
from mmlora.encoding.loss import IGNORED
from mmlora.encoding.marks import STANDS_IN, marks
from mmlora.encoding.naming import naming
from mmlora.problems.pictures import rgb

#: What tells the model's own words from the prompt, where an architecture asks (PaliGemma reads a prompt both ways).
SAID = {"token_type_ids": 1}

#: What Pillow raises for a damaged file, and what an object that is no picture raises.
BROKEN = (OSError, SyntaxError, ValueError, TypeError, AttributeError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Sample:
    """One conversation as tensors.

    `tokens`: `input_ids` and what else the architecture wants to know of every token, int64 (length,) each. `labels`:
    int64 (length,). `pictures`: what the processor made of the pictures, each with a leading dimension of 1; empty
    without one.
    """

    id: str
    tokens: dict[str, torch.Tensor]
    labels: torch.Tensor
    pictures: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """What it takes in memory, its pictures included."""
        return sum(t.nbytes for t in (*self.tokens.values(), self.labels, *self.pictures.values()))

    @property
    def input_ids(self) -> torch.Tensor:
        return self.tokens["input_ids"]

    def followed_by(self, ids: Sequence[int]) -> Sample:
        """The same with the tokens that the model should say next."""
        said = torch.tensor(ids, dtype=self.input_ids.dtype)
        tokens = {
            name: torch.cat([row, said if name == "input_ids" else torch.full_like(said, SAID.get(name, 0))])
            for name, row in self.tokens.items()
        }
        return replace(self, tokens=tokens, labels=torch.cat([self.labels, said]))


def encode(processor: Any, conversation: Conversation) -> Sample:
    """Tokens of the user's turn and, where there is a reply, of it and its end token; only these are supervised.

    Special tokens in the prompt or reply are ordinary text. Raises `EncodingError`, with the conversation's id, for a picture
    that cannot be read and for anything else that the processor cannot encode.
    """
    id, prompt, reply = conversation.id, conversation.prompt, conversation.reply
    with naming(id, prompt, reply or ""):
        data = user_turn(processor, prompt, tuple(readable(id, picture) for picture in conversation.pictures))
        shape = data["input_ids"].shape
        tokens = {n: t[0].long() for n, t in data.items() if n not in ("attention_mask", "labels") and t.shape == shape}
        seen = {n: t for n, t in data.items() if t.shape != shape}
        sample = Sample(id, tokens, torch.full_like(tokens["input_ids"], IGNORED), seen)
        return sample if reply is None else sample.followed_by(reply_tokens(processor, reply, prompt))


def user_turn(processor: Any, prompt: str, pictures: Sequence[Image.Image] = ()) -> BatchFeature:
    """What the processor makes of a user's turn, up to where the assistant speaks: a batch of one, as a model takes it."""
    text, known = _asked(processor, prompt, len(pictures)), marks(processor)
    if prompt.strip() in text and not known.stand_in(prompt):
        return _processed(processor, text, pictures)
    twin = copy.copy(processor)
    twin.tokenizer = known.twin
    data = _processed(twin, _asked(processor, STANDS_IN, len(pictures)), pictures)
    return _spelled(data, known.twin.convert_tokens_to_ids(STANDS_IN), known.plain(prompt))


def _asked(processor: Any, prompt: str, pictures: int = 0) -> str:
    """The user's turn as the chat template writes it."""
    if processor.chat_template:
        return processor.apply_chat_template(_turn(prompt, pictures), add_generation_prompt=True)
    # PaliGemma has no turns: its processor puts the picture first and ends the prompt with a line break
    return (processor.image_token or "") * pictures + prompt


def _processed(processor: Any, text: str, pictures: Sequence[Image.Image]) -> BatchFeature:
    """The processor's own batch of this text and these pictures."""
    if pictures:
        return processor(images=list(pictures), text=[text], return_tensors="pt")
    if isinstance(processor, PaliGemmaProcessor):  # it takes no text without a picture
        data = processor.tokenizer([f"{processor.tokenizer.bos_token}{text}\n"], return_tensors="pt")
        return BatchFeature({**data, "token_type_ids": torch.zeros_like(data["input_ids"])})
    return processor(text=[text], return_tensors="pt")


def _spelled(data: BatchFeature, stand_in: int, tokens: list[int]) -> BatchFeature:
    """The batch with the stand-in replaced by these tokens, in every tensor that has one number for each token."""
    ids = data["input_ids"]
    place = ids[0] == stand_in
    if not place.any():
        raise ValueError("its chat template leaves out what the user says")
    counts = torch.where(place, len(tokens), 1)
    whole = {n: t.repeat_interleave(counts, 1) if t.shape == ids.shape else t for n, t in data.items()}
    whole["input_ids"][whole["input_ids"] == stand_in] = torch.tensor(tokens * int(place.sum()), dtype=ids.dtype)
    return BatchFeature(whole)


def _turn(prompt: str, pictures: int = 0) -> list[dict]:
    return [{"role": "user", "content": [*[{"type": "image"}] * pictures, {"type": "text", "text": prompt}]}]


def reply_tokens(processor: Any, reply: str, prompt: str = "") -> list[int]:
    """Tokens of a reply as the chat template writes it in the assistant's turn, up to and with the end token.

    The end token stands at the end only: special tokens inside the reply are ordinary text.
    """
    said, known = _said(processor, reply, prompt), marks(processor)
    if reply.strip() in said and not known.stand_in(reply):
        tokens = processor.tokenizer(said, add_special_tokens=False)["input_ids"]
    else:
        before, standing, after = _said(processor, STANDS_IN, prompt).partition(STANDS_IN)
        if not standing:
            raise ValueError("its chat template leaves out what the assistant says")
        tokens = known.between(before, reply, after)
    return tokens + [processor.tokenizer.eos_token_id]


def reply_rows(processor: Any, conversations: Sequence[Conversation]) -> list[list[int]]:
    """Tokens of every conversation's reply with its end token, in one call and without what a chat template writes around it.

    Raises `EncodingError`, with the conversation's id, for a reply that the tokenizer cannot encode.
    """
    known, end = marks(processor), processor.tokenizer.eos_token_id
    replies = [conversation.reply or "" for conversation in conversations]
    rows: Sequence[list[int] | None]
    try:
        rows = processor.tokenizer(replies, add_special_tokens=False)["input_ids"]
    except Exception:  # the error does not say which reply it was: try each by itself
        rows = [None] * len(replies)
    whole = []
    for conversation, reply, row in zip(conversations, replies, rows, strict=True):
        if row is None or known.stand_in(reply):
            with naming(conversation.id, reply):
                row = known.plain(reply)
        whole.append([*row, end])
    return whole


def _said(processor: Any, reply: str, prompt: str) -> str:
    """The reply as the chat template writes it in the assistant's turn, without the end token."""
    if processor.chat_template:
        end = processor.tokenizer.eos_token
        answer = [{"role": "assistant", "content": [{"type": "text", "text": reply}]}]
        asked = _asked(processor, prompt)
        said = processor.apply_chat_template([*_turn(prompt), *answer])
        if said.startswith(asked):
            said = said[len(asked) :]
            return said.rpartition(end)[0] if end in said else said.rstrip()
    return reply


def readable(id: str, picture: Image.Image, read: Callable[[Image.Image], Any] = rgb) -> Any:
    """What `read` makes of the picture. Raises `EncodingError` where it cannot be read."""
    try:
        return read(picture)
    except BROKEN as error:
        raise EncodingError(
            f"problem {id}: its picture cannot be read ({error}); replace the picture or leave the problem out"
        ) from error


def show_labels(processor: Any, sample: Sample) -> str:
    """The sample as text with its supervised part between ⟦ and ⟧ and image slots counted."""
    tokens = zip(sample.input_ids.tolist(), sample.labels.tolist())
    pieces = []
    for (slot, supervised), group in groupby(tokens, key=lambda t: (t[0] == processor.image_token_id, t[1] != IGNORED)):
        ids = [token for token, _ in group]
        words = processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        text = f"[{len(ids)} image slots]" if slot else words
        pieces.append(f"⟦{text}⟧" if supervised else text)
    return "".join(pieces)


def collate(samples: Sequence[Sample], side: str = "right", stride: int = 1) -> dict[str, torch.Tensor]:
    """`input_ids`, `labels`, `attention_mask` and what else is known of every token, (batch, length), padded on `side`;
    and the pictures of all samples one after the other. `length` is the longest one's, rounded up to `stride`."""

    def pad(rows: list[torch.Tensor], value: int = 0) -> torch.Tensor:
        length = -(-max(map(len, rows)) // stride) * stride
        padded = pad_sequence([*rows, rows[0].new_empty(length)], True, value, padding_side=side)
        return padded[:-1]

    names = {name: None for s in samples for name in s.tokens}
    batch = {
        name: pad([s.tokens[name] if name in s.tokens else torch.zeros_like(s.input_ids) for s in samples])
        for name in names
    }
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
