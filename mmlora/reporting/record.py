"""What a run leaves behind in figures: `metrics.json`, and each file in `results/` the same.

A figure without its machine, versions, seed and commit is an anecdote, so a record that lacks one is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

from mmlora.errors import MMLoraError
from mmlora.files import refusals, write_whole
from mmlora.problems.record import CATEGORIES
from mmlora.reporting.machine import git_state, machine, peak_memory_gb, versions

SCORED = ("accuracy", "base", "majority", "blank_image")
#: What the first records lack. None reads "not measured yet".
LATER = ("seen_wording", "unseen_wording", "untrained_skills", "controls", "best_guess", "chance", "best_probe")
BASE = ("name", "revision", "licence", "weights")
PARTS = ("data", "cache", "train", "score", "total")


class MetricsError(MMLoraError):
    """A record of a run that is incomplete or unreadable; the message names the file or the keys."""


@dataclass(frozen=True)
class Metrics:
    """One run. `accuracy` and its three yardsticks are `Scores.to_dict()`. Raises `MetricsError` for a missing key."""

    accuracy: dict
    base: dict  # the model before training, same problems
    majority: dict  # `controls.majority_class`, same problems
    blank_image: dict  # the trained model on `controls.blanked(problems)`; no figures where no problem has a picture
    scored_by: dict[str, str]  # how each of these four was found, such as "generate" or "likelihood"
    n_test: int
    minutes: dict[str, float]  # of work on data, align, cache, train, score, and total
    samples_per_second: float  # while training
    samples_seen: int
    trainable_parameters: int
    model: str
    base_model: dict  # `models.base.Base`: name, revision, licence, hash of the stored weights
    data: str
    seed: int
    settings: dict  # `settings.Settings`
    seen_wording: dict | None = None  # of the same answers, those to sentences that training asks in too
    unseen_wording: dict | None = None  # those to sentences that it does not
    untrained_skills: dict | None = None  # the trained model on the split "transfer", which no other figure counts
    controls: dict = field(default_factory=dict)  # `controls.controls` by name, and text_only where it was trained
    best_guess: dict | None = None  # `controls.best_guess`: a fixed guess for each skill
    chance: dict | None = None  # `controls.chance`: any guess
    best_probe: dict | None = None  # `validation.best_probe`: whose adapter is in `best/`, and the last one
    peak_memory_gb: float = field(default_factory=peak_memory_gb)
    versions: dict = field(default_factory=versions)
    machine: dict = field(default_factory=machine)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    git: dict = field(default_factory=git_state)

    def __post_init__(self):
        scored = ("avg", "ci95", *CATEGORIES, "n")
        wanted = {name: scored for name in SCORED}
        wanted |= {"scored_by": SCORED, "base_model": BASE, "minutes": PARTS}
        missing = [f"{name}.{key}" for name, keys in wanted.items() for key in keys if key not in getattr(self, name)]
        missing += [f"controls.{name}.{key}" for name, way in self.controls.items() for key in scored if key not in way]
        if missing:
            raise MetricsError(f"the metrics lack {', '.join(missing)}; record them before saving")
        broken = [path for path, leaf in _leaves(asdict(self)) if isinstance(leaf, float) and not math.isfinite(leaf)]
        if broken:
            raise MetricsError(f"{', '.join(broken)} is not a finite number; look at the run's log")

    def save(self, path: str | Path) -> None:
        """Write the JSON file in one step, so that no reader sees half of it. Raises `FileError`."""
        with refusals(path):
            write_whole(Path(path), json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Metrics:
        """Read what `save` wrote. Raises `MetricsError` for a file that is no complete record."""
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MetricsError(f"{path} cannot be read as metrics ({error}); run again or restore the file") from error
        names = {f.name for f in fields(cls)}
        missing, unknown = sorted(names - {*record, *LATER}), sorted(set(record) - names)
        if missing or unknown:
            kinds = (("lacks", missing), ("has unknown", unknown))
            faults = [f"{verb} {', '.join(keys)}" for verb, keys in kinds if keys]
            raise MetricsError(f"{path} {' and '.join(faults)}; write it with Metrics.save")
        try:
            return cls(**record)
        except MetricsError as error:
            raise MetricsError(f"{path}: {error}") from error


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """(dotted path, value) of everything inside nested dictionaries and lists."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        yield path, value
        return
    for key, child in value.items():
        yield from _leaves(child, f"{path}.{key}" if path else str(key))
