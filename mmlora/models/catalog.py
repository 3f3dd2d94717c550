"""The models that mmlora knows by a short name. Any other VLM on the hub is loaded by its full id, owner/name.

The facts are from the model cards. Nothing here was measured: what was, lies in results/. `models.hub.sizes` asks the
hub for the exact number of parameters.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from mmlora import guests


@dataclass(frozen=True)
class Entry:
    """One model. `size` bounds the picture, because its tokens, not the text's, fill the memory."""

    name: str
    repo: str | None  # the id on the hub; None for a guest, which comes from elsewhere
    family: str
    licence: str
    parameters: int  # rounded, as its publisher names it
    size: dict[str, int] | None  # handed to the processor as `size`; None where the processor's own is fixed
    visual_tokens: int  # the most that one picture of this size takes; 0 for a model that only reads
    advice: str  # which machine
    seen: str = ""  # the pictures and captions that this project aligned it on; others' are on their own cards
    gated: bool = False  # the hub asks for an account and for consent to the licence

    @property
    def size_gb(self) -> float:
        """Memory for the weights alone in 16-bit numbers, as on a card; `mmlora plan` adds what training needs."""
        return 2 * self.parameters / 1e9


#: SmolVLM cuts a picture into squares of 512 pixels, 64 tokens each, up to sixteen and one more: here it gets one.
ONE_SQUARE = {"longest_edge": 512}
CATALOG = (
    Entry(
        "smolvlm-256m",
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        "SmolVLM",
        "Apache-2.0",
        256_000_000,
        ONE_SQUARE,
        64,
        "A free T4 is plenty; the one hub model to try on a CPU.",
    ),
    Entry(
        "smolvlm-500m",
        "HuggingFaceTB/SmolVLM-500M-Instruct",
        "SmolVLM",
        "Apache-2.0",
        500_000_000,
        ONE_SQUARE,
        64,
        "A free T4 (16 GB): others have reported LoRA runs in 6 GB.",
    ),
    Entry(
        "smolvlm2-500m",
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "SmolVLM2",
        "Apache-2.0",
        500_000_000,
        ONE_SQUARE,
        64,
        "A free T4 (16 GB), like the SmolVLM of the same size.",
    ),
    # Qwen bounds the area: `size` is in pixels of the whole picture, one token for each 28 x 28 (Qwen3: 32 x 32).
    Entry(
        "qwen3-vl-2b",
        "Qwen/Qwen3-VL-2B-Instruct",
        "Qwen3-VL",
        "Apache-2.0",
        2_000_000_000,
        {"shortest_edge": 64 * 32**2, "longest_edge": 256 * 32**2},
        256,
        "A GPU with 16 GB, weights in 16-bit numbers.",
    ),
    Entry(
        "qwen2.5-vl-3b",
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "Qwen2.5-VL",
        "Qwen Research License, not for commercial use",
        3_000_000_000,
        {"shortest_edge": 4 * 28**2, "longest_edge": 256 * 28**2},
        256,
        "A GPU with 16 GB or more, weights in 16-bit numbers.",
    ),
    Entry(
        "paligemma2-3b",
        "google/paligemma2-3b-pt-224",
        "PaliGemma 2",
        "Gemma licence",
        3_000_000_000,
        None,
        256,
        "A GPU with 16 GB or more, weights in 16-bit numbers; only pretrained, so it must be taught to answer.",
        gated=True,
    ),
    Entry(
        "llava-1.5-7b",
        "llava-hf/llava-1.5-7b-hf",
        "LLaVA-1.5",
        "Llama 2 Community License",
        7_000_000_000,
        None,
        576,
        "A GPU with 24 GB or more: the weights alone are 14 GB in 16-bit numbers.",
    ),
    Entry(
        "smollm2-135m",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "SmolLM2",
        "Apache-2.0",
        135_000_000,
        None,
        0,
        "No GPU needed; it sees no picture and is the baseline that tells what looking is worth.",
    ),
)


def entries() -> tuple[Entry, ...]:
    """Every model with a short name: the guests' own entries first."""
    return (*(guests.guest("models", name).ENTRY for name in guests.names("models")), *CATALOG)


def find(name: str) -> Entry | None:
    """The entry with this short name or hub id, in any case; None for other hub ids and for folders."""
    return next((e for e in entries() if name.lower() in (e.name, (e.repo or e.name).lower())), None)


def seen_by(name: str) -> str:
    """What the model of this name was aligned on here; empty for one that others made."""
    entry = find(name)
    return entry.seen if entry else ""


def nearest(name: str) -> list[str]:
    """Up to three short names that look like `name`, the likeliest first; `name` may be a hub id too."""
    known = {key.lower(): e.name for e in entries() for key in (e.repo, e.name) if key}
    known |= {e.repo.partition("/")[2].lower(): e.name for e in CATALOG if e.repo}
    found = difflib.get_close_matches(name.lower(), known, 9, 0.5)
    return list(dict.fromkeys(known[key] for key in found))[:3]
