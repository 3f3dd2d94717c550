"""Lesson 03, ScienceQA: its exercises' judges, the problems with a leak, and its quiz."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mmlora.lessons.exercises import exercise, near
from mmlora.lessons.quizzes import Question

if TYPE_CHECKING:
    import torch

    from mmlora.problems.record import Problem

#: How many of 1,000 problems have so many choices (03-2), how many name a choice, and how many of those are right.
MIX, NAMED, RIGHT = {2: 300, 3: 450, 4: 200, 5: 50}, 0.8, 0.9
MARGIN = 15  # points above chance that a rule has to be (03-3)

ANIMALS = ("owls", "bats", "frogs", "foxes", "eels", "ants", "crabs", "seals", "geese", "moles", "newts", "hares")
VERBS = ("sleep", "hunt", "rest", "feed", "travel", "hide", "call", "play")
PLACES = ("near water", "in groups", "at night", "under leaves", "in winter", "among rocks", "in the rain", "by day")
SURE, CAUTIOUS = ("always", "never", "only"), ("often", "rarely", "mostly")


def leaky(count: int, seed: int = 0) -> list[Problem]:
    """Problems of three choices with balanced positions, of which a rule that knows nothing gets far more than a third."""
    from mmlora.problems.record import Problem

    rng = random.Random(f"leaky {seed}")
    problems = []
    for number in range(count):
        animals, answer = rng.choice(ANIMALS), number % 3
        doings = rng.sample([(verb, place) for verb in VERBS for place in PLACES], 3)
        sure = [rng.random() < (0.1 if i == answer else 0.65) for i in range(3)]
        words = [rng.choice(SURE if each else CAUTIOUS) for each in sure]
        choices = tuple(f"they {word} {verb} {place}" for word, (verb, place) in zip(words, doings))
        problems.append(Problem(f"leaky-{seed}-{number}", f"What is true of {animals}?", choices, answer))
    rng.shuffle(problems)
    return problems


def labels_of(prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> torch.Tensor:
    """The labels that the package itself gives such a batch: `Sample.followed_by`, then `collate`."""
    import torch

    from mmlora.encoding.loss import IGNORED
    from mmlora.encoding.sample import Sample, collate

    rows = []
    for prompt, reply in zip(prompts, replies):
        tokens = {"input_ids": torch.tensor(prompt)}
        asked = Sample("", tokens, torch.full_like(tokens["input_ids"], IGNORED), {})
        rows.append(asked.followed_by(reply))
    return collate(rows)["labels"]


@exercise(
    "03-1",
    hint="In each row all up to the prompt's length is -100; then come the reply's tokens up to and with the first 2 "
    "behind the prompt; all after it is -100",
    why="Whoever masks every padding token by its number masks the end token too, and gets a model that never stops.",
)
def batch_mask(answer: Callable[[Any, list[int]], Any]) -> bool | str:
    """A function of a padded batch and its prompts' lengths."""
    import torch

    prompts = [[1, 5, 2, 7], [1, 2], [1, 6, 6, 2, 7, 7], [1, 4, 2]]
    replies = [[8, 9, 2], [6, 3, 4, 8, 2], [5, 8, 2], [2]]
    truth, lengths = labels_of(prompts, replies), [len(prompt) for prompt in prompts]
    rows = [torch.tensor([*prompt, *reply]) for prompt, reply in zip(prompts, replies)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=2)
    given = ids.clone()
    labels = answer(given, list(lengths))
    if not isinstance(labels, torch.Tensor) or labels.shape != truth.shape:
        return f"the function should return a tensor of shape {tuple(truth.shape)} for ids of that shape"
    if not torch.equal(given, ids):
        return "the function changed the ids that it was given: clone them first"
    if torch.equal(labels, truth):
        return True
    place = torch.arange(ids.shape[1])
    starts, ends = torch.tensor(lengths)[:, None], torch.tensor([[len(row)] for row in rows])
    kept = labels != -100
    if torch.equal(labels[:, :-1], truth[:, 1:]):
        return "these labels are shifted: leave each beside its own token, the loss shifts by itself"
    if bool((kept & (labels != ids)).any()):
        return "a label that is not -100 should be the token that stands in its place"
    if not bool(kept[place == ends - 1].any()):
        return "the end tokens of the replies are masked with the padding: such a model never learns to stop"
    if bool(kept[place >= ends].any()):
        return "padding behind a reply is supervised: a model would be paid for saying 2 after 2"
    if bool(kept[place == starts - 1].any()):
        return "the last token of a prompt is supervised: that is one too many"
    if not bool(kept[place == starts].all()):
        return "the first token of a reply is masked: nobody would teach the model how to begin"
    return False


@exercise(
    "03-2",
    hint="A guess among k choices is right once in k times: weigh 1/2, 1/3, 1/4 and 1/5 by how many problems have so many",
    why="lmms-eval would give 72 %: seven points lie between two scorers of the very same outputs.",
)
def expected_accuracy(answer: float) -> bool | str:
    """In percent, what the official scorer gives on average."""
    problems = sum(MIX.values())
    chance = sum(count / choices for choices, count in MIX.items()) / problems
    parsed = NAMED * RIGHT
    if near(answer, 100 * (parsed + (1 - NAMED) * chance), 0.0005):
        return True
    if near(answer, parsed + (1 - NAMED) * chance, 0.0005):
        return "that is a share; give it in percent"
    if near(answer, 100 * parsed, 0.0005):
        return "that is lmms-eval's figure: the guesses are missing, and some of them are right"
    if near(answer, 100 * chance, 0.0005):
        return "that is chance on all problems; only those that do not parse are guessed"
    mean = sum(choices * count for choices, count in MIX.items()) / problems
    if near(answer, 100 * (parsed + (1 - NAMED) / mean), 0.0005):
        return "that is one divided by the mean number of choices; the mean of 1/k is larger"
    return False


@exercise(
    "03-3",
    hint="Print some twenty problems and compare the third word of right and of wrong choices",
    why="People who write wrong choices make them too sure (always, never, only), and every model finds that out.",
)
def blind_rule(answer: Callable[[str, tuple[str, ...]], Any]) -> bool | str:
    """A function of question and choices to a place, judged on fresh problems."""
    problems = leaky(600, seed=1)
    chosen = [int(answer(problem.question, problem.choices)) for problem in problems]
    accuracy = 100 * sum(place == p.answer for place, p in zip(chosen, problems)) / len(problems)
    chance = 100 / 3
    if accuracy >= chance + MARGIN:
        return True
    found = f"it gets {accuracy:.1f} % of 600 new problems, chance is {chance:.1f} %"
    if len(set(chosen)) == 1:
        return f"{found}: it always takes the same place, and places are balanced"
    if accuracy < chance - MARGIN / 2:
        return f"{found}: it avoids the right ones; turn it round"
    return found


QUIZ = (
    Question(
        "A model gets 41 % of the picture problems right, chance is 36 %, the interval is 33 to 49. What follows?",
        (
            "It looks a little: 41 is more than 36",
            "Nothing yet: luck alone may give such a difference; ask more problems",
            "It does not look, for the interval holds chance",
        ),
        1,
        "An interval that holds chance shows neither that it looks nor that it does not.",
    ),
    Question(
        "A trained model falls from 90 % to 22 % when the pictures are grey. What does that show?",
        (
            "The words alone give 22 %",
            "It depends on the picture; how much the words give away it does not show",
            "68 points come from leakage",
        ),
        1,
        "Grey is unlike anything that it was trained on; what words give away is found by a reader trained without pictures.",
    ),
    Question(
        "Training loss 0.01 after twenty steps, and every answer is nonsense. What is the first suspect?",
        (
            "The learning rate is too low",
            "The test problems are too hard",
            "Labels that can be predicted without knowing the answer, as where nothing is shifted",
        ),
        2,
        "A loss is low where its own task is easy; with unshifted labels that task is to copy what was just read.",
    ),
    Question(
        "transformers computes a model's loss from `labels`. How should you shift them?",
        ("Not at all: the loss does it", "By one to the left", "By one to the right, so that the end token fits in"),
        0,
        "Labels stand beside their own tokens. Who shifts them too trains the model to say the token after the next one.",
    ),
    Question(
        "Two groups report 86.5 % and 90.9 % for the same weights on the same test split. What do you ask first?",
        (
            "Which seed they trained with",
            "Which prompt and parser they used, and what became of answers that named no choice",
            "How many GPUs they had",
        ),
        1,
        "The weights are the same, so training plays no part; prompt, parser and the fate of unparsed answers do.",
    ),
)
