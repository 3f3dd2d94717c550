"""Exercises that check themselves: `check("01-2", answer)` says whether an answer is right, and gives a hint where not.

Each lesson's exercises stand in the module of its number, `lesson_01` and so on: a function that takes the answer and
returns True, False, or a sentence about what is wrong with just this answer.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mmlora.errors import MMLoraError

Judge = Callable[[Any], "bool | str"]
State = Literal["right", "wrong", "open"]
NAME = re.compile(r"(\d\d)-(\d)")


class LessonError(MMLoraError):
    """No exercise or quiz has this name; the message lists those that there are."""


@dataclass(frozen=True)
class Exercise:
    """One exercise: how an answer is judged, what helps a learner who is stuck, and what the answer teaches."""

    judge: Judge
    hint: str
    why: str


@dataclass(frozen=True)
class Verdict:
    """What `check` says of an answer."""

    state: State
    words: str


_EXERCISES: dict[str, Exercise] = {}


def exercise(name: str, *, hint: str, why: str) -> Callable[[Judge], Judge]:
    """Make the decorated function the judge of exercise `name`, "01-2" for the second one of lesson 01."""

    def register(judge: Judge) -> Judge:
        _EXERCISES[name] = Exercise(judge, hint, why)
        return judge

    return register


def lesson(number: str) -> Any:
    """The module of a lesson, with its exercises and its `QUIZ`. Raises `LessonError` where there is none."""
    there = lessons()
    if number not in there:
        raise LessonError(f"there is no lesson {number!r}; there are {', '.join(there)}")
    return importlib.import_module(f"mmlora.lessons.lesson_{number}")


def lessons() -> list[str]:
    """The numbers of all lessons that ask something."""
    folder = importlib.import_module("mmlora.lessons").__path__
    return sorted(m.name.removeprefix("lesson_") for m in pkgutil.iter_modules(folder) if m.name.startswith("lesson_"))


def exercises(number: str) -> dict[str, Exercise]:
    """The exercises of a lesson by name."""
    lesson(number)
    return {name: each for name, each in _EXERCISES.items() if name.startswith(f"{number}-")}


def verdict(name: str, answer: Any) -> Verdict:
    """How an answer is judged; `...` stands for none. Raises `LessonError` for an exercise that does not exist."""
    parts = NAME.fullmatch(str(name))
    known = exercises(parts[1]) if parts and parts[1] in lessons() else {}
    if name not in known:
        names = list(known) or [each for number in lessons() for each in exercises(number)]
        near = difflib.get_close_matches(str(name), names, 1, 0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise LessonError(f"no exercise is called {name!r}{hint}; there are {', '.join(names)}")
    asked = known[name]
    if answer is ...:
        return Verdict("open", "put your answer in place of the three dots and run this cell again")
    try:
        found = asked.judge(answer)
    except Exception as error:  # whatever somebody's code or value does is a wrong answer, never a crash of the lesson
        found = f"judging it ended in {type(error).__name__}: {error}"
    if found is True:
        return Verdict("right", asked.why)
    return Verdict("wrong", f"{found[0].upper()}{found[1:].rstrip('.')}. {asked.hint}" if found else asked.hint)


def check(name: str, answer: Any) -> None:
    """Print whether the answer to an exercise is right, and why, or a hint where it is not yet."""
    found = verdict(name, answer)
    sign = {"right": "✔ right.", "wrong": "✘ not yet.", "open": "○ open:"}[found.state]
    print(f"{name} {sign} {found.words}")


def near(answer: Any, truth: float, share: float = 0.01) -> bool:
    """Whether a number is the true one up to this share of it; numbers are all that is taken."""
    return abs(float(answer) - truth) <= share * abs(truth)
