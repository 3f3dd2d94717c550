"""Which numbers a machine multiplies: bfloat16 where it has instructions for it, or else float32.

Weights, adapters and sums stay in float32; only the matrix products are rounded (torch's autocast). On processors with
AVX512-BF16 or AMX, and on Ampere cards and later, that is several times faster. On others it is several times
slower, so a CPU is timed. `MMLORA_PRECISION=float32` in the environment turns it off.
"""

from __future__ import annotations

import os
from functools import lru_cache
from time import perf_counter

import torch
from torch.nn.functional import linear


DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@lru_cache(maxsize=1)
def precision() -> str:
    """accelerate's name for it: "no" (float32), "bf16", or "fp16" on cards that lack bfloat16."""
    if os.environ.get("MMLORA_PRECISION") == "float32":
        return "no"
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if _seconds(torch.bfloat16) < 0.7 * _seconds(torch.float32) else "no"


def mixed(device: torch.device) -> torch.autocast:
    """The context in which this machine's matrix products are fast; it changes nothing where they are in float32."""
    return torch.autocast(device.type, DTYPES[precision()], enabled=precision() != "no")


def products() -> str:
    """In words: "float32", "bfloat16" or "float16"."""
    return str(DTYPES[precision()]).removeprefix("torch.")


def _seconds(dtype: torch.dtype) -> float:
    """The best of five times for a product as large as those of a small decoder's layer."""
    inputs, weight = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
    times = []
    for _ in range(6):  # the first one prepares the library
        began = perf_counter()
        linear(inputs, weight)
        times.append(perf_counter() - began)
    return min(times[1:])
