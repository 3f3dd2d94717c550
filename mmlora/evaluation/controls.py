"""What a figure is compared with: answers that cannot see, answers that cannot think."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mmlora.evaluation.scores import Prediction
from mmlora.problems.record import Problem


def blanked(problems: Sequence[Problem]) -> list[Problem]:
    """The problems with a picture, each behind plain grey: evaluate these to see what needs no looking."""
    return [problem.blanked() for problem in problems if problem.image is not None]


def majority_class(problems: Sequence[Problem], train: Sequence[Problem]) -> list[Prediction]:
    """The blindest answers that learned something: one fixed position per number of choices.

    A problem with k choices is answered with the position (index into `choices`) that was right most often among
    the `train` problems with k choices. Ties, and a k that `train` lacks, go to the first position.
    """
    counts = Counter((len(p.choices), p.answer) for p in train)

    def answer(problem: Problem) -> Prediction:
        k = len(problem.choices)
        choice = max(range(k), key=lambda i: (counts[k, i], -i))
        return Prediction(problem.id, choice, choice == problem.answer, problem.choices[choice])

    return [answer(p) for p in problems]
