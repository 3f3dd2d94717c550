"""What a figure is compared with: answers that cannot see, answers that cannot think."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from PIL import Image

from mmlora.evaluation.scores import Prediction
from mmlora.problems.pictures import digest
from mmlora.problems.record import CATEGORIES, Problem


class Answered(NamedTuple):
    """A control: what was asked, and what was said to it."""

    problems: list[Problem]
    predictions: list[Prediction]


def controls(
    problems: Sequence[Problem],
    answer: Callable[[list[Problem]], list[Prediction]],
    read: Callable[[Image.Image], str] | None,
    count: int | None = None,
) -> dict[str, Answered]:
    """The controls that need no other training, each on `count` (default all) of the problems with a picture.

    `answer` is the trained model, `read` says what it reads in a picture. A control that cannot be taken is left out:
    *reading* without `read`, *captions_as_text* without captions, *swapped* where no skill has two pictures.
    """
    shown = evenly([problem for problem in problems if problem.image is not None], count)
    found = {name: Answered(each, answer(each)) for name, each in variants(problems, shown).items()}
    if read is not None and shown:
        found["reading"] = Answered(shown, reading(shown, read))
    return found


def variants(problems: Sequence[Problem], shown: Sequence[Problem]) -> dict[str, list[Problem]]:
    """What each control asks, by its name: the `shown` problems, changed. A control without any problem is left out."""
    own = {problem.id for problem in shown}
    asked = {
        "swapped": [problem for problem in swapped(problems) if problem.id in own],
        "captions_as_text": captioned(shown),
    }
    return {name: each for name, each in asked.items() if each}


def evenly(problems: Sequence[Problem], count: int | None) -> list[Problem]:
    """`count` of the problems (all, where there are no more), taken from the whole list in like steps."""
    if count is None or count >= len(problems):
        return list(problems)
    return [problems[i * len(problems) // count] for i in range(count)]


def unpictured(problems: Sequence[Problem]) -> list[Problem]:
    """The problems with their text alone: train on these to see what the text gives away."""
    return [replace(problem, image=None) for problem in problems]


def blanked(problems: Sequence[Problem]) -> list[Problem]:
    """The problems with a picture, each behind plain grey: evaluate these to see what needs no looking."""
    return [problem.blanked() for problem in problems if problem.image is not None]


def swapped(problems: Sequence[Problem], seed: int = 0) -> list[Problem]:
    """Each problem that has a picture with the picture of another one of its skill: who looks is led astray.

    Where a skill has a single picture there is none to swap with, and its problems are left out.
    """
    shown = [(problem, digest(problem.image)) for problem in problems if problem.image is not None]
    by_skill: defaultdict[str, dict[bytes, Problem]] = defaultdict(dict)  # a problem of each picture
    for problem, picture in shown:
        by_skill[problem.skill].setdefault(picture, problem)
    others: dict[tuple[str, bytes], Problem] = {}
    for skill, alike in by_skill.items():
        ring = random.Random(f"{seed} {skill}").sample(list(alike), len(alike))
        others |= {(skill, own): alike[other] for own, other in zip(ring, [*ring[1:], ring[0]]) if len(ring) > 1}
    found = [(p, others[p.skill, picture]) for p, picture in shown if (p.skill, picture) in others]
    return [replace(problem, image=other.image, caption=other.caption) for problem, other in found]


def captioned(problems: Sequence[Problem]) -> list[Problem]:
    """Each problem that has a picture and a caption with the caption as its context instead: as if all had been read rightly."""
    told = [problem for problem in problems if problem.image is not None and problem.caption]
    return [replace(p, image=None, hint=f"{p.caption.rstrip('.')}. {p.hint}".strip(" ")) for p in told]


def reading(problems: Sequence[Problem], read: Callable[[Image.Image], str]) -> list[Prediction]:
    """Answers without reasoning: the choice with the largest share of its words in what `read` finds in the picture.

    The first of several; none where no word of any choice was read. Every problem has a picture.
    """

    def answer(problem: Problem) -> Prediction:
        assert problem.image is not None
        text = read(problem.image)
        seen = set(words(text))
        shares = [len(own & seen) / max(1, len(own)) for own in (set(words(choice)) for choice in problem.choices)]
        choice = shares.index(max(shares)) if any(shares) else None
        return Prediction(problem.id, choice, choice == problem.answer, text)

    return [answer(problem) for problem in problems]


def words(text: str) -> list[str]:
    """The words and numbers of a text in their order, without capitals and punctuation."""
    return re.findall(r"\w+", text.lower())


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


def best_guess(problems: Sequence[Problem], train: Sequence[Problem]) -> list[Prediction]:
    """Each skill's best fixed guess: of the choices offered, the one that was right most often when `train` offered it.

    A choice that `train` never offered counts as at chance. Ties go to the first.
    """
    offered: Counter[tuple[str, str]] = Counter()
    right: Counter[tuple[str, str]] = Counter()
    for problem in train:
        offered.update((problem.skill, choice) for choice in problem.choices)
        right[problem.skill, problem.answer_text] += 1

    def answer(problem: Problem) -> Prediction:
        rates = [
            right[problem.skill, choice] / seen
            if (seen := offered[problem.skill, choice])
            else 1 / len(problem.choices)
            for choice in problem.choices
        ]
        choice = rates.index(max(rates))
        return Prediction(problem.id, choice, choice == problem.answer, problem.choices[choice])

    return [answer(problem) for problem in problems]


def guessing(problems: Sequence[Problem]) -> float | None:
    """The percentage that guessing gets right; None of no problems."""
    return 100 * sum(1 / len(p.choices) for p in problems) / len(problems) if problems else None


def chance(problems: Sequence[Problem]) -> dict:
    """What guessing gives, in percent, in the columns and by the skills of `Scores.to_dict`."""

    def mean(some: list[Problem]) -> float | None:
        return None if (found := guessing(some)) is None else round(found, 2)

    columns = {name: mean([p for p in problems if name in p.categories]) for name in CATEGORIES}
    skills = sorted({p.skill for p in problems if p.skill})
    return {
        "avg": columns["Avg"],
        **columns,
        "by_skill": {skill: mean([p for p in problems if p.skill == skill]) for skill in skills},
    }
