"""How this process keeps memory: freed blocks stay with it instead of going back to the system.

Every large tensor is a fresh block from the system, which clears it page by page before the first use. For a small model
on a CPU that costs more than some of the layers.
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # names of glibc's malloc.h


def reuse_blocks() -> bool:
    """Let glibc keep and reuse large freed blocks from now on; False where the C library is another one."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl
        return False
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, 2**31 - 1))
