"""A reply as it comes: an iterator of text pieces, for a terminal or for an app that sends them on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from mmlora.adapters.fused import fused
from mmlora.encoding.conversation import Conversation
from mmlora.encoding.room import refuse_longer, room
from mmlora.encoding.sample import Sample, encode
from mmlora.inference.generate import InferenceError, decode_steps, decoded, prefilled, warn_of_context
from mmlora.inference.sampling import Draw, Sampling
from mmlora.inference.session import evaluating
from mmlora.models.vlm import VLM

GREEDY = Sampling(temperature=0.0)  # what somebody who asks once wants: the likeliest tokens, the same each time
INCOMPLETE = "\ufffd"  # what a tokenizer decodes the first bytes of a character to
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token that is one byte, where a vocabulary falls back to bytes


class TextPieces:
    """Tokens in, text out as soon as later tokens cannot change it; all pieces together are what `decoded` gives.

    Held back: characters that are not whole, bytes of a vocabulary that falls back to bytes, and white space, since a text's
    last one is left out.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.sent = 0  # characters

    def add(self, token: int) -> str:
        """The text that has become certain with this token; often empty."""
        self.tokens.append(token)
        if BYTE.fullmatch(self.tokenizer.convert_ids_to_tokens(token) or ""):
            return ""
        return self._after_sent(self._text().rstrip(INCOMPLETE).rstrip())

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._after_sent(self._text())

    def _text(self) -> str:
        return decoded(self.tokenizer, [self.tokens])[0]

    def _after_sent(self, text: str) -> str:
        piece = text[self.sent :]
        self.sent += len(piece)
        return piece


def stream(
    vlm: VLM,
    text: str,
    picture: Image.Image | None = None,
    sampling: Sampling = GREEDY,
    max_new_tokens: int = 80,
) -> Iterator[str]:
    """Text pieces of the model's reply, each yielded as soon as it is certain; joined they are the whole reply.

    Between two pieces the model is as it was before: in its own mode, without fused layers and with gradients on. Whoever
    stops early closes the iterator, or lets go of it, and its KV cache is freed. A reply ends at the model's context length
    at the latest, with a warning. Raises at once `EncodingError` for a picture that cannot be read, for what the processor
    refuses and for a text that leaves no place for a reply, and `InferenceError` for several replies; while iterating,
    `InferenceError` where logits are not finite.
    """
    if sampling.replies != 1:
        raise InferenceError(
            f"a stream is one reply, and {sampling.replies} were asked for; use inference.sampling.sample"
        )
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise InferenceError(f"max_new_tokens is {max_new_tokens!r}; give a whole number above 0")
    asked = encode(vlm.processor, Conversation("yours", text, () if picture is None else (picture,)))
    refuse_longer(asked.id, len(asked) + 1, room(vlm.model))
    return _pieces(vlm, asked, sampling, max_new_tokens)


def _pieces(vlm: VLM, asked: Sample, sampling: Sampling, max_new_tokens: int) -> Iterator[str]:
    """The generator behind `stream`; `evaluating` is entered for each step, never while the caller has a piece."""
    pieces = TextPieces(vlm.processor.tokenizer)
    layers = fused(vlm.model)
    with evaluating(vlm, layers):
        logits, session = next(prefilled(vlm, [asked]))
    row = torch.zeros(1, dtype=torch.long, device=logits.device)
    steps = decode_steps(vlm, logits, session, row, max_new_tokens, Draw(sampling, [asked.id]))
    while True:
        with evaluating(vlm, layers):
            step = next(steps, None)
        if step is None:
            break
        if piece := pieces.add(int(step[1])):
            yield piece
    if piece := pieces.rest():
        yield piece
    if len(pieces.tokens) < max_new_tokens and vlm.processor.tokenizer.eos_token_id not in pieces.tokens:
        warn_of_context(vlm, [asked.id])
