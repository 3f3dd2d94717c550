"""The clock of a training run: how much of its budget is spent, over all the processes that shared it."""

from __future__ import annotations

from collections import deque
from time import perf_counter

from mmlora.training.settings import TrainSettings


class Clock:
    """Counts towards the budget of `settings`: its minutes, checkpoints included, or else its steps."""

    def __init__(self, settings: TrainSettings):
        self.settings, self.started = settings, perf_counter()
        self.budget = 60 * (settings.minutes or 0.0)  # seconds; unused where steps are counted
        self.before = 0.0  # seconds spent by earlier processes
        self.save_seconds = 0.0  # of the last checkpoint
        self.probe_seconds = 0.0  # of the last probe
        self.recent: deque[float] = deque(maxlen=32)  # seconds of a step; lengths vary, so the slowest is reserved

    def seconds(self) -> float:
        return self.before + perf_counter() - self.started

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
