"""Ctrl-C, and SIGTERM, which is sent before a machine is shut down: training stops between two steps, never in an update."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from mmlora.models import processes
from mmlora.training.checkpoint import Chance


@dataclass
class Place:
    """How far a run has come: what a resume needs beside tensors."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # batches taken from this epoch
    samples: int = 0
    tokens: int = 0
    probed: float = 0.0  # share of the budget where the last probe ended


class Moment:
    """The state between two steps, to go back to if the next step is broken off."""

    def __init__(self, place: Place):
        self.place, self.chance = replace(place), Chance.now()

    def again(self) -> Place:
        """Restore the random states of that moment and return its place."""
        self.chance.restore()
        return self.place


class Interruption:
    """Inside, both signals raise a `KeyboardInterrupt`; on leaving, a SIGTERM is raised again for its earlier handler.

    It is raised at once, but inside `whole` only at its end, and with several processes only in `agreed`, in all of them.
    """

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal that came
        self.due = False  # it came, and nothing was broken off yet
        self.held = processes.count() > 1
        self.before: dict[int, Callable[[int, FrameType | None], Any] | int] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                if before not in (None, signal.SIG_IGN):
                    self.before[number] = before  # type: ignore[assignment]
                    signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self.before.items():
            signal.signal(number, before)
        if self.asked == signal.SIGTERM:
            sys.stdout.flush()
            signal.raise_signal(signal.SIGTERM)

    def _take(self, number: int, _: FrameType | None) -> None:
        self.asked, self.due = number, True
        if not self.held:
            self._break_off()

    def _break_off(self) -> None:
        self.due = False
        raise KeyboardInterrupt

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What is inside is done as a whole; a signal that comes meanwhile takes effect at its end."""
        held, self.held = self.held, True
        try:
            yield
        finally:
            self.held = held
        if self.due and not held:
            self._break_off()

    def agreed(self) -> None:
        """Break off if any process got a signal: all processes at the same step."""
        if processes.count() > 1 and any(processes.gathered(self.due)):
            self._break_off()

    def no_more(self) -> None:
        """From now on a signal breaks nothing off: training is already stopping."""
        self.held = True
