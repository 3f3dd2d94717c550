"""From predictions to figures: ScienceQA's nine columns, intervals, baselines and paired comparisons.

No model is needed here, so a notebook can score saved predictions in milliseconds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mmlora.errors import MMLoraError
from mmlora.files import refusals, write_whole
from mmlora.problems.record import CATEGORIES, Problem

#: How an answer is found; `evaluation.answering.evaluate` says what each means.
Method = Literal["likelihood", "letter", "generate", "official", "lmms_eval"]


class ScoreError(MMLoraError):
    """Predictions and problems that do not belong together; the message names the first id at fault."""


@dataclass(frozen=True)
class Prediction:
    """One answered problem. `choice` indexes the problem's own choices; None if the model named none of them.

    `text` is what the model said; `scores` holds one number per choice (a log-probability), or nothing
    where the method gives none.
    """

    id: str
    choice: int | None
    correct: bool
    text: str = ""
    scores: tuple[float, ...] = ()


def save_predictions(predictions: Iterable[Prediction], path: str | Path) -> None:
    """Write one JSON object per line."""
    lines = (json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in predictions)
    with refusals(path):
        write_whole(Path(path), "".join(lines))


def load_predictions(path: str | Path) -> list[Prediction]:
    """Read what `save_predictions` wrote."""
    try:
        with refusals(path):
            records = map(json.loads, Path(path).read_text(encoding="utf-8").split("\n")[:-1])
        return [Prediction(**record | {"scores": tuple(record["scores"])}) for record in records]
    except (ValueError, TypeError, KeyError) as error:
        raise ScoreError(
            f"{path} does not hold predictions ({error}); give a file that save_predictions wrote"
        ) from error


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share, in [0, 1]; it keeps its coverage near 0 and 1 and for small `n`."""
    if n == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest  # a second to import, which `mmlora --help` need not wait for

    low, high = binomtest(correct, n).proportion_ci(0.95, "wilson")
    return float(low), float(high)


@dataclass(frozen=True)
class Share:
    """`correct` of `n`; accuracies and intervals in percent, None without a problem."""

    correct: int
    n: int

    @property
    def accuracy(self) -> float | None:
        return round(100 * self.correct / self.n, 2) if self.n else None

    @property
    def ci95(self) -> tuple[float, float] | None:
        low, high = wilson(self.correct, self.n)
        return (round(100 * low, 2), round(100 * high, 2)) if self.n else None


@dataclass(frozen=True)
class Scores:
    """A `Share` per ScienceQA column and per skill, and how many problems got no answer (they count as wrong)."""

    columns: dict[str, Share]
    by_skill: dict[str, Share]
    unanswered: int

    @property
    def accuracy(self) -> float | None:
        return self.columns["Avg"].accuracy

    @property
    def ci95(self) -> tuple[float, float] | None:
        return self.columns["Avg"].ci95

    @property
    def n(self) -> int:
        return self.columns["Avg"].n

    def to_dict(self) -> dict:
        """The form kept in metrics.json: percent with two decimals, null for a column without problems."""
        return {
            "avg": self.accuracy,
            "ci95": self.ci95 and list(self.ci95),
            **{name: share.accuracy for name, share in self.columns.items()},
            "n": {name: share.n for name, share in self.columns.items()},
            "unanswered": self.unanswered,
            "by_skill": {name: [share.correct, share.n] for name, share in self.by_skill.items()},
        }

    @classmethod
    def from_dict(cls, record: dict) -> Scores:
        """The inverse of `to_dict` (exact below 10,000 problems: two decimals of a percent tell counts apart)."""
        counts = {name: record["n"][name] for name in CATEGORIES}
        columns = {name: Share(round((record[name] or 0) * n / 100), n) for name, n in counts.items()}
        by_skill = {name: Share(*pair) for name, pair in record["by_skill"].items()}
        return cls(columns, by_skill, record["unanswered"])


def by_id(problems: Sequence[Problem], predictions: Sequence[Prediction]) -> list[tuple[Problem, Prediction]]:
    """Pair each problem with its prediction; `ScoreError` unless each id occurs exactly once on both sides."""
    for kind, records in (("problem", problems), ("prediction", predictions)):
        twice = [key for key, count in Counter(r.id for r in records).items() if count > 1]
        if twice:
            raise ScoreError(f"{kind} {twice[0]} occurs more than once; score each problem once")
    found = {p.id: p for p in predictions}
    missing = [p.id for p in problems if p.id not in found]
    if missing:
        raise ScoreError(f"{len(missing)} problems have no prediction, the first is {missing[0]}; evaluate them all")
    if len(found) > len(problems):
        stray = sorted(set(found) - {p.id for p in problems})[0]
        raise ScoreError(f"prediction {stray} belongs to none of the {len(problems)} problems; pass the right ones")
    return [(problem, found[problem.id]) for problem in problems]


def score(problems: Sequence[Problem], predictions: Sequence[Prediction]) -> Scores:
    """Accuracy in ScienceQA's nine columns and by skill. Raises `ScoreError` where the ids do not match."""
    pairs = by_id(problems, predictions)

    def share(correct: list[bool]) -> Share:
        return Share(sum(correct), len(correct))

    columns = {c: share([q.correct for p, q in pairs if c in p.categories]) for c in CATEGORIES}
    skills = sorted({p.skill for p in problems if p.skill})
    by_skill = {s: share([q.correct for p, q in pairs if p.skill == s]) for s in skills}
    return Scores(columns, by_skill, sum(q.choice is None for q in predictions))


@dataclass(frozen=True)
class Comparison:
    """First minus second on the same problems: difference and interval in points, McNemar's exact p-value."""

    difference: float
    ci95: tuple[float, float]
    p_value: float
    only_first: int
    only_second: int


def compare(
    first: Sequence[Prediction], second: Sequence[Prediction], draws: int = 10_000, seed: int = 0
) -> Comparison:
    """Is `first` better than `second`? Paired by id, so the problems' difficulty cancels out.

    The interval is a paired bootstrap over problems, the p-value two-sided and exact (McNemar 1947): under the
    null hypothesis each problem that only one of them solved is a fair coin. Raises `ScoreError` on other ids.
    """
    right = {p.id: p.correct for p in first}
    if not right or right.keys() != {p.id for p in second} or not len(right) == len(first) == len(second):
        raise ScoreError("the two lists answer different problems; compare predictions of the same problems")
    from scipy.stats import binomtest

    n = len(first)
    only_first = sum(right[p.id] and not p.correct for p in second)
    only_second = sum(p.correct and not right[p.id] for p in second)
    shares = [only_first / n, only_second / n]
    drawn = np.random.default_rng(seed).multinomial(n, [*shares, 1 - sum(shares)], draws)
    low, high = np.percentile(100 * (drawn[:, 0] - drawn[:, 1]) / n, [2.5, 97.5])
    flips = only_first + only_second
    p_value = float(binomtest(only_first, flips).pvalue) if flips else 1.0
    return Comparison(
        difference=round(100 * (only_first - only_second) / n, 2),
        ci95=(round(float(low), 2), round(float(high), 2)),
        p_value=p_value,
        only_first=only_first,
        only_second=only_second,
    )
