"""Answers on the way: how many validation problems a model gets right while it trains, which no training loss can say."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SHARES = (0.1, 0.25, 0.5, 0.75, 0.95)  # of the budget: close together where a curve is steep, the last one late


@dataclass(frozen=True)
class Probe:
    """What `fit` asks at set moments; the time that it takes counts towards the budget."""

    measure: Callable[[], dict]  # `{"correct": …, "n": …}` of the model as it is
    shares: Sequence[float] = SHARES  # of the budget, ascending
    keep: Callable[[dict], None] | None = None  # takes the step's record with what was measured, the model unchanged

    def ask(self, record: dict) -> None:
        """Measure, and put the result into the step's record, as `validation`.

        Without warnings in the middle of a progress bar's line: scoring after training gives its own.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record["validation"] = self.measure()
            if self.keep:
                self.keep(record)

    def due(self, share: float, last: float) -> bool:
        """Whether a moment has come between the share of the budget where the last probe ended and this one."""
        return any(last < moment <= share for moment in self.shares)
