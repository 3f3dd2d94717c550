"""How this process keeps memory: freed blocks stay with it for the next step, and go back to the system after a phase.

Every large tensor is a fresh block from the system, which clears it page by page before the first use. For a small model
on a CPU that costs more than some of the layers. But blocks kept from one phase do not fit the next one's sizes.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # names of glibc's malloc.h


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is the GNU one."""
    try:
        library = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
        return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
    except OSError:  # musl
        return None


def reuse_blocks() -> bool:
    """Let glibc keep and reuse large freed blocks from now on; False where the C library is another one."""
    library = _glibc()
    return library is not None and bool(library.mallopt(MMAP_MAX, 0) and library.mallopt(TRIM_THRESHOLD, 2**31 - 1))


def give_back() -> None:
    """Return what is freed and kept to the system: at the end of a phase, whose sizes the next one does not share."""
    if _glibc() is not None:
        _glibc().malloc_trim(0)
