"""Can the image problems be answered without their images? A text-only classifier must be at chance.

It is a linear softmax over the choices. Its features are bags of words: the choice's own words and position, and its
words crossed with those of the question and hint and with those of the other choices. So it sees every shortcut of the
kind "blue is right more often", "4 is right beside 1 and 7" or "blue is right when the question says most".
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmlora.problems.record import Problem

BUCKETS = 1 << 16  # hashed features; a few collisions blur no shortcut that is worth finding
STEPS, LEARNING_RATE, DECAY = 60, 0.05, 2e-4  # enough to fit a planted shortcut, stopped before it fits the noise


@dataclass(frozen=True)
class TextOnly:
    """What text alone achieves on `n` problems, beside two who know nothing: `majority` always takes the position
    that was right most often in training, `chance` takes any. `by_skill` holds accuracy, chance and n."""

    accuracy: float
    majority: float
    chance: float
    n: int
    by_skill: dict[str, tuple[float, float, int]]

    @property
    def standard_error(self) -> float:
        return (self.chance * (1 - self.chance) / self.n) ** 0.5


def text_only(train: Sequence[Problem], test: Sequence[Problem]) -> TextOnly:
    """Train the classifier on the words of `train` and score it on `test`; no image is touched."""
    weights = _fit(_bags(train), torch.tensor([problem.answer for problem in train]))
    guesses = _scores(weights, _bags(test)).argmax(1).tolist()
    right = [guess == problem.answer for guess, problem in zip(guesses, test)]
    positions = [problem.answer for problem in train]
    majority = max(range(5), key=positions.count)
    by_skill = {}
    for name in sorted({problem.skill for problem in test}):
        rows = [i for i, problem in enumerate(test) if problem.skill == name]
        chance = sum(1 / len(test[i].choices) for i in rows) / len(rows)
        by_skill[name] = (sum(right[i] for i in rows) / len(rows), chance, len(rows))
    return TextOnly(sum(right) / len(test), sum(problem.answer == majority for problem in test) / len(test),
                    sum(1 / len(problem.choices) for problem in test) / len(test), len(test), by_skill)  # fmt: skip


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9°.-]+", text.lower())


def _features(problem: Problem) -> list[list[int]]:
    """The feature buckets of each choice."""
    context = set(_words(f"{problem.question} {problem.hint}"))
    choices = [{f"={choice}", *_words(choice)} for choice in problem.choices]
    bags = []
    for place, own in enumerate(choices):
        names = own | {f"@{place}/{len(choices)}"}
        others = set().union(*(words for words in choices if words is not own))
        names |= {f"{word}~{each}" for word in own for each in context}
        names |= {f"{word}!{each}" for word in own for each in others}
        bags.append(sorted(zlib.crc32(name.encode()) % BUCKETS for name in names))
    return bags


@dataclass(frozen=True)
class _Bags:
    """The choices of all problems in a row: LongTensors of buckets [features], and [choices] each of the rest."""

    buckets: torch.Tensor
    offsets: torch.Tensor
    problem: torch.Tensor
    place: torch.Tensor


def _bags(problems: Sequence[Problem]) -> _Bags:
    bags = [(row, place, bag) for row, problem in enumerate(problems) for place, bag in enumerate(_features(problem))]
    ends = torch.tensor([len(bag) for _, _, bag in bags]).cumsum(0)
    return _Bags(torch.tensor([bucket for _, _, bag in bags for bucket in bag]),
                 torch.cat((ends.new_zeros(1), ends[:-1])),
                 torch.tensor([row for row, _, _ in bags]), torch.tensor([place for _, place, _ in bags]))  # fmt: skip


def _scores(weights: torch.Tensor, bags: _Bags) -> torch.Tensor:
    """FloatTensor [problems, 5]: the score of each choice, -inf where there is none."""
    scores = torch.nn.functional.embedding_bag(bags.buckets, weights[:, None], bags.offsets, mode="sum")[:, 0]
    table = torch.full((int(bags.problem[-1]) + 1, 5), -torch.inf)
    return table.index_put((bags.problem, bags.place), scores)


def _fit(bags: _Bags, answers: torch.Tensor) -> torch.Tensor:
    """FloatTensor [BUCKETS]: one weight for each feature."""
    weights = torch.zeros(BUCKETS, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=LEARNING_RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(_scores(weights, bags), answers) + DECAY * weights.square().sum()
        loss.backward()
        optimizer.step()
    return weights.detach()
