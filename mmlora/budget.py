"""The minutes of a whole run: how many problems fit into them, what each part takes, what is left for training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from mmlora.files import write_whole

TRAIN_A_MINUTE, WHOLE_TRAIN = 133, 60  # problems, and the minutes from which on it is all of them, MiniSQA's 8,000
TEST_A_MINUTE, WHOLE_TEST = 30, 33  # the same for its 1,000


@dataclass
class Budget:
    """How a budget of minutes is spent. All sizes follow from `minutes`.

    The clock goes while a part of the run does, and stands while a reader of notebook 04 thinks about what came out.

    A shorter run trains on fewer problems (each costs a fixed prefix to cache) and scores fewer (each is answered three
    times), but enough for an interval that tells it from the base model. An hour takes whole splits.
    """

    minutes: float
    file: Path | None = None  # where `spent` is kept for a session that goes on after this one
    spent: dict[str, float] = field(default_factory=dict)  # minutes by part: data, align, cache, train, score
    running: float | None = None  # `perf_counter` at the start of the part that runs now

    @property
    def train_problems(self) -> int | None:
        """None means all, as in `load_problems`."""
        return max(64, round(TRAIN_A_MINUTE * self.minutes)) if self.minutes < WHOLE_TRAIN else None

    @property
    def test_problems(self) -> int | None:
        """None means all: a score on a part of ScienceQA's test split is no row beside the published ones."""
        return max(48, round(TEST_A_MINUTE * self.minutes)) if self.minutes < WHOLE_TEST else None

    @property
    def probe_problems(self) -> int:
        """Validation problems at each moment of a `Probe`: a minute in sixty, and none where that makes too few to tell."""
        return min(96, round(2 * self.minutes)) if self.minutes >= WHOLE_TEST else 0

    @property
    def align_minutes(self) -> float:
        """Minutes in which a connector learns to read: a sixth, for what it misreads no adapter can mend."""
        return self.minutes / 6

    @property
    def control_problems(self) -> int:
        """Problems with a picture that each control answers: an interval of seven points either side from 33 minutes on."""
        return min(200, max(40, round(6 * self.minutes)))

    def elapsed(self) -> float:
        """Minutes that all parts took so far, including the one that runs now and those of earlier sessions."""
        now = 0.0 if self.running is None else (perf_counter() - self.running) / 60
        return sum(self.spent.values()) + now

    def left(self) -> float:
        """Minutes that are left; negative if more were spent."""
        return self.minutes - self.elapsed()

    def add(self, part: str, minutes: float) -> None:
        """Count these minutes towards `part`."""
        self.spent[part] = self.spent.get(part, 0.0) + minutes

    @contextmanager
    def watch(self, part: str) -> Iterator[None]:
        """Count what happens inside towards `part`, also where it breaks off."""
        began = self.running = perf_counter()
        try:
            yield
        finally:
            self.running = None
            self.add(part, (perf_counter() - began) / 60)
            self._keep()

    def _keep(self) -> None:
        if self.file:
            with suppress(OSError):  # a full disk is said where it matters, and no reason to lose what was trained
                write_whole(self.file, json.dumps(self.spent, indent=1) + "\n")

    def go_on(self, file: Path) -> None:
        """Count what sessions before this one spent on everything but training, which its checkpoints know."""
        try:
            spent = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            for part in spent.keys() - {"train"}:
                self.add(part, float(spent[part]))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            print(f"{file} cannot be read ({error}), so minutes that earlier sessions spent are not counted")

    def training_minutes(self, scoring: float) -> float:
        """What is left for training when `scoring` minutes are kept for the end.

        At least a tenth of the budget is always trained: on a machine so slow that the fixed parts ate it, the run
        takes longer than asked and says so. So it does where answers take most of it.
        """
        left, least = self.left() - scoring, 0.1 * self.minutes
        if left < least:
            print(
                f"this machine needs {self.elapsed() + scoring:.1f} of {self.minutes:g} minutes besides training; "
                f"training {least:.1f} minutes all the same"
            )
        elif (answers := self.spent.get("score", 0.0) + scoring) > 2 * left:
            print(
                f"of {self.minutes:g} minutes, answers take {answers:.1f} and leave {left:.1f} for training; more minutes or "
                "fewer test problems would teach more"
            )
        return max(left, least)

    def to_dict(self) -> dict[str, float]:
        """The `minutes` of metrics.json."""
        parts = {part: round(self.spent.get(part, 0.0), 2) for part in ("data", "align", "cache", "train", "score")}
        return {**parts, "total": round(self.elapsed(), 2)}
