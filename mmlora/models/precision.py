"""Which numbers a machine multiplies: bfloat16 where it has instructions for it, or else float32.

Adapters and sums stay in float32, and frozen weights too where memory allows (on a CPU); only the matrix products are
rounded (torch's autocast). On processors with AVX512-BF16 or AMX, and on Ampere cards and later, that is several times
faster. On others it is several times slower, so a CPU is timed. `MMLORA_PRECISION` in the environment overrules this:
float32, bfloat16 or, on a card, float16.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from accelerate.state import AcceleratorState
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear

from mmlora.errors import MMLoraError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

ASKED = "MMLORA_PRECISION"
_chosen: list[str | None] = []  # what `choose` found in the environment, and what it put there
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PrecisionError(MMLoraError):
    """Numbers that this machine cannot work with; the message says what to do."""


@lru_cache(maxsize=1)
def precision() -> str:
    """accelerate's name for it: "no" (float32), "bf16", or "fp16" on cards that lack bfloat16.

    Raises `PrecisionError` when `MMLORA_PRECISION` asks for what is not to be had.
    """
    if asked := os.environ.get(ASKED):
        return _asked(asked)
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device().type == "mps":
        return "no"  # halves were never tried there
    return _on_processor()


@lru_cache(maxsize=1)
def _on_processor() -> str:
    return "bf16" if _seconds(torch.bfloat16) < 0.7 * _seconds(torch.float32) else "no"


def choose(name: str) -> None:
    """Settle this process's numbers: "auto" measures, or takes the environment's; the others are `MMLORA_PRECISION`'s.

    A second run in one process may choose anew. Raises `PrecisionError`.
    """
    own = bool(_chosen) and os.environ.get(ASKED) == _chosen[-1]  # what stands there is from here
    if name != "auto":
        _asked(name)
        if not own:
            _chosen[:] = [os.environ.get(ASKED)]
        _chosen[1:] = [name]
        os.environ[ASKED] = name
    elif own:
        before = _chosen[0]
        _chosen.clear()
        os.environ.pop(ASKED) if before is None else os.environ.update({ASKED: before})
    elif not os.environ.get(ASKED):
        return
    precision.cache_clear()
    if AcceleratorState._shared_state.get("_mixed_precision", precision()) != precision():
        AcceleratorState._reset_state()  # it would refuse other numbers than an earlier run's


def _asked(name: str) -> str:
    by_name = {str(dtype).removeprefix("torch."): short for short, dtype in DTYPES.items()}
    if name not in by_name:
        raise PrecisionError(f"MMLORA_PRECISION is {name!r}; it can be {', '.join(by_name)}, or left out")
    if name == "float16" and device().type == "cpu":
        raise PrecisionError("MMLORA_PRECISION is float16, which only cards multiply fast; give float32 or bfloat16")
    return by_name[name]


def device() -> torch.device:
    """The best one here: an NVIDIA or AMD card, a Mac's own GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def weights_dtype() -> torch.dtype:
    """What frozen weights are kept in: half precision on a card, whose memory is what runs out, float32 elsewhere."""
    return DTYPES[precision()] if device().type == "cuda" else torch.float32


def finite() -> str:
    """What to do about states that are not finite."""
    if precision() == "no":
        return "choose another model"
    return "take --precision float32 (MMLORA_PRECISION in the environment), with --four-bit where it does not fit a card then"


def nf4() -> BitsAndBytesConfig:
    """The configuration of 4-bit weights. Raises `PrecisionError` where they cannot be had."""
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        raise PrecisionError(
            "4-bit weights need an NVIDIA card and the package bitsandbytes (pip install bitsandbytes); "
            "leave four_bit out, or choose a model under 3 billion parameters"
        )
    return nf4_settings()


def nf4_settings() -> BitsAndBytesConfig:
    """QLoRA's own: 4-bit normal floats, their scales quantized once more, products in this machine's numbers."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=weights_dtype(),
    )


def mixed(device: torch.device) -> torch.autocast:
    """The context in which this machine's matrix products are fast; it changes nothing where they are in float32."""
    numbers = precision()
    if numbers != "no" and device.type == "cpu" and torch.cuda.is_available():
        numbers = _on_processor()  # a card's numbers say nothing of the processor beside it
    return torch.autocast(device.type, DTYPES[numbers], enabled=numbers != "no")


def attention(device: torch.device) -> AbstractContextManager:
    """The context to train in: torch's fused attention is slow backward on a CPU, plain products take a tenth off a step."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


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
