"""A library's refusal carries the id of what it refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmlora.encoding.conversation import EncodingError
from mmlora.errors import MMLoraError
from mmlora.models.memory import out_of_memory

SAID = 300  # characters of a library's own message that are repeated


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
