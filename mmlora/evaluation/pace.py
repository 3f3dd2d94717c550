"""Answers within a time: as many as fit, drawn by lot, so that those left out are like those answered.

A machine that other programs use too answers at a pace that nobody knows beforehand. A run that promised its minutes scores
fewer problems there, and says how many.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from time import perf_counter

from mmlora.evaluation.scores import Prediction
from mmlora.problems.record import Problem

Answer = Callable[[list[Problem]], list[Prediction]]
LEAST = 24  # problems that are answered whatever the time: fewer tell nothing
SLACK = 1.25  # how much longer than estimated all of them may take before some are left out


class Pace:
    """Seconds that an answer takes, estimated anew by every call that is long enough to tell.

    `left()` gives the seconds that all answers still to come may take; None where nothing was promised. `wanted` is how many
    those are.
    """

    def __init__(self, seconds: float, wanted: int, left: Callable[[], float] | None):
        self.seconds, self.wanted, self.left = seconds, wanted, left

    def answered(self, problems: Sequence[Problem], answer: Answer) -> tuple[list[Problem], list[Prediction]]:
        """The problems that were answered, in their order, and the answers.

        All of them where they fit into their share of the time, in one call. Otherwise some, drawn by lot: half of what fits,
        then at the pace that this took the rest of it, and never fewer than `LEAST`.
        """
        lot = list(range(len(problems)))
        random.Random(len(lot)).shuffle(lot)
        found: dict[int, Prediction] = {}
        share = self._share(len(problems))
        began = perf_counter()
        while len(found) < len(problems):
            rest = lot[len(found) :]
            count = self._next(len(found), len(rest), share - (perf_counter() - began))
            if not count:
                break
            found |= self._timed([(i, problems[i]) for i in sorted(rest[:count])], answer)
        self.wanted -= len(problems)
        kept = sorted(found)
        return [problems[i] for i in kept], [found[i] for i in kept]

    def _share(self, count: int) -> float:
        """Seconds of what is left that so many of the wanted answers may take."""
        if self.left is None or not count:
            return float("inf")
        return self.left() * count / max(count, self.wanted)

    def _next(self, done: int, rest: int, seconds: float) -> int:
        """How many more to answer in one call, when so many seconds are left for them: the same in every process."""
        if self.left is None:
            return rest
        from mmlora.models import processes  # here, for it brings torch, which saved answers need not wait for

        pace, seconds = processes.agreed(self.seconds, seconds)
        if not done and rest * pace <= SLACK * seconds:
            return rest
        fits = int(seconds / pace) if seconds > 0 else 0
        if not done:
            fits //= 2
        return min(rest, max(fits, LEAST - done))

    def _timed(self, some: Sequence[tuple[int, Problem]], answer: Answer) -> dict[int, Prediction]:
        began = perf_counter()
        said = answer([problem for _, problem in some])
        self.seconds = max(1e-6, (perf_counter() - began) / len(some))
        return {i: each for (i, _), each in zip(some, said, strict=True)}
