"""Lesson 01's exercises and quiz."""

from __future__ import annotations

from typing import Any

from mmlora.lessons.exercises import exercise
from mmlora.lessons.quizzes import Question

HIDDEN, KEYS, INNER, LAYERS = 576, 192, 1536, 30  # SmolLM2-135M's sizes
SHAPES = [(HIDDEN, HIDDEN)] * 2 + [(KEYS, HIDDEN)] * 2 + [(INNER, HIDDEN)] * 2 + [(HIDDEN, INNER)]
LIMIT, WIDTH = 10_000_000, 2  # bytes: of the file, of a bfloat16 number
STARTS = {"B zero": (False, True), "A zero": (True, False), "both zero": (False, False)}  # who gets a gradient: A, B


@exercise(
    "01-1",
    hint="One rank costs rows + columns of every matrix, in all 30 layers, and a bfloat16 number takes 2 bytes.",
    why="An adapter's size is proportional to its rank and to the sum of rows and columns, never to their product.",
)
def largest_rank(answer: Any) -> bool | str:
    layer = WIDTH * sum(rows + columns for rows, columns in SHAPES)
    if answer == LIMIT // (2 * LAYERS * layer):
        return "a number takes 2 bytes in bfloat16; 4 bytes are float32"
    if answer == LIMIT // layer:
        return "that is an adapter of one layer, and there are 30"
    if answer == LIMIT * WIDTH // (LAYERS * layer):
        return "that many numbers fit where each takes one byte"
    if isinstance(answer, float) and int(answer) == LIMIT // (LAYERS * layer) and answer % 1:
        return "a rank is a whole number"
    return answer == LIMIT // (LAYERS * layer)


@exercise(
    "01-2",
    hint="Square the values, divide their running sum (cumsum) by the whole, and count how many stay below the share; one more is enough.",
    why="Few values suffice where the spectrum falls steeply; where it is flat no thin matrix holds most of the energy.",
)
def energy_rank(answer: Any) -> bool | str:
    import torch

    for S in (torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5]), torch.ones(10), torch.tensor([5.0, 0.0, 0.0])):
        squares = S.double().square()
        reached = squares.cumsum(0) / squares.sum()
        plain = S.double().cumsum(0) / S.double().sum()
        for share in (0.45, 0.75, 0.93, 0.999):
            truth, found = int((reached < share).sum()) + 1, answer(S.clone(), share)
            if found == truth:
                continue
            if found is None or found is ...:
                return "the function returns nothing"
            if found == truth - 1:
                return f"for {S.tolist()} and {share} you give {found}, one too few: the index of the first is 0"
            if found == int((plain < share).sum()) + 1:
                return "energy counts the squares of the values, not the values"
            return f"for {S.tolist()} and {share} you give {found}, and {truth} are needed"
    return True


@exercise(
    "01-3",
    hint="For each way to start make a new layer, set A and B, take the loss backward, and note layer.A.grad.abs().max().item() and B's.",
    why="Each gradient is multiplied by the other matrix. One zero is enough for a no-op, and two zeros never learn anything.",
)
def starts(answer: Any) -> bool | str:
    if not isinstance(answer, dict) or set(answer) != set(STARTS):
        return f"answer should be a dictionary with the keys {', '.join(map(repr, STARTS))}"
    for name, moves in STARTS.items():
        found = tuple(abs(float(size)) > 0 for size in answer[name])
        if len(found) != len(moves):
            return f"{name!r} should have two numbers, the gradients of A and of B"
        if found == moves[::-1] != moves:
            return f"with {name} you have the two gradients the wrong way round: A's comes first"
        if found != moves:
            return f"with {name} it is another gradient that vanishes: set the two matrices as the name says"
    return True


@exercise(
    "01-4",
    hint="Put the rows of both A below each other and the columns of both B beside each other (torch.cat), each B times its own scale.",
    why="The ranks add up. peft joins adapters like this too: add_weighted_adapter with combination_type='cat'.",
)
def joined(answer: Any) -> bool | str:
    import torch

    draw = torch.Generator().manual_seed(0)
    for r1, r2 in ((2, 2), (2, 3)):  # with equal ranks a sum of matrices goes through, and is wrong
        A1, B1, A2, B2 = (torch.randn(shape, generator=draw) for shape in ((r1, 7), (5, r1), (r2, 7), (5, r2)))
        found = answer(A1, B1, 2.0, A2, B2, 0.5)
        if found is None or found is ...:
            return "the function returns nothing"
        A, B = found
        if A.shape[0] != B.shape[1] or (B.shape[0], A.shape[1]) != (5, 7):
            return f"A is {tuple(A.shape)} and B is {tuple(B.shape)}: B A should be 5 x 7 for these adapters"
        if A.shape[0] < r1 + r2:
            return "sums of matrices hold too little, and (B1 + B2)(A1 + A2) also gives the cross terms B1 A2 and B2 A1"
        if A.shape[0] > r1 + r2:
            return f"rank {A.shape[0]} is more than the two adapters have together, which is {r1 + r2}"
        if torch.allclose(B @ A, B1 @ A1 + B2 @ A2, atol=1e-5):
            return "the scales are missing"
        if torch.allclose(B @ A, 4.0 * B1 @ A1 + 0.25 * B2 @ A2, atol=1e-5):
            return "each scale counts twice: give it to A or to B, not to both"
        if not torch.allclose(B @ A, 2.0 * B1 @ A1 + 0.5 * B2 @ A2, atol=1e-5):
            return False
    return True


QUIZ = (
    Question(
        "At the first step of LoRA's training, which numbers move?",
        (
            "A and B, both a little.",
            "Only B, since A's gradient is multiplied by B, which is zero.",
            "Only A, since B is zero and zero times anything stays zero.",
        ),
        1,
        "B's gradient is multiplied by A, which is random. From the second step on both move.",
    ),
    Question(
        "Why does training with LoRA need so much less memory than full tuning?",
        (
            "The model's weights need not be in memory.",
            "Gradients and the optimizer's notes are kept only for what is trained.",
            "Only the adapted matrices are run.",
        ),
        1,
        "All weights must be there and all layers are run; what is spared is what training keeps beside each trained number.",
    ),
    Question(
        "You double the rank and leave alpha and the learning rate as they are. What have you changed?",
        (
            "Only how many directions the change may have.",
            "Nothing, as alpha / r takes care of that.",
            "Directions and the speed of learning: the scale alpha / r is halved.",
        ),
        2,
        "The scale falls faster than the added directions make up for, so steps become smaller. Compare ranks with care.",
    ),
    Question(
        "You merged in bfloat16 and unmerged again. Is the base back?",
        (
            "To the last bit: what was added was subtracted.",
            "Not quite: each sum was rounded, so keep the base or merge a copy.",
            "Yes, if alpha was 2 r.",
        ),
        1,
        "Rounding is not undone by subtracting. In float32 the rest is tiny, in bfloat16 it is not.",
    ),
    Question(
        "An update cut to a small rank still answers well. What does that show?",
        (
            "For this task a thin change is enough, whatever the rest of the update holds.",
            "The whole update had that rank.",
            "The model knew the task before training.",
        ),
        0,
        "The rest of the update may be large and still do nothing for the task: look at the energy and the accuracy together.",
    ),
)
