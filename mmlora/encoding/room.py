"""How many tokens a model can read: longer problems are refused with their id, in training and in answering."""

from __future__ import annotations

from torch import nn

from mmlora.encoding.conversation import EncodingError
from mmlora.models.vlm import base_model

UNBOUNDED = 2**31  # for architectures without a limit on positions


def room(model: nn.Module) -> int:
    """The most tokens that the model can read, prompt and reply together: its context length."""
    return getattr(base_model(model).config.get_text_config(), "max_position_embeddings", None) or UNBOUNDED


def refuse_longer(id: str, length: int, room: int) -> None:
    """Raise `EncodingError` if `length` tokens are more than `room`."""
    if length > room:
        raise EncodingError(
            f"problem {id} takes {length} tokens and does not fit in the model's {room}; leave it out, "
            "or give its pictures a smaller side"
        )
