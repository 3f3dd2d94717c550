"""How this process keeps memory: freed blocks stay with it for the next step, and go back to the system after a phase;
and what does not fit is taken in smaller parts.

Every large tensor is a fresh block from the system, which clears it page by page before the first use. For a small model
on a CPU that costs more than some of the layers. But blocks kept from one phase do not fit the next one's sizes.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm import tqdm

from mmlora.errors import MMLoraError

Item = TypeVar("Item")
Result = TypeVar("Result")
HELD = 2**30  # bytes of encoded samples that may lie in memory together
#: Messages that accelerate does not recognize as out of memory: of a card, and of a processor's allocators.
NO_ROOM = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "not enough memory: you tried to allocate",
    "std::bad_alloc",
    "Cannot allocate memory",
    "could not create a memory object",
)
#: What oneDNN says when there is no memory for its buffers; with "descriptor" it means that it lacks the operation.
ONEDNN = re.compile(r"could not (create|execute) a primitive(?! descriptor)")
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # names of glibc's malloc.h


class OutOfMemory(MMLoraError):
    """A single sample that does not fit; the message says what to do."""


def out_of_memory(error: Exception) -> bool:
    """Whether it says that memory ran out, a card's or the processor's."""
    return (
        isinstance(error, MemoryError)
        or should_reduce_batch_size(error)
        or any(words in str(error) for words in NO_ROOM)
        or bool(ONEDNN.search(str(error)))
    )


def in_parts(
    compute: Callable[[Sequence[Item]], Result], items: Sequence[Item], size: int
) -> Iterator[tuple[Sequence[Item], Result]]:
    """`size` items at a time, in order, with what `compute` makes of them; after running out of memory, half as many.

    Raises `OutOfMemory` when a single item does not fit.
    """
    at = 0
    while at < len(items):
        part = items[at : at + size]
        try:
            result = compute(part)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(part) == 1:
                raise OutOfMemory(
                    "a single sample does not fit in memory; give load_vlm a smaller side, or choose a smaller model"
                ) from error
            size = -(-len(part) // 2)
        else:
            yield part, result
            at += len(part)
            continue
        clear_device_cache(garbage_collection=True)  # only here has the error let go of what it held
        tqdm.write(f"out of memory: from now on {size} samples at a time")


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
    options = ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (ARENA_MAX, 1))  # one heap: backward has a thread of its own
    return library is not None and all(library.mallopt(name, value) for name, value in options)


def give_back() -> None:
    """Return what is freed and kept to the system: at the end of a phase, whose sizes the next one does not share."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)
