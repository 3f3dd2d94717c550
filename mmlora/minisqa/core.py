"""How a MiniSQA skill is declared and how problems are drawn from all of them.

A skill is a function from a random generator to a `Draft`. Honesty is built in here: the choices are drawn
first and the right one among them afterwards, and the positions of right answers are dealt from balanced decks.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from PIL import Image

from mmlora.errors import MMLoraError
from mmlora.minisqa.wordings import reworded
from mmlora.problems.record import Problem
from mmlora.problems.rows import DataError, NoSplit

#: The share of text-only drafts (by a hash of their text) that may appear in a split: no text is in two splits.
SPLIT_SHARES = {"train": (0, 70), "validation": (70, 80), "test": (80, 100), "transfer": (0, 100)}
SPLIT_SIZES = {"train": 8000, "validation": 500, "test": 1000, "transfer": 100}
#: Asked in the split "transfer" alone: pictures that a trained skill shows too, pictures of another kind, text.
UNTRAINED = (
    "Animal adaptations: skins and body coverings",
    "Use a letter-number grid",
    "Use context clues to find the meaning of a word",
)


@dataclass(frozen=True)
class Draft:
    """What a skill makes: the problem before its choices are shuffled and its metadata added.

    `answer` indexes `choices`. `solution` is a few short sentences that end in the deciding step.
    `caption` says what is to be seen in the picture, in at most 24 word tokens, and is empty without one.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    solution: str
    image: Image.Image | None = None
    caption: str = ""
    hint: str = ""


Draw = Callable[[random.Random], Draft]


@dataclass(frozen=True)
class Skill:
    name: str
    subject: str
    topic: str
    category: str
    grades: tuple[int, int]
    lecture: str
    weight: float
    draw: Draw


SKILLS: dict[str, Skill] = {}


class UnknownSkill(MMLoraError):
    """No skill has this name; the message lists the nearest ones."""


def skill(
    name: str,
    *,
    subject: str,
    topic: str,
    category: str,
    grades: tuple[int, int],
    lecture: str,
    weight: float = 1.0,
) -> Callable[[Draw], Draw]:
    """Register a function `(random.Random) -> Draft` as the MiniSQA skill `name`."""

    def register(draw: Draw) -> Draw:
        if name in SKILLS:
            raise ValueError(f"two skills are called {name!r}")
        SKILLS[name] = Skill(name, subject, topic, category, grades, " ".join(lecture.split()), weight, draw)
        return draw

    return register


def find_skills(names: list[str] | None, split: str) -> list[Skill]:
    """The named skills, or all of the split's; raises `UnknownSkill` with the nearest names."""
    import difflib

    for name in names or []:
        if name not in SKILLS:
            near = difflib.get_close_matches(name, SKILLS, 3, 0.2)
            raise UnknownSkill(
                f"no MiniSQA skill is called {name!r}; the nearest are {', '.join(map(repr, near)) or 'none'}"
            )
    if names:
        return [SKILLS[name] for name in names]
    return [skill for skill in SKILLS.values() if (skill.name in UNTRAINED) == (split == "transfer")]


def _belongs(draft: Draft, split: str) -> bool:
    """Pictures differ by their noise; texts are dealt to the splits by hash, so that none is in two."""
    if draft.image is not None:
        return True
    text = "|".join((draft.question, draft.hint, *sorted(draft.choices)))
    low, high = SPLIT_SHARES[split]
    return low <= int(hashlib.sha256(text.encode()).hexdigest(), 16) % 100 < high


def _fingerprint(draft: Draft) -> bytes:
    text = "|".join((draft.question, draft.hint, *sorted(draft.choices)))
    return hashlib.sha256(text.encode() + (draft.image.tobytes() if draft.image else b"")).digest()


def _schedule(skills: list[Skill], count: int, rng: random.Random) -> list[Skill]:
    """`count` skills in their weights' proportion (largest remainders), shuffled."""
    total = sum(s.weight for s in skills)
    shares = [count * s.weight / total for s in skills]
    counts = [int(x) for x in shares]
    by_remainder = sorted(range(len(skills)), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: count - sum(counts)]:
        counts[i] += 1
    order = [s for s, n in zip(skills, counts) for _ in range(n)]
    rng.shuffle(order)
    return order


def generate(
    split: str, count: int | None = None, *, seed: int = 0, skills: list[str] | None = None
) -> Iterator[Problem]:
    """Yield `count` problems of `split`, the same ones for the same arguments.

    Without `skills` the split "transfer" asks those of `UNTRAINED`, every other split the rest. In "test" the second
    of each three problems of a skill is asked in words that no other split has (`wordings`), and says so (`wording`); in
    "train" the second and the third in other words of its own.
    Raises `UnknownSkill`, `NoSplit` for an unknown split, and `DataError` for a skill that runs out of new problems.
    """
    if split not in SPLIT_SHARES:
        raise NoSplit(f"no split is called {split!r}; there are {', '.join(SPLIT_SHARES)}")
    count = SPLIT_SIZES[split] if count is None else count
    rng = random.Random(f"minisqa {seed} {split}")
    decks: dict[tuple[str, int], list[int]] = {}
    seen: set[bytes] = set()
    asked: Counter[str] = Counter()
    for number, chosen in enumerate(_schedule(find_skills(skills, split), count, rng)):
        draft = _draw_new(chosen, split, rng, seen)
        size = len(draft.choices)
        deck = decks.setdefault((chosen.name, size), [])
        if not deck:
            deck.extend(rng.sample(range(size), size))
        problem = _problem(chosen, draft, deck.pop(), f"{split}-{seed}-{number}", rng)
        turn = asked[chosen.name] % 3
        asked[chosen.name] += 1
        if split == "test" and turn == 1:
            problem = replace(problem, question=reworded(problem.question).test, wording="unseen")
        elif split == "train" and turn and (others := reworded(problem.question).train):
            problem = replace(problem, question=others[turn - 1])
        yield problem


def _draw_new(chosen: Skill, split: str, rng: random.Random, seen: set[bytes]) -> Draft:
    for _ in range(2000):
        draft = chosen.draw(rng)
        if _belongs(draft, split) and (mark := _fingerprint(draft)) not in seen:
            seen.add(mark)
            return draft
    raise DataError(f"skill {chosen.name!r} has no new problem left for {split!r}; ask for fewer problems")


def _problem(chosen: Skill, draft: Draft, place: int, problem_id: str, rng: random.Random) -> Problem:
    others = [i for i in range(len(draft.choices)) if i != draft.answer]
    rng.shuffle(others)
    others.insert(place, draft.answer)
    return Problem(
        id=problem_id,
        question=draft.question,
        choices=tuple(draft.choices[i] for i in others),
        answer=place,
        image=draft.image,
        hint=draft.hint,
        grade=f"grade{rng.randint(*chosen.grades)}",
        subject=chosen.subject,
        topic=chosen.topic,
        category=chosen.category,
        skill=chosen.name,
        lecture=chosen.lecture,
        solution=draft.solution,
        caption=draft.caption,
        wording="seen" if chosen.name not in UNTRAINED else "unseen",
    )
