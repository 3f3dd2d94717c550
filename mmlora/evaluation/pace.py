"""Answering as many problems as fit in a given time, drawn by lot, so that those left out are like those answered.

How fast a machine answers that other programs use too is not known beforehand. A run limited to some minutes then scores
fewer problems, and prints how many.
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
    """Seconds that an answer takes, measured again in every call.

    `left()` gives the seconds that all remaining answers together may take; `left` is None where there is no limit. `wanted`
    is the number of remaining answers.
    """

    def __init__(self, seconds: float, wanted: int, left: Callable[[], float] | None):
        self.seconds, self.wanted, self.left = seconds, wanted, left

    def answered(self, problems: Sequence[Problem], answer: Answer) -> tuple[list[Problem], list[Prediction]]:
        """The problems that were answered, in their order, and the answers.

        All of them, in one call, if they fit into their share of the time. Otherwise some, drawn by lot: first half of what
        fits, then the rest at the pace measured on these; never fewer than `LEAST`.
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
        from mmlora.models import processes  # not at the top: it imports torch, which saved answers do not need

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
