"""What is said to a model and what it should say: the one thing that encoding knows of a problem.

Multiple choice ends above this module: below it there are words and pictures only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from PIL import Image

from mmlora.errors import MMLoraError
from mmlora.models.memory import out_of_memory

SAID = 300  # characters of a library's own message that are repeated


class EncodingError(MMLoraError):
    """Something that cannot be written as tokens; the message names its id."""


@dataclass(frozen=True)
class Conversation:
    """A user's turn, its pictures before its words, and the assistant's reply; None where it is still to be said."""

    id: str
    prompt: str
    pictures: tuple[Image.Image, ...] = ()
    reply: str | None = None

    def answered(self, reply: str) -> Conversation:
        """The same with this reply."""
        return replace(self, reply=reply)


@contextmanager
def naming(id: str, *texts: str) -> Iterator[None]:
    """Inside, whatever a library raises over this conversation becomes an `EncodingError` that names it."""
    try:
        yield
    except MMLoraError:
        raise
    except Exception as error:  # processors raise ValueError, TypeError, KeyError, RuntimeError and their own
        if isinstance(error, MemoryError) or out_of_memory(error):
            raise
        reason = next(filter(None, map(_unwritable, texts)), None) or " ".join(str(error).split())[:SAID].rstrip(".")
        raise EncodingError(
            f"problem {id} cannot be written as the model's tokens ({reason or type(error).__name__}); mend it, or leave it out"
        ) from error


def _unwritable(text: str) -> str | None:
    """Which character of the text UTF-8 cannot write, if one is so."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        lone = text[error.start]
        return f"character {error.start + 1} of {text[:20]!r} is {lone!r}, half of a pair that UTF-8 cannot write"
    return None
