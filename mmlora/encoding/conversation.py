"""What is said to a model and what it should say: the one thing that encoding knows of a problem.

Multiple choice ends above this module: below it there are words and pictures only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from PIL import Image

from mmlora.errors import MMLoraError


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
