"""Lesson 00's exercises and quiz."""

from __future__ import annotations

from typing import Any

from mmlora.lessons.exercises import exercise, near
from mmlora.lessons.quizzes import Question

HIDDEN, KEYS, INNER, LAYERS = 576, 192, 1536, 15  # SmolLM2-135M's sizes, and the layers that the lesson adapts
SHAPES = [(HIDDEN, HIDDEN), (KEYS, HIDDEN), (KEYS, HIDDEN), (HIDDEN, HIDDEN), (INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]  # fmt: skip


@exercise(
    "00-1",
    hint="A has r rows and B has r columns, and nothing else of them depends on r: what does the table say for r = 16?",
    why="Both matrices grow in proportion to the rank, so rank 1 has a sixteenth of rank 16's parameters.",
)
def rank_one(answer: Any) -> bool | str:
    truth = LAYERS * sum(rows + columns for rows, columns in SHAPES)
    if near(answer, 16 * truth, 0):
        return "that is the adapter of rank 16"
    return near(answer, truth, 0)


@exercise(
    "00-2",
    hint="Try 12, 13, 14 … of 48 until the interval's lower end is above 0.25.",
    why="That is half more than chance, and below it may all be luck: small tests hide small gains.",
)
def above_chance(answer: Any) -> bool | str:
    from mmlora.evaluation.scores import wilson

    truth = next(right for right in range(49) if wilson(right, 48)[0] > 0.25)
    if answer == 12:
        return "12 of 48 is chance itself, which lies in the middle of its interval"
    if near(answer, 100 * truth / 48):
        return "that is a percentage; say how many problems"
    return answer == truth


@exercise(
    "00-3",
    hint="swapped = [replace(p, image=q.image) for p, q in zip(test, test[1:] + test[:1])], then evaluate and score as in section 7.",
    why="It answers for the picture that it is shown, and that one belongs to another problem: so it does look.",
)
def swapped(answer: Any) -> bool | str:
    accuracy = float(answer)
    if 0 < accuracy < 1:
        return "that is a share; give it in percent"
    if accuracy > 75:
        return f"{accuracy} % is what a model says of the right pictures: are yours really another problem's?"
    return 0 <= accuracy


QUIZ = (
    Question(
        "Right after the adapter was attached, no logit had changed. Why?",
        (
            "The adapter was not switched on yet.",
            "B is zero at the start, and so is the product B A.",
            "Sixteen ranks are too few to change anything.",
        ),
        1,
        "It is on, and it adds a product with zero. Training begins exactly where the model was.",
    ),
    Question(
        "A base model names a choice each time, and 12.5 % of 48 problems with four choices are right. What do we know?",
        (
            "It is worse than guessing, so it knows the answers and inverts them.",
            "It prefers some answers whatever the picture shows.",
            "The pictures are broken.",
        ),
        1,
        "Below chance is no hidden knowledge: a model that always prefers some names may meet few problems where they are right.",
    ),
    Question(
        "Why is a figure with grey pictures given beside the result?",
        (
            "It shows that the answer depends on the picture.",
            "It shows how well one can guess from the words alone.",
            "It makes the result look better.",
        ),
        0,
        "Grey is unlike all that the model knows, so it tells that the model looks, not how far the words alone would lead.",
    ),
    Question(
        "What is in the adapter's file?",
        (
            "The whole model, after training.",
            "The training problems in compressed form.",
            "A and B of every adapted matrix, a few megabytes, useless without the base model.",
        ),
        2,
        "Only what was trained. That is why it is cheap to share, and why it must know its base.",
    ),
)
