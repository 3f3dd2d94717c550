"""SmolBridge: a 150M vision-language model made of two pretrained towers and a trained connector.

A guest: `load_vlm("smolbridge")` finds it by its entry point (see `mmlora.guests`). Importing this imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmlora.models.catalog import Entry

if TYPE_CHECKING:
    from PIL import Image

    from mmlora.models.vlm import VLM

ENTRY = Entry(
    name="smolbridge",
    repo=None,
    family="SmolBridge",
    licence="Apache-2.0",
    parameters=152_000_000,
    size=None,
    visual_tokens=24,
    advice="8 GB of memory, no GPU and no account; its connector has learned MiniSQA's pictures, for quick looks.",
    seen="64,792 other pictures of MiniSQA's own generator with their captions, which often hold the answer; no question.",
)


def folder() -> Path:
    """Where the assembled model is; put together at the first call. Raises `WeightsError`."""
    from mmlora.smolbridge.assemble import assembled

    return assembled()


def register() -> None:
    """Let transformers know the architecture."""
    import mmlora.smolbridge.model  # noqa: F401 - its last lines register


def aligns(vlm: Any) -> bool:
    """Whether a run aligns the connector unless it is told otherwise: one that MiniSQA's captions taught is left as it is."""
    return bool(vlm.model.config.glance_width)


def learn_to_read(vlm: Any, captioned: Any, further: Any, minutes: float, work: Path, seed: int = 0) -> Any:
    """See `aligned.learn_to_read`."""
    from mmlora.smolbridge import aligned

    return aligned.learn_to_read(vlm, captioned, further, minutes, work, seed)


def adopt(vlm: Any, tensors: Any) -> Any:
    """See `aligned.adopt`."""
    from mmlora.smolbridge import aligned

    return aligned.adopt(vlm, tensors)


def words_read(vlm: VLM, picture: Image.Image) -> list[tuple[str, float]]:
    """For each visual token its likeliest word, and how likely that is."""
    from mmlora.smolbridge.words import words_read

    return words_read(vlm, picture)


def download() -> tuple[int, int]:
    """Bytes of the wheels that it is made of: of all, and of those that are not here yet."""
    from mmlora.smolbridge.wheels import LANGUAGE, VISION, member_path

    wheels = (LANGUAGE, VISION)
    return sum(w.size for w in wheels), sum(w.size for w in wheels if not member_path(w).exists())
