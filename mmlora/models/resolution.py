"""How large a model sees pictures: the one setting that decides how many visual tokens, and so how much memory, they take."""

from __future__ import annotations

from typing import Any

from PIL import Image

from mmlora.errors import MMLoraError, on_one_line

SHOWN = 120  # characters of a library's message


class ResolutionError(MMLoraError, ValueError):
    """A size that this model's processor cannot be given; the message says which sizes it has."""


def set_side(processor: Any, side: int) -> None:
    """Let `processor` shrink or enlarge pictures to about `side` pixels a side.

    SmolVLM takes the longer side and cuts what exceeds a tile into tiles; Qwen's models bound the area, here to `side`
    squared. Raises `ResolutionError` for the models that read one size only.
    """
    pictures = getattr(processor, "image_processor", None)
    if pictures is None:
        raise ResolutionError("this model sees no pictures; leave the side out")
    size = {name: value for name, value in dict(pictures.size).items() if value}
    if "height" in size or getattr(pictures, "do_center_crop", False):
        fixed = size if "height" in size else dict(pictures.crop_size)
        raise ResolutionError(
            f"this model reads pictures at {fixed['width']} x {fixed['height']} pixels only; leave the side "
            "out, or choose a SmolVLM or Qwen model"
        )
    if hasattr(pictures, "max_image_size"):
        changed = {"longest_edge": side}
    else:
        changed = {"shortest_edge": min(size["shortest_edge"], side**2), "longest_edge": side**2}
    before, pictures.size = pictures.size, type(pictures.size)(**changed)
    try:
        visual_tokens(processor)
    except Exception as error:  # processors and torch raise errors of many kinds
        pictures.size = before
        reason = on_one_line(error, SHOWN)
        raise ResolutionError(
            f"this model's processor makes no pictures of {side} pixels a side ({reason}); give another side, such as 512"
        ) from error


def see_all(processor: Any) -> None:
    """Let a processor that cuts a picture's middle out (LLaVA's) squeeze the whole picture into its square instead.

    LLaVA itself learned from squares with a margin, which this is not.
    """
    pictures: Any = getattr(processor, "image_processor", None)
    if getattr(pictures, "do_center_crop", False):
        pictures.size, pictures.do_center_crop = type(pictures.size)(**dict(pictures.crop_size)), False


def visual_tokens(processor: Any, width: int = 512, height: int = 384) -> int:
    """How many tokens a picture of this size takes, counted by letting the processor write them."""
    if processor.image_token is None:
        return 0
    picture = Image.new("RGB", (width, height), (128, 128, 128))
    ids = processor(images=[picture], text=[processor.image_token], return_tensors="pt")["input_ids"]
    return int((ids == processor.image_token_id).sum())
