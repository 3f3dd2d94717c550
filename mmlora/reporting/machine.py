"""Where a figure was taken: machine, versions, commit, memory. torch is imported only when it is asked for."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from mmlora.paths import IN_CHECKOUT, PACKAGE

PACKAGES = (
    "mmlora",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "timm",
    "datasets",
    "numpy",
    "pillow",
)
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
GB = 1e9


def versions() -> dict[str, str | None]:
    """Python and the packages that decide a result; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict:
    """The machine in words: system, cpu, its instructions that decide how fast products are (where Linux tells them; a name such
    as "Xeon Processor" does not), cores this process may use, memory_gb, gpu (None without one), precision; processes, where
    several shared the work."""
    import torch

    from mmlora.models import processes
    from mmlora.models.precision import products

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if gpu is None and torch.backends.mps.is_available():
        gpu = "Apple GPU (MPS)"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "instructions": _instructions(),
        "cores": cores,
        "memory_gb": _memory_gb(),
        "gpu": gpu,
        "precision": products(),
        **({"processes": processes.count()} if processes.count() > 1 else {}),
    }


def _memory_gb() -> float | None:
    """None on a machine that hides it, which is no reason to lose a record."""
    import psutil

    try:
        return round(psutil.virtual_memory().total / GB, 1)
    except Exception:  # psutil raises its own errors, the system's, and NotImplementedError
        return None


def _of_processor(key: str) -> str:
    """What Linux says of the first core; "" elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _instructions() -> list[str]:
    known = _of_processor("flags").split()
    return [name for name in INSTRUCTIONS if name in known]


def _cpu_name() -> str:
    if name := _of_processor("model name"):
        return name
    if sys.platform == "darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        if done.stdout.strip():
            return done.stdout.strip()
    return platform.processor() or platform.machine()


def circumstances(git: dict | None = None) -> dict:
    """What every record says of how it came about: machine, versions, git, date.

    `git` is the state from before the work, where that writes files itself; or else it is looked up now.
    """
    return {
        "machine": machine(),
        "versions": versions(),
        "git": git_state() if git is None else git,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_state() -> dict:
    """`commit` that mmlora's own code came from and whether files differ from it; None where nobody can tell.

    A package inside somebody else's repository says nothing of that one; installed from a repository's address, it
    knows its commit from pip.
    """
    if not IN_CHECKOUT:
        origin = json.loads(metadata.distribution("mmlora").read_text("direct_url.json") or "{}")
        commit = origin.get("vcs_info", {}).get("commit_id")
        return {"commit": commit, "dirty": None if commit is None else False}
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != PACKAGE.parent:
        return {"commit": None, "dirty": None}
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def peak_memory_gb() -> float:
    """The most memory this process has held so far, in GB: of the GPU if it was used, else resident."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_reserved():
        return round(torch.cuda.max_memory_reserved() / GB, 2)
    if sys.platform == "win32":
        import psutil

        return round(psutil.Process().memory_info().peak_wset / GB, 2)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB, 2)
