"""Threads that share this machine with other programs.

The threads of one matrix product wait for each other. By default OpenMP's spin while they wait, which costs nothing on
idle cores; where another program uses a core, they take up the time in which the thread that they wait for could run.
With a passive policy they sleep (results/speed/busy.json). The policy is read once, when torch is imported:

- Linux wheels bring libgomp: `OMP_WAIT_POLICY=PASSIVE` sets its `GOMP_SPINCOUNT` to 0 (GCC's libgomp manual, 4.20 and 4.24).
- Wheels for macOS bring LLVM's libomp, those for Windows Intel's libiomp5, conda's either: there `PASSIVE` sets
  `KMP_BLOCKTIME` to 0 instead of 200 ms (LLVM review D18577). Known from their sources, not measured here.

Importing this imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
import time

POLICY = "OMP_WAIT_POLICY"
CHOSEN = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # where one of them is set, the user has chosen
NOTABLE = 0.25  # cores that other programs use before a run mentions it


def wait_passively() -> bool:
    """Set the passive policy for this process and its children; False if torch was imported before and nothing was chosen."""
    if any(name in os.environ for name in CHOSEN):
        return True
    os.environ[POLICY] = "PASSIVE"
    return "torch" not in sys.modules


#: Whether the policy is in force, decided when mmlora is imported.
SETTLED = wait_passively()


def used_by_others(seconds: float = 0.3) -> tuple[float, int]:
    """How many of the cores that this process may use other programs keep busy now, and the number of those cores."""
    import psutil

    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    own = psutil.Process()

    def busy() -> tuple[float, float]:
        cores = [core for number, core in enumerate(psutil.cpu_times(percpu=True)) if number in allowed]
        return sum(sum(core) - core.idle - getattr(core, "iowait", 0.0) for core in cores), sum(own.cpu_times()[:2])

    (all_before, own_before), began = busy(), time.perf_counter()
    time.sleep(seconds)
    (all_after, own_after), passed = busy(), time.perf_counter() - began
    others = (all_after - all_before - (own_after - own_before)) / passed
    return min(max(0.0, others), float(len(allowed))), len(allowed)


def seen_of_others() -> tuple[float, int] | None:
    """`used_by_others`; None on a machine that hides it, as Android and some containers do."""
    try:
        return used_by_others()
    except Exception:  # psutil raises its own errors, the system's, and NotImplementedError
        return None


def fewer() -> int | None:
    """How many threads leave other programs the cores that they use; None where they use less than half a core."""
    used, cores = seen_of_others() or (0.0, 1)
    left = cores - max(1, round(used))
    return max(1, left) if cores > 1 and used >= 0.5 else None


def say_if_busy() -> None:
    """Print a line where other programs use this machine's cores too."""
    used, cores = seen_of_others() or (0.0, 0)
    if used >= NOTABLE:
        print(f"other programs use {used:.1f} of {cores} cores, so this run is slower than on a quiet machine")
