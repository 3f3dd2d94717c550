"""What a figure is compared with: answers that cannot see, answers that cannot think."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from mmlora.evaluation.scores import Prediction
from mmlora.problems.record import Problem


def blanked(problems: Sequence[Problem]) -> list[Problem]:
    """The problems with a picture, each behind plain grey: evaluate these to see what needs no looking."""
    return [problem.blanked() for problem in problems if problem.image is not None]


def swapped(problems: Sequence[Problem], seed: int = 0) -> list[Problem]:
    """Each problem that has a picture with the picture of another one of its skill: who looks is led astray.

    Where a skill has a single picture there is none to swap with, and the problem is left out.
    """
    by_skill = defaultdict(list)
    for problem in problems:
        if problem.image is not None:
            by_skill[problem.skill].append(problem)
    others: dict[str, Problem] = {}
    for skill, alike in by_skill.items():
        ring = random.Random(f"{seed} {skill}").sample(alike, len(alike))
        others |= {problem.id: other for problem, other in zip(ring, [*ring[1:], ring[0]]) if len(ring) > 1}
    found = [(problem, others[problem.id]) for problem in problems if problem.id in others]
    return [replace(problem, image=other.image, caption=other.caption) for problem, other in found]


def captioned(problems: Sequence[Problem]) -> list[Problem]:
    """Each problem that has a picture and a caption with the caption as its context instead: as if all had been read rightly."""
    told = [problem for problem in problems if problem.image is not None and problem.caption]
    return [replace(p, image=None, hint=f"{p.caption}. {p.hint}".strip(" ")) for p in told]


def reading(problems: Sequence[Problem], read: Callable[[Problem], str]) -> list[Prediction]:
    """Answers without reasoning: the choice with the largest share of its words in what `read` finds in the picture.

    The first of several; none where no word of any choice was read.
    """

    def answer(problem: Problem) -> Prediction:
        text = read(problem)
        seen = _words(text)
        shares = [len(words & seen) / max(1, len(words)) for words in map(_words, problem.choices)]
        choice = shares.index(max(shares)) if any(shares) else None
        return Prediction(problem.id, choice, choice == problem.answer, text)

    return [answer(problem) for problem in problems]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


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
