"""Errors that a tokenizer, chat template or processor raises name the problem that caused them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmlora.encoding.conversation import EncodingError
from mmlora.errors import MMLoraError, on_one_line
from mmlora.models.memory import out_of_memory
from mmlora.problems.rows import half_character

SAID = 300  # characters of a library's own message that are repeated


@contextmanager
def naming(id: str, *texts: str) -> Iterator[None]:
    """Turn whatever a library raises while it encodes this conversation into an `EncodingError` with the conversation's id."""
    try:
        yield
    except MMLoraError:
        raise
    except Exception as error:  # processors raise ValueError, TypeError, KeyError, RuntimeError and their own
        if out_of_memory(error):
            raise
        reason = next(filter(None, map(_unwritable, texts)), None) or on_one_line(error, SAID).rstrip(".")
        raise EncodingError(f"problem {id} cannot be encoded ({reason}); fix it, or leave it out") from error


def _unwritable(text: object) -> str | None:
    """What is wrong with the text: it is not text, or UTF-8 cannot encode a character of it; None if nothing is."""
    if not isinstance(text, str):
        return f"{text!r:.60} is not text"
    return half_character(repr(text[:20]), text)
