"""Lesson 05's exercises and quiz."""

from __future__ import annotations

from typing import Any

from mmlora.lessons.exercises import exercise, near
from mmlora.lessons.quizzes import Question

ONLY_A, ONLY_B = 30, 18


@exercise(
    "05-1",
    hint="Take n = 100, 200, 400 … with 90 % of n right, and look how far wilson(right, n)'s two ends are apart.",
    why="Half the width costs four times the problems. A benchmark of 200 problems cannot tell 88 % from 92 %.",
)
def problems_for_four_points(answer: Any) -> bool | str:
    from mmlora.evaluation.scores import wilson

    def width(n: int) -> float:
        low, high = wilson(round(0.9 * n), n)
        return high - low

    truth = next(n for n in range(100, 10_000, 10) if width(n) <= 0.04)
    if near(answer, truth / 4, 0.06):
        return "that gives eight points from end to end, four on either side"
    return near(answer, truth, 0.06)


@exercise(
    "05-2",
    hint="Under luck each of the 48 problems is a coin's toss: scipy.stats.binomtest(18, 48).pvalue.",
    why="Twelve problems more, and it may still be luck. The problems that both got right or wrong say nothing here.",
)
def paired(answer: Any) -> bool | str:
    from scipy.stats import binomtest

    truth = float(binomtest(ONLY_B, ONLY_A + ONLY_B).pvalue)
    if near(answer, truth / 2, 0.03):
        return "that counts one direction only; A could as well have been the worse one"
    return near(answer, truth, 0.03)


QUIZ = (
    Question(
        "An accuracy of 90 % has a 95 % interval of 88 to 92. What does it say?",
        (
            "95 % of the problems lie between 88 and 92.",
            "Of 100 such tests with other problems, about 95 have an interval that holds the true accuracy.",
            "The true accuracy changes between 88 and 92.",
        ),
        1,
        "It is about the luck of the draw of problems; not about another seed, another data set, another prompt.",
    ),
    Question(
        "Two models answered the same 1,000 problems. How do you compare them?",
        (
            "Look whether their intervals overlap.",
            "Count the problems that only one of them got right, either way.",
            "Take the larger accuracy.",
        ),
        1,
        "Overlapping intervals can hide a sure difference, because most problems are the same for both: compare in pairs.",
    ),
    Question(
        "The occlusion map is purple over the thermometer's bulb and not over its top. What follows?",
        (
            "The words depend on the bulb; why, the map does not say.",
            "The model reads temperatures from the bulb.",
            "The model is wrong.",
        ),
        0,
        "A covered patch may matter because it holds the answer or because a picture with a hole is strange.",
    ),
    Question(
        "May our accuracy on MiniSQA stand in one table with LLaVA's 90.92 % on ScienceQA?",
        (
            "Yes, both are accuracies.",
            "Only if the table says that they answer different questions.",
            "Yes, after rounding.",
        ),
        1,
        "Other problems, other pictures, other difficulty: side by side they explain the format, not the rank.",
    ),
)
