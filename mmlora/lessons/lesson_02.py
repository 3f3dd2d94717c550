"""Lesson 02, inside a vision-language model: counting visual tokens, putting them into their slots, taking them apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mmlora.lessons.exercises import exercise, near
from mmlora.lessons.quizzes import Question

if TYPE_CHECKING:
    import torch

SIDE, PATCH, SHUFFLE, TEXT = 384, 14, 3, 60  # the model of exercise 02-1
PLACES = 24  # visual tokens of SmolBridge
SLOT = 0  # the image slot's number in the batches of exercise 02-2
CONTINENTS = "Identify the continents of the world"


@exercise(
    "02-1",
    hint="Count whole patches along a side, square that, and ask how many patches one visual token swallows.",
    why="Nine patches become one visual token, so the picture costs a ninth of what LLaVA's way would take, and still "
    "outnumbers the text. Every layer of the decoder pays for each of them.",
)
def visual_tokens(answer: Any) -> bool | str:
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        return "two numbers are wanted, (tokens, share)"
    tokens, share = map(float, answer)
    patches = (SIDE // PATCH) ** 2
    truth = patches // SHUFFLE**2
    if tokens == patches:
        return f"{patches} is the number of patches, before pixel shuffle joins them"
    if tokens == patches // SHUFFLE:
        return f"pixel shuffle joins {SHUFFLE} x {SHUFFLE} patches, a square of them and not a row"
    if tokens != int(tokens) or tokens in (round((SIDE / PATCH) ** 2 / SHUFFLE**2), (-(-SIDE // PATCH)) ** 2):
        if tokens != truth:
            return "what does not fill a patch is dropped: round down along each side, before squaring"
    if tokens != truth:
        return False
    if near(share, truth / TEXT):
        return "the tokens are right, but the sequence holds text and visual tokens together: divide by both"
    if near(share, 100 * truth / (truth + TEXT)):
        return "the tokens are right, but the share should lie between 0 and 1"
    return near(share, truth / (truth + TEXT)) or "the number of tokens is right, the share is not"


def _cases() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Slots (batch, length) and visual tokens (pictures, tokens, width), from the simplest batch to the oddest."""
    import torch

    layouts = [
        ["tvvvtt"],
        ["vvvttt", "ttvvvt"],
        ["tttttttt", "tvvvtvvv", "vvvttttt"],
    ]
    torch.manual_seed(0)
    return [
        (torch.tensor([[c == "v" for c in row] for row in rows]), torch.randn("".join(rows).count("v") // 3, 3, 5))
        for rows in layouts
    ]


def _filled(text: torch.Tensor, slots: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """What the package's own `embed` makes of it; the text's embeddings are looked up by their place."""
    import torch

    from mmlora.smolbridge.model import SmolBridgeModel

    ids = torch.arange(1, slots.numel() + 1).reshape(slots.shape).masked_fill(slots, SLOT)
    table = torch.cat([text.new_zeros(1, text.shape[-1]), text.flatten(0, 1)])
    model = SimpleNamespace(
        config=SimpleNamespace(image_token_id=SLOT), language_model=SimpleNamespace(embed_tokens=lambda i: table[i])
    )
    embed: Any = SmolBridgeModel.embed
    return embed(model, ids, visual)


@exercise(
    "02-2",
    hint="`slots` can be an index: text[slots] are all slots of the batch in reading order, row by row.",
    why="One line does it for any batch, because slots and visual tokens come in the same order: row by row, and in a "
    "row from left to right. The package's `embed` agrees on batches with two pictures in a row and with none.",
)
def fill_all(answer: Callable[..., torch.Tensor]) -> bool | str:
    import torch

    if not callable(answer):
        return "a function is wanted, without calling it: answer = fill_all"
    for slots, visual in _cases():
        text = torch.randn(*slots.shape, visual.shape[-1])
        given, found = text.clone(), answer(text, slots, visual)
        truth = _filled(given, slots, visual)
        if found is None:
            return "it returns nothing; end it with return"
        if found.shape != truth.shape:
            return f"the result has shape {list(found.shape)} and should have the text's, {list(truth.shape)}"
        if not torch.equal(text, given):
            return "it writes into `text` itself; work on text.clone()"
        if not torch.equal(found[~slots], truth[~slots]):
            return "it overwrites text: outside the slots every embedding must stay as it was"
        if not torch.equal(found, truth):
            there = {tuple(row) for row in visual.flatten(0, 1).tolist()}
            if {tuple(row) for row in found[slots].tolist()} == there:
                return "all visual tokens are there, but in another order: picture by picture, first token first"
            return "the slots do not hold the visual tokens, each of them once"
    return True


def _same_words() -> int:
    """With how many equal words the captions of all continents begin."""
    from mmlora import minisqa

    captions = [p.caption.split() for p in minisqa.generate("train", 12, skills=[CONTINENTS])]
    return next(place for place, words in enumerate(zip(*captions)) if len(set(words)) > 1)


@exercise(
    "02-3",
    hint="Clone the 24 visual tokens, put one of the other picture's in, call `read`, take log_softmax at the last place.",
    why="One or two tokens carry the continent; the others say the same in both pictures, so changing them changes "
    "nothing. This is how to find out what a model used: change one thing, and measure.",
)
def which_token(answer: Any) -> bool | str:
    changes = [float(change) for change in answer]
    if len(changes) != PLACES:
        return f"{len(changes)} numbers came; there are {PLACES} visual tokens, so {PLACES} are wanted"
    if not all(map(math.isfinite, changes)):
        return "not every number is finite"
    if min(changes) < 0:
        return "some numbers are below zero: take the absolute value of the change, not the log-probability itself"
    most, same = max(changes), _same_words()
    if most < 1e-4:
        return "nothing changed: are the two pictures of different continents, and did the clone go into `read`?"
    if min(changes) > 0.9 * most:
        return (
            "all places change it equally: put only one token of the other picture in, and begin from a clone each time"
        )
    if (
        all(after >= before - 1e-6 for before, after in zip(changes[same:], changes[same + 1 :]))
        and changes[-1] == most
    ):
        return "it stays changed from some place on: begin each time from a fresh clone, not from the last mixture"
    if changes.index(most) < same:
        return f"both captions begin with the same {same} words, so the most should change further on"
    return True


QUIZ = (
    Question(
        "Why do 24 visual tokens fit into a decoder that was trained on text alone?",
        (
            "It was trained anew on pictures",
            "They have the width of word embeddings, and here they are mixtures of them",
            "Each of them is a word of the vocabulary, looked up by its number",
        ),
        1,
        "A decoder takes any vectors of its width. An image slot has no embedding of its own: the mixture replaces it.",
    ),
    Question(
        "With swapped pictures a model gets as many right as with its own pictures. What follows?",
        (
            "It sees very well, so a swap cannot confuse it",
            "It does not get its right answers from the picture",
            "The swapped pictures were too easy",
        ),
        1,
        "A swapped picture shows another answer. A model that looks must go along with it, and be wrong.",
    ),
    Question(
        "An adapter sits in the vision tower only. What does a training step need?",
        (
            "A backward pass through the vision tower alone",
            "No backward pass, for the decoder is frozen",
            "A backward pass through decoder and connector too, though nothing trains there",
        ),
        2,
        "The loss is at the decoder's end, so the gradient comes through everything above the adapter.",
    ),
    Question(
        "The connector gives two pictures exactly the same visual tokens. Can an adapter in the decoder tell them apart?",
        (
            "No: the same visual tokens come in, so the same answer comes out",
            "Yes, if its rank is high enough",
            "Yes, with enough training, because it sees the pixels as well",
        ),
        0,
        "The decoder gets the picture through the visual tokens only. What they do not say is gone.",
    ),
)
