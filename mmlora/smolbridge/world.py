"""SmolBridge with a connector that was aligned on pictures of the world: no picture of MiniSQA's, none of its icons.

A guest of its own name, `load_vlm("smolbridge-world")`; a run aligns it on the pictures at hand before its adapter learns.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmlora import smolbridge
from mmlora.paths import WEIGHTS

CONNECTOR = WEIGHTS / "smolbridge-world" / "connector.safetensors"
ENTRY = replace(
    smolbridge.ENTRY,
    name="smolbridge-world",
    parameters=150_000_000,
    visual_tokens=14,
    advice="8 GB of memory, no GPU and no account: the recorded hour ran on two CPU cores.",
    seen="drawings of 1,376 things by several hands, scenes of them, words, numbers and plots; no picture of MiniSQA's.",
)
register, download = smolbridge.register, smolbridge.download


def folder() -> Path:
    """Where the assembled model is; put together at the first call. Raises `WeightsError`."""
    from mmlora.smolbridge.assemble import assembled

    return assembled(CONNECTOR, name="smolbridge-world")
