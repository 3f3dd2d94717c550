"""Lesson 08, your own pictures: what a row must hold, and what a caption must say."""

from __future__ import annotations

from typing import Any

from mmlora.lessons.exercises import exercise
from mmlora.lessons.quizzes import Question

REFUSED = {"C", "D"}  # of exercise 08-1
BEYOND = {"shape", "mark"}  # of exercise 08-2


def _letters(answer: Any) -> set[str]:
    return {str(each).strip().upper() for each in answer}


@exercise(
    "08-1",
    hint="Write the four rows into a CSV file beside one picture and let load_problems read it: the message names each fault.",
    why="An index counts from 0, so two choices have no number 2; and a picture outside the folder is nobody's data set.",
)
def refused(answer: Any) -> bool | str:
    said = _letters(answer)
    if said & {"A", "B"}:
        return "one of those can be read: an answer may be the letter or the exact text"
    return said == REFUSED


@exercise(
    "08-2",
    hint="The connector learns to say the words of the captions and no others. Which of the three questions do they answer?",
    why="What no caption tells, no visual token says, and an adapter behind them can only guess.",
)
def untold(answer: Any) -> bool | str:
    said = {str(each).strip().lower() for each in answer}
    if "colour" in said or "color" in said:
        return "the captions tell the colour"
    return said == BEYOND


QUIZ = (
    Question(
        "Where does the base learn to read your pictures from?",
        ("From the captions", "From the questions", "From the answers"),
        0,
        "Stage one is alignment: pictures and captions, no question. Stage two, the adapter, gets the questions.",
    ),
    Question(
        "Your run has 95 % right. Which figure beside it says that the pictures were needed?",
        (
            "The loss at the end",
            "The same adapter with another problem's picture in each place",
            "The number of parameters",
        ),
        1,
        "Who looks is led astray by another picture. Who answers as well with it never looked.",
    ),
    Question(
        "A row of your spreadsheet has no picture although it names one. What does mmlora do?",
        ("It leaves the row out", "It stops and names the line", "It reads a grey picture"),
        1,
        'Nothing is dropped or guessed. To go on without, say so: missing_images="text-only".',
    ),
)
