"""Marks in people's texts are ordinary text: no question opens a turn, and no reply holds an end token inside.

A mark is a special token (`<|im_end|>`, `</s>`, `<filename>`) or a placeholder of the processor (`<image>`, `<video>`). Text
without marks is encoded as always. For text with marks, the chat template and the processor get a stand-in, an added token
of a private copy of the tokenizer; its id is then replaced by the tokens of the text, tokenized as ordinary text.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import AddedToken

STANDS_IN = "\ue000\ue001\ue000"  # no letters, whose case a template could change


class Marks:
    """The marks of one processor, and tokenization that treats them as ordinary text."""

    def __init__(self, processor: Any):
        tokenizer = processor.tokenizer
        special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        own = {str(value) for name, value in vars(processor).items() if name.endswith(("_token", "_tag")) and value}
        self.marks = {*special.values(), *map(str, tokenizer.all_special_tokens), *own} - {""}
        self.control = {*special, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        normalizer = tokenizer.backend_tokenizer.normalizer
        loose = any(token.normalized for token in tokenizer.added_tokens_decoder.values() if token.special)
        self.normalized: Callable[[str], str] | None = normalizer.normalize_str if normalizer and loose else None
        written = self.marks | {self.normalized(mark) for mark in self.marks} if self.normalized else self.marks
        self.pattern = re.compile("|".join(map(re.escape, sorted(written, key=len, reverse=True))) or r"(?!)")
        self.tokenizer = tokenizer

    def stand_in(self, text: str) -> bool:
        """Whether the text holds a mark, as it is or once the tokenizer has normalized it, and so needs a stand-in."""
        return bool(self.pattern.search(text) or self.normalized and self.pattern.search(self.normalized(text)))

    @cached_property
    def twin(self) -> Any:
        """A private copy of the tokenizer that knows the stand-in, and for which every mark is special."""
        twin = copy.deepcopy(self.tokenizer)
        known = [
            AddedToken(mark, special=True, normalized=False) for mark in sorted(self.marks & twin.get_vocab().keys())
        ]
        twin.backend_tokenizer.add_special_tokens([*known, AddedToken(STANDS_IN, special=True, normalized=False)])
        return twin

    def plain(self, text: str) -> list[int]:
        """Tokens of the text as ordinary text, whatever marks it holds."""
        tokens = self._split(text)
        if self.control.isdisjoint(tokens):
            return tokens
        cuts = [found.start() + 1 for found in self.pattern.finditer(text)]  # a mark is one token of the vocabulary
        tokens = [token for start, end in zip([0, *cuts], [*cuts, None]) for token in self._split(text[start:end])]
        if not self.control.isdisjoint(tokens):
            raise ValueError("the tokenizer cannot encode its own special tokens as ordinary text")
        return tokens

    def between(self, before: str, text: str, after: str) -> list[int]:
        """Tokens of `text` as ordinary text between what the template wrote around it."""
        if not self.stand_in(before) and not self.stand_in(after):
            return self.plain(before + text + after)
        begin, end = (
            self.tokenizer(part, add_special_tokens=False)["input_ids"] if part else [] for part in (before, after)
        )
        return [*begin, *self.plain(text), *end]

    def _split(self, text: str) -> list[int]:
        return self.twin(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


_known: WeakKeyDictionary[Any, Marks] = WeakKeyDictionary()


def marks(processor: Any) -> Marks:
    """The marks of this processor, found once for each processor."""
    found = _known.get(processor)
    if found is None or found.tokenizer is not processor.tokenizer:
        found = _known[processor] = Marks(processor)
    return found
