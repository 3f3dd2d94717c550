"""From a conversation to tokens: labels that cover the reply only, and batches of samples.

Nothing is ever cut short, and nothing here knows what the conversation is about.
"""

from __future__ import annotations

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
from mmlora.problems.pictures import rgb

#: What tells the model's own words from the prompt, where an architecture asks (PaliGemma reads a prompt both ways).
SAID = {"token_type_ids": 1}


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

    Raises `EncodingError` for a picture that cannot be read.
    """
    pictures = tuple(readable(conversation.id, picture) for picture in conversation.pictures)
    prompt = _clean(processor, conversation.prompt)
    data = user_turn(processor, prompt, pictures)
    shape = data["input_ids"].shape
    tokens = {n: t[0].long() for n, t in data.items() if n not in ("attention_mask", "labels") and t.shape == shape}
    seen = {n: t for n, t in data.items() if t.shape != shape}
    sample = Sample(conversation.id, tokens, torch.full_like(tokens["input_ids"], IGNORED), seen)
    return (
        sample
        if conversation.reply is None
        else sample.followed_by(reply_tokens(processor, conversation.reply, prompt))
    )


def user_turn(processor: Any, prompt: str, pictures: Sequence[Image.Image] = ()) -> BatchFeature:
    """What the processor makes of a user's turn, up to where the assistant speaks: a batch of one, as a model takes it."""
    if processor.chat_template:
        text = processor.apply_chat_template(_turn(prompt, len(pictures)), add_generation_prompt=True)
    else:  # PaliGemma has no turns: its processor puts the picture first and ends the prompt with a line break
        text = (processor.image_token or "") * len(pictures) + prompt
    if pictures:
        return processor(images=list(pictures), text=[text], return_tensors="pt")
    if isinstance(processor, PaliGemmaProcessor):  # it takes no text without a picture
        data = processor.tokenizer([f"{processor.tokenizer.bos_token}{text}\n"], return_tensors="pt")
        return BatchFeature({**data, "token_type_ids": torch.zeros_like(data["input_ids"])})
    return processor(text=[text], return_tensors="pt")


def _turn(prompt: str, pictures: int = 0) -> list[dict]:
    return [{"role": "user", "content": [*[{"type": "image"}] * pictures, {"type": "text", "text": prompt}]}]


def reply_tokens(processor: Any, reply: str, prompt: str = "") -> list[int]:
    """Tokens of a reply as the chat template writes it in the assistant's turn, up to and with the end token."""
    end, reply = processor.tokenizer.eos_token, _clean(processor, reply)
    if processor.chat_template:
        asked = processor.apply_chat_template(_turn(prompt), add_generation_prompt=True)
        answer = [{"role": "assistant", "content": [{"type": "text", "text": reply}]}]
        said = processor.apply_chat_template([*_turn(prompt), *answer])
        if said.startswith(asked):
            said = said[len(asked) :]
            reply = said.rpartition(end)[0] if end in said else said.rstrip()
    return processor.tokenizer(reply, add_special_tokens=False)["input_ids"] + [processor.tokenizer.eos_token_id]


def readable(id: str, picture: Image.Image, read: Callable[[Image.Image], Any] = rgb) -> Any:
    """What `read` makes of the picture. Raises `EncodingError` where it cannot be read."""
    try:
        return read(picture)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for a broken file
        raise EncodingError(
            f"problem {id}: its picture cannot be read ({error}); replace the picture or leave the problem out"
        ) from error


def _clean(processor: Any, text: str) -> str:
    """A literal image mark in somebody's text would count as a picture: break it up."""
    mark = processor.image_token and str(processor.image_token)  # some keep more than its text
    return text.replace(mark, mark[0] + " " + mark[1:]) if mark else text


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
