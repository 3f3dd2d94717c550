"""What a run leaves behind in figures: `metrics.json`, and each file in `results/` the same.

A figure without its machine, versions, seed and commit is an anecdote, so a record that lacks one is an error.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from mmlora.errors import MMLoraError
from mmlora.scienceqa import CATEGORIES

SCORED = ("accuracy", "base", "majority", "blank_image")
PARTS = ("data", "cache", "train", "score", "total")
PACKAGES = ("mmlora", "torch", "transformers", "peft", "accelerate", "tokenizers", "timm", "datasets", "numpy",
            "pillow")
GB = 1e9


class MetricsError(MMLoraError):
    """A record of a run that is incomplete or unreadable; the message names the file or the keys."""


def versions() -> dict[str, str | None]:
    """Python and the packages that decide a result; None where one is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict:
    """The machine in words: system, cpu, cores this process may use, memory_gb, gpu (None without one), precision."""
    import psutil
    import torch

    from mmlora.precision import products

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if gpu is None and torch.backends.mps.is_available():
        gpu = "Apple GPU (MPS)"
    return {"system": f"{platform.system()} {platform.machine()}", "cpu": _cpu_name(), "cores": cores,
            "memory_gb": round(psutil.virtual_memory().total / GB, 1), "gpu": gpu,
            "precision": products()}


def _cpu_name() -> str:
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        if done.stdout.strip():
            return done.stdout.strip()
    return platform.processor() or platform.machine()


def git_state(folder: str | Path = Path(__file__).parent) -> dict:
    """`commit` that the code came from and whether files differ from it; both None outside a repository."""
    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


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


@dataclass(frozen=True)
class Metrics:
    """One run. `accuracy` and its three yardsticks are `Scores.to_dict()`. Raises `MetricsError` for a missing key."""

    accuracy: dict
    base: dict  # the model before training, same problems
    majority: dict  # `scores.majority_class`, same problems
    blank_image: dict  # the trained model on `evaluate.blanked(problems)`
    n_test: int
    minutes: dict[str, float]  # wall-clock: data, cache, train, score, total
    samples_per_second: float  # while training
    samples_seen: int
    trainable_parameters: int
    model: str
    data: str
    seed: int
    settings: dict
    peak_memory_gb: float = field(default_factory=peak_memory_gb)
    versions: dict = field(default_factory=versions)
    machine: dict = field(default_factory=machine)
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    git: dict = field(default_factory=git_state)

    def __post_init__(self):
        wanted = {name: ("avg", "ci95", *CATEGORIES, "n") for name in SCORED} | {"minutes": PARTS}
        missing = [f"{name}.{key}" for name, keys in wanted.items() for key in keys if key not in getattr(self, name)]
        if missing:
            raise MetricsError(f"the metrics lack {', '.join(missing)}; record them before saving")
        broken = [path for path, leaf in _leaves(asdict(self)) if isinstance(leaf, float) and not math.isfinite(leaf)]
        if broken:
            raise MetricsError(f"{', '.join(broken)} is not a finite number; look at the run's log")

    def save(self, path: str | Path) -> None:
        """Write the JSON file in one step, so that no reader sees half of it."""
        path = Path(path)
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        aside = path.with_name(f".{path.name}.part")
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Metrics:
        """Read what `save` wrote. Raises `MetricsError` for a file that is no complete record."""
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MetricsError(f"{path} cannot be read as metrics ({error}); run again or restore the file") from error
        names = {f.name for f in fields(cls)}
        missing, unknown = sorted(names - set(record)), sorted(set(record) - names)
        if missing or unknown:
            kinds = (("lacks", missing), ("has unknown", unknown))
            faults = [f"{verb} {', '.join(keys)}" for verb, keys in kinds if keys]
            raise MetricsError(f"{path} {' and '.join(faults)}; write it with mmlora.metrics.Metrics.save")
        try:
            return cls(**record)
        except MetricsError as error:
            raise MetricsError(f"{path}: {error}") from error


def _leaves(value, path: str = "") -> Iterator[tuple[str, object]]:
    """(dotted path, value) of everything inside nested dictionaries and lists."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        yield path, value
        return
    for key, child in value.items():
        yield from _leaves(child, f"{path}.{key}" if path else str(key))
