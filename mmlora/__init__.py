"""mmlora: small adapters that teach a vision-language model, on two CPU cores or a free GPU.

The names below are what notebooks use most. Importing this package imports nothing heavy: each name brings its own
module when it is first asked for.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from mmlora import threads  # noqa: F401 - before torch is imported: its threads then wait without spinning

__version__ = "0.1.0"

_PLACES = {
    "Experiment": "experiment",
    "Settings": "settings",
    "attach": "adapters.lora",
    "combine": "adapters.combine",
    "detach": "adapters.lora",
    "evaluate": "evaluation.answering",
    "fit": "training.fit",
    "merge": "adapters.lora",
    "load_adapter": "adapters.files",
    "load_problems": "problems.load",
    "load_vlm": "adapters.files",
    "score": "evaluation.scores",
    "switch": "adapters.named",
    "unload": "adapters.named",
}
# Where bitsandbytes is installed, peft imports it, and it asks everyone for an optional package of kernels.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'mmlora' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mmlora.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
