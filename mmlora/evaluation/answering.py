"""Answering problems with a model: by likelihood, by letter, or by free-running generation.

Generation can fail to answer, likelihood and letter only where choices tie: an answer that names no choice is wrong and
counted apart (`Scores.unanswered`). Nothing here changes the model; figures come from `evaluation.scores`.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import get_args

import numpy as np
from tqdm import tqdm

from mmlora.adapters.named import in_order, one_per_row
from mmlora.encoding.answers import parse_answer, parse_lmms, parse_official
from mmlora.encoding.naming import naming
from mmlora.encoding.prompts import asked, lmms_prompt, prompt_text, target_text
from mmlora.encoding.sample import encode, reply_tokens
from mmlora.errors import MMLoraError
from mmlora.evaluation.scores import Method, Prediction
from mmlora.inference.generate import generate
from mmlora.inference.likelihood import log_likelihoods
from mmlora.inference.session import evaluating
from mmlora.models import processes
from mmlora.models.memory import HELD, give_back, in_parts
from mmlora.models.precision import finite
from mmlora.models.vlm import VLM
from mmlora.problems.record import LETTERS, Problem

#: Where the model speaks freely: what it is asked, and which choice it then named.
SPOKEN = {
    "generate": (prompt_text, parse_answer),
    "official": (prompt_text, parse_official),
    "lmms_eval": (lmms_prompt, parse_lmms),
}
TOGETHER = 192  # problems spoken about at a time: a token for thrice the rows takes less than twice as long
CHOOSING = 16  # and those whose choices are compared: each is a row that repeats the prompt's KV cache


class EvaluationError(MMLoraError):
    """A model or setting that cannot be scored; the message says where it failed and what to do."""


def evaluate(
    vlm: VLM,
    problems: Sequence[Problem],
    method: Method = "likelihood",
    *,
    batch_size: int | None = None,
    shuffle_seed: int | None = None,
    max_new_tokens: int = 192,
    progress: bool = True,
    adapters: Sequence[str | None] | None = None,
) -> list[Prediction]:
    """Answer every problem, in the given order; several processes answer a share each, and all get all answers.

    - `likelihood`: the choice whose answer sentence has the highest summed log-probability after the prompt.
    - `letter`: the choice whose letter has the highest log-probability as the next token. For both methods, if several
      choices share exactly the highest score, none is the answer; a warning counts such problems.
    - `generate`: greedy generation of explanation and answer, then `answers.parse_answer`.
    - `official`: the same, for models that say letters: ScienceQA's own regular expression, and its random guess (fixed
      here by the problem's id) where it finds nothing; warns how many were guessed.
    - `lmms_eval`: the prompt and the parser of lmms-eval's task `scienceqa`; what is no letter is wrong.

    `batch_size` problems are answered at a time, or as many as suit the method. `shuffle_seed` shows the choices in
    another order, fixed by the seed and the problem's id; `choice` and `scores` of a `Prediction` always refer to the
    problem as given. `adapters` names the adapter that answers each problem, mixed in one batch, None for the base alone; or
    else the active one answers all.
    Raises `EvaluationError` for an unknown method, for a number below 1, and where a score is not a number;
    `EncodingError`, with the problem's id, for one that cannot be encoded or that is longer, with its longest answer, than the
    model can read. Warns of generations cut at `max_new_tokens`, and names those cut at the model's context length.
    """
    if method not in get_args(Method):
        raise EvaluationError(f"no scoring method is called {method!r}; there are {', '.join(get_args(Method))}")
    for name, value in (("batch_size", 1 if batch_size is None else batch_size), ("max_new_tokens", max_new_tokens)):
        if not isinstance(value, Integral) or value < 1:
            raise EvaluationError(f"{name} is {value!r}; give a whole number above 0")
    one_per_row(adapters, len(problems))
    alone = processes.sharded()  # a forward pass takes all processes, so all of them answer everything
    share = problems if alone else processes.mine(problems)
    names = adapters if alone or adapters is None else processes.mine(adapters)
    batch_size = batch_size or (TOGETHER if method in SPOKEN else CHOOSING)
    answers, *counts = _answered(vlm, share, method, batch_size, shuffle_seed, max_new_tokens, progress, names)
    if not alone:
        answers, counts = processes.together(answers), [sum(each) for each in zip(*processes.gathered(counts))]
    cut, guessed = counts
    if tied := 0 if method in SPOKEN else sum(answer.choice is None for answer in answers):
        warnings.warn(
            f"{tied} of {len(problems)} problems have several choices with exactly the highest score, and count as unanswered",
            stacklevel=2,
        )
    if cut:
        warnings.warn(
            f"{cut} of {len(problems)} generations were cut at {max_new_tokens} tokens (max_new_tokens) and may name no choice",
            stacklevel=2,
        )
    if guessed:
        warnings.warn(
            f"{guessed} of {len(problems)} answers named no letter and were guessed, as the official scorer does",
            stacklevel=2,
        )
    return answers


def _answered(
    vlm: VLM,
    problems: Sequence[Problem],
    method: Method,
    batch_size: int,
    shuffle_seed: int | None,
    max_new_tokens: int,
    progress: bool,
    adapters: Sequence[str | None] | None,
) -> tuple[list[Prediction], int, int]:
    """What `evaluate` promises, of this process's share, and how many answers were cut and how many guessed."""
    batch_size = min(batch_size, _together(vlm, problems))
    orders = [_order(problem, shuffle_seed) for problem in problems]
    shown = [problem.reordered(order) for problem, order in zip(problems, orders)]
    answers: dict[int, Prediction] = {}
    cut, guessed = 0, 0

    def answer(rows: Sequence[int]) -> tuple[list[tuple], int]:
        batch = [shown[i] for i in rows]
        names = in_order(adapters, rows)
        if method in SPOKEN:
            return _speak(vlm, batch, method, max_new_tokens, bar.update, names)
        return _choose(vlm, batch, method, names), 0

    with (
        evaluating(vlm),
        tqdm(total=len(shown), desc=method, unit="problem", disable=not (progress and processes.first())) as bar,
    ):
        for rows, (found, unfinished) in in_parts(answer, _longest_first(shown), batch_size):
            cut += unfinished
            if method == "official":
                guessed += sum(choice is None for choice, *_ in found)
                found = [
                    (_guess(shown[i]) if choice is None else choice, *rest) for (choice, *rest), i in zip(found, rows)
                ]
            answers |= {i: _prediction(problems[i], orders[i], *answer) for i, answer in zip(rows, found)}
            bar.update(len(answers) - bar.n)
            give_back()  # a KV cache that grew has left holes behind
    return [answers[i] for i in range(len(problems))], cut, guessed


def _together(vlm: VLM, problems: Sequence[Problem]) -> int:
    """How many problems' pictures may lie in memory together, told from one: a processor that cuts pictures makes many."""
    seen = next((problem for problem in problems if problem.image is not None), None)
    return len(problems) if seen is None else max(1, HELD // encode(vlm.processor, asked(seen)).nbytes)


def _choose(
    vlm: VLM, problems: Sequence[Problem], method: Method, adapters: Sequence[str | None] | None
) -> list[tuple[int | None, str, tuple[float, ...]]]:
    """(choice, text, scores) of each problem by the likelihood of its answers or of their letters; None where choices tie."""
    texts, tokens = [], []
    for p in problems:
        sentences = [target_text(replace(p, answer=i), "answer") for i in range(len(p.choices))]
        texts.append(list(LETTERS[: len(p.choices)]) if method == "letter" else sentences)
        with naming(p.id, *texts[-1]):
            rows = [reply_tokens(vlm.processor, text) for text in texts[-1]]
        tokens.append([row[:-1] for row in rows] if method == "letter" else rows)  # a letter needs no end token
    found: list[tuple[int | None, str, tuple[float, ...]]] = []
    likely = log_likelihoods(vlm, [asked(p) for p in problems], tokens, adapters)
    for problem, options, scores in zip(problems, texts, likely):
        if not np.isfinite(scores).all():
            raise EvaluationError(f"problem {problem.id}: the model's scores are not finite; {finite()}")
        best = int(np.argmax(scores))
        tied = scores.count(scores[best]) > 1
        found.append((None, "", tuple(scores)) if tied else (best, options[best], tuple(scores)))
    return found


def _speak(
    vlm: VLM,
    problems: Sequence[Problem],
    method: Method,
    max_new_tokens: int,
    on_finished: Callable[[int], object],
    adapters: Sequence[str | None] | None,
) -> tuple[list[tuple], int]:
    """(choice or None, text, no scores) of each problem by what the model says, and how many answers were cut."""
    prompt, parse = SPOKEN[method]
    texts, unfinished = generate(vlm, [asked(p, prompt) for p in problems], max_new_tokens, on_finished, adapters)
    return [(parse(text, p.choices), text, ()) for text, p in zip(texts, problems)], unfinished


def _guess(problem: Problem) -> int:
    return random.Random(f"guess {problem.id}").randrange(len(problem.choices))


def _prediction(
    problem: Problem, order: list[int], shown_choice: int | None, text: str, scores: Sequence[float]
) -> Prediction:
    """An answer to the reordered problem, said about the problem as given."""
    choice = None if shown_choice is None else order[shown_choice]
    back = tuple(scores[order.index(i)] for i in range(len(scores)))
    return Prediction(problem.id, choice, choice == problem.answer, text, back)


def _order(problem: Problem, seed: int | None) -> list[int]:
    order = list(range(len(problem.choices)))
    if seed is not None:
        random.Random(f"{seed} {problem.id}").shuffle(order)
    return order


def _longest_first(problems: Sequence[Problem]) -> list[int]:
    """Indices so that neighbours are of like length: memory that suffices at the start suffices to the end."""

    def length(i: int) -> tuple[bool, int]:
        p = problems[i]
        return p.image is not None, len(p.question) + len(p.hint) + sum(map(len, p.choices))

    return sorted(range(len(problems)), key=length, reverse=True)
