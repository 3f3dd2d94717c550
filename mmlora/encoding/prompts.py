"""From a problem to words: what it asks, and what the model should say.

ScienceQA names its formats by what goes in and what comes out: question, context and multiple options; the answer, the
lecture and the explanation (the solution). Our own formats say the answer as text, which a small model learns sooner;
those called QCM-… say its letter as the official code does (Lu et al. 2022, arXiv 2209.09513).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from mmlora.encoding.conversation import Conversation, EncodingError
from mmlora.problems.record import LETTERS, Problem

Format = Literal["answer", "answer_explanation", "explanation_answer", "QCM-A", "QCM-ALE", "QCM-LEA"]


def prompt_text(problem: Problem) -> str:
    """Question, context and lettered options, a line each."""
    context = f"Context: {problem.hint}\n" if problem.hint else ""
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices))
    return f"Question: {problem.question}\n{context}Options: {options}"


def lmms_prompt(problem: Problem) -> str:
    """The prompt that lmms-eval's task `scienceqa` gives: options below each other, and the demand for a letter."""
    context = f"Context: {problem.hint}\n" if problem.hint else ""
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, problem.choices))
    return f"{context}{problem.question}\n{options}\nAnswer with the option's letter from the given choices directly."


def target_text(problem: Problem, format: Format) -> str:
    """What the model should say."""
    if format not in get_args(Format):
        raise EncodingError(f"no target format is called {format!r}; there are {', '.join(get_args(Format))}")
    letters = format.startswith("QCM-")
    answer = f"The answer is {LETTERS[problem.answer] if letters else problem.answer_text}."
    parts = {
        "answer": [answer],
        "answer_explanation": [answer, problem.solution],
        "explanation_answer": [problem.solution, answer],
        "QCM-A": [answer],
        "QCM-ALE": [answer, "BECAUSE:", problem.lecture, problem.solution],
        "QCM-LEA": [problem.lecture, problem.solution, answer],
    }[format]
    return " ".join(part for part in parts if part)


def asked(problem: Problem, prompt: Callable[[Problem], str] = prompt_text) -> Conversation:
    """The question alone, ending where the assistant speaks."""
    return Conversation(problem.id, prompt(problem), () if problem.image is None else (problem.image,))


def taught(problem: Problem, format: Format) -> Conversation:
    """The question with the reply that is to be learned. Raises `EncodingError` for an unknown format."""
    return asked(problem).answered(target_text(problem, format))
