"""The clock of a training run: how much of its budget is spent, over all the processes that shared it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from statistics import median
from time import perf_counter

from mmlora.training.settings import TrainSettings

OFTEN = 16  # steps after which the minutes are estimated anew
Allowed = Callable[[float], float]


class Clock:
    """Counts towards the budget of `settings`: its minutes, checkpoints included, or else its steps.

    `allowed`, if given, is called now and then with how many times slower steps have become since training began; it returns
    the minutes that training may take in all.
    """

    def __init__(self, settings: TrainSettings, allowed: Allowed | None = None):
        self.settings, self.started, self.allowed = settings, perf_counter(), allowed
        self.budget = 60 * (settings.minutes or 0.0)  # seconds; unused where steps are counted
        self.before = 0.0  # seconds spent by earlier processes
        self.save_seconds = 0.0  # of the last checkpoint
        self.probe_seconds = 0.0  # of the last probe
        self.recent: deque[float] = deque(maxlen=32)  # seconds of a step; lengths vary, so the slowest is reserved
        self.usual: float | None = None  # seconds of a step when this process began, the median of `OFTEN`

    def seconds(self) -> float:
        return self.before + perf_counter() - self.started

    def estimate_anew(self) -> None:
        """Ask for the minutes that are left at the pace of the last steps; called every `OFTEN` steps."""
        if self.allowed is None or self.settings.steps is not None or len(self.recent) < OFTEN:
            return
        now = median(islice(reversed(self.recent), OFTEN))
        if self.usual is None:
            self.usual = now
        self.budget = 60 * self.allowed(now / self.usual)

    def time_for_a_step(self, done: int) -> bool:
        """Whether one more step, and the checkpoint at the end, fit in the budget after `done` steps."""
        if self.settings.steps is not None:
            return done < self.settings.steps
        reserve = max(self.recent, default=0.0) + 2 * self.save_seconds  # twice: disks waver
        return self.seconds() + reserve < self.budget

    def time_for_a_probe(self) -> bool:
        """Whether another probe like the last one fits in."""
        spent = self.seconds() + self.probe_seconds + 2 * self.save_seconds
        return self.settings.steps is not None or spent < self.budget

    def share(self, done: int) -> float:
        """How much of the budget is spent by the middle of the coming step."""
        if self.settings.steps is not None:
            return (done + 0.5) / self.settings.steps
        return (self.seconds() + (self.recent[-1] if self.recent else 0.0) / 2) / self.budget

    def seconds_left(self, done: int) -> float:
        if self.settings.steps is not None:
            return self.seconds() * (self.settings.steps / done - 1)
        return self.budget - self.seconds()
