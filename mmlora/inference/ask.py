"""Ask a model anything, in a notebook or a terminal."""

from __future__ import annotations

from PIL import Image

from mmlora.inference.streaming import stream
from mmlora.models.vlm import VLM


def ask(vlm: VLM, text: str, picture: Image.Image | None = None, max_new_tokens: int = 80) -> str:
    """The model's greedy reply, printed piece by piece as it comes, and returned.

    It ends at the model's context length at the latest, with a warning. Raises `EncodingError` for a picture that cannot be
    read, for what the processor refuses, and for a text that leaves no place for a reply.
    """
    said = []
    for piece in stream(vlm, text, picture, max_new_tokens=max_new_tokens):
        print(piece, end="", flush=True)
        said.append(piece)
    print()
    return "".join(said)
