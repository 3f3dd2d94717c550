"""Lesson 09, OpenCLIP: the loss of a batch, and interpolating with the base."""

from __future__ import annotations

import math
from typing import Any

from mmlora.lessons.exercises import exercise, near
from mmlora.lessons.quizzes import Question

PAIRS = 64  # of exercise 09-1
RANK, WIDTH = 4, 512  # of exercise 09-2


@exercise(
    "09-1",
    hint="All scores are equal, so every text gets the same probability; the loss is minus the logarithm of one of them.",
    why="The loss of knowing nothing grows with the batch: compare losses at one batch size only.",
)
def loss_of_nothing(answer: Any) -> bool | str:
    if near(answer, math.log2(PAIRS)):
        return "that is in bits; losses here use the natural logarithm"
    if near(answer, 2 * math.log(PAIRS)):
        return "the two directions are averaged, not added"
    return near(answer, math.log(PAIRS))


@exercise(
    "09-2",
    hint="in_proj_weight has 3 x 512 rows and 512 columns, out_proj 512 and 512; A has as many columns, B as many rows.",
    why="One B for query, key and value together, and one A that they share: fewer numbers than three adapters would need.",
)
def fused_parameters(answer: Any) -> bool | str:
    fused, out = RANK * (3 * WIDTH + WIDTH), RANK * 2 * WIDTH
    if answer == 4 * out:
        return "that is for four separate projections; open_clip holds query, key and value in one matrix"
    if answer == fused:
        return "that is the fused matrix alone; peft adapts out_proj as well"
    return float(answer) == fused + out


QUIZ = (
    Question(
        "What does CLIP's loss compare a picture's right text with?",
        ("A fixed list of classes", "The other texts of the same batch", "The text that the model would write"),
        1,
        "The batch is the exam: more pairs make it harder, and two of the same name would be false rivals.",
    ),
    Question(
        "Names are shuffled before training, and everything else stays. What does top-1 on a new hand then say?",
        (
            "What is left without the link between picture and name: about chance",
            "How well the image tower was pretrained",
            "Nothing, since a shuffled run cannot be compared",
        ),
        0,
        "A control takes away just the thing in question. What still works then was never due to it.",
    ),
    Question(
        "After fine-tuning on a few classes, WiSE-FT with α = 0 gives…",
        ("the fine-tuned model", "the mean of both models' answers", "the base"),
        2,
        "α goes from the base, 0, to the fine-tuned weights, 1. For LoRA it is the adapter's scale.",
    ),
)
