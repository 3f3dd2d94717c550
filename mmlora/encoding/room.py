"""How many tokens a model can read: what is longer is refused by name, in training and wherever it answers."""

from __future__ import annotations

from torch import nn

from mmlora.encoding.conversation import EncodingError
from mmlora.models.vlm import base_model

UNBOUNDED = 2**31  # where an architecture has no last position


def room(model: nn.Module) -> int:
    """Tokens that the model was made to read at most, prompt and reply together."""
    return getattr(base_model(model).config.get_text_config(), "max_position_embeddings", None) or UNBOUNDED


def refuse_longer(id: str, length: int, room: int) -> None:
    """Raise `EncodingError` where so many tokens are more than the room."""
    if length > room:
        raise EncodingError(
            f"problem {id} takes {length} tokens and does not fit in the model's {room}; leave it out, "
            "or give its pictures a smaller side"
        )
