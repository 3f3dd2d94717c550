"""A short quiz at the end of a lesson: buttons where ipywidgets and a front end are there, plain text everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmlora.lessons.exercises import LessonError, lesson


@dataclass(frozen=True)
class Question:
    """One question: its options, which of them is right (0 is the first), and why."""

    words: str
    options: tuple[str, ...]
    right: int
    why: str

    def judged(self, choice: int) -> str:
        """What to tell somebody who took this option."""
        return f"{'✔ Right.' if choice == self.right else '✘ No.'} {self.why}"


def quiz(number: str, answers: str | None = None) -> None:
    """Ask the quiz of a lesson, or judge `answers`, a letter for each question: `quiz("01", "bac")`.

    Raises `LessonError` for a lesson without a quiz, and for answers that do not fit its questions.
    """
    questions: Sequence[Question] = lesson(number).QUIZ
    if answers is not None:
        print(marked(questions, answers))
        return
    from IPython.display import display

    words = as_text(number, questions)
    try:
        widget = buttons(questions)
    except ImportError:
        print(words)
        return
    bundle = widget._repr_mimebundle_()
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    display(data | {"text/plain": words}, metadata=metadata, raw=True)  # what cannot show buttons shows the words


def as_text(number: str, questions: Sequence[Question]) -> str:
    """The questions with lettered options, and how to answer."""
    lines = []
    for place, question in enumerate(questions, 1):
        options = [f"   {letter}) {option}" for letter, option in zip("abcdef", question.options)]
        lines += [f"{place}. {question.words}", *options]
    example = "abc" * len(questions)
    return "\n".join([*lines, f'Answer with a letter for each: quiz("{number}", "{example[: len(questions)]}")'])


def marked(questions: Sequence[Question], answers: str) -> str:
    """A line for each answer, and how many were right. Raises `LessonError` where answers and questions do not fit."""
    letters = [letter for letter in answers.lower() if letter.isalnum()]
    if len(letters) != len(questions):
        raise LessonError(f"{len(letters)} answers for {len(questions)} questions; give a letter for each")
    lines, right = [], 0
    for place, (letter, question) in enumerate(zip(letters, questions), 1):
        choice = "abcdef".find(letter)
        if not 0 <= choice < len(question.options):
            raise LessonError(
                f"question {place} has no option {letter!r}; it has a to {'abcdef'[len(question.options) - 1]}"
            )
        right += choice == question.right
        lines.append(f"{place}. {question.judged(choice)}")
    return "\n".join([*lines, f"{right} of {len(questions)} right"])


def buttons(questions: Sequence[Question]) -> Any:
    """The quiz as an `ipywidgets.VBox`: radio buttons that answer as soon as one is chosen.

    Raises `ImportError` where ipywidgets is not installed.
    """
    import ipywidgets as widgets

    def asked(place: int, question: Question) -> Any:
        said, wide = widgets.HTML(), widgets.Layout(width="auto")
        radio = widgets.RadioButtons(options=question.options, value=None, layout=wide)

        def answer(change: Any) -> None:
            said.value = question.judged(question.options.index(change["new"]))

        radio.observe(answer, "value")
        return widgets.VBox([widgets.HTML(f"<b>{place}. {question.words}</b>"), radio, said])

    return widgets.VBox([asked(place, question) for place, question in enumerate(questions, 1)])
