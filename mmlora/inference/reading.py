"""What a model reads in a picture, in words, where its connector can say it."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from mmlora import guests
from mmlora.models.vlm import VLM, base_model


def reader(vlm: VLM) -> Callable[[Image.Image], str] | None:
    """A function from a picture to the words that the model reads in it; None where its package has no `words_read`."""
    package = guests.guest("models", base_model(vlm.model).config.model_type)
    words_read = getattr(package, "words_read", None)
    if words_read is None:
        return None

    def read(picture: Image.Image) -> str:
        text = "".join(word for word, _ in words_read(vlm, picture))
        return " ".join(text.split())  # without empty tokens

    return read
