"""Answering problems with a model: by likelihood, by letter, or by free-running generation.

Likelihood and letter cannot fail to answer, generation can: an answer that names no choice is wrong and counted apart
(`Scores.unanswered`). Nothing here changes the model; figures come from `mmlora.scores`.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from mmlora.errors import MMLoraError
from mmlora.memory import give_back, in_parts
from mmlora.models import VLM, base_model
from mmlora.precision import mixed
from mmlora.prompts import (
    IGNORED,
    SAID,
    Sample,
    encode_prompt,
    encode_texts,
    lmms_prompt,
    parse_answer,
    parse_lmms,
    parse_official,
    prompt_text,
    target_text,
)
from mmlora.samples import collate, on_device
from mmlora.scienceqa import LETTERS, Problem
from mmlora.scores import Prediction, Scores, compare, majority_class, score

__all__ = ["Method", "Prediction", "Scores", "blanked", "compare", "evaluate", "log_likelihoods", "majority_class",
           "occlusion", "score"]

Method = Literal["likelihood", "letter", "generate", "official", "lmms_eval"]

#: Where the model speaks freely: what it is asked, and which choice it then named.
SPOKEN = {"generate": (prompt_text, parse_answer), "official": (prompt_text, parse_official),
          "lmms_eval": (lmms_prompt, parse_lmms)}


class EvaluationError(MMLoraError):
    """A model or setting that cannot be scored; the message says where it failed and what to do."""


def evaluate(
    vlm: VLM, problems: Sequence[Problem], method: Method = "likelihood", *, batch_size: int = 16,
    shuffle_seed: int | None = None, max_new_tokens: int = 192, progress: bool = True,
) -> list[Prediction]:
    """Answer every problem, in the given order.

    - `likelihood`: the choice whose answer sentence has the highest summed log-probability after the prompt.
    - `letter`: the choice whose letter has the highest log-probability as the next token.
    - `generate`: greedy generation of explanation and answer, then `prompts.parse_answer`.
    - `official`: the same, for models that say letters: ScienceQA's own regular expression, and its random guess (fixed
      here by the problem's id) where it finds nothing; warns how many were guessed.
    - `lmms_eval`: the prompt and the parser of lmms-eval's task `scienceqa`; what is no letter is wrong.

    `shuffle_seed` shows the choices in another order, fixed by the seed and the problem's id; `choice` and `scores`
    of a `Prediction` always refer to the problem as given. Raises `EvaluationError` for an unknown method, and where
    a score is not a number; warns where a generation was cut at `max_new_tokens`.
    """
    if method not in get_args(Method):
        raise EvaluationError(f"no scoring method is called {method!r}; there are {', '.join(get_args(Method))}")
    orders = [_order(problem, shuffle_seed) for problem in problems]
    shown = [problem.reordered(order) for problem, order in zip(problems, orders)]
    answers: dict[int, Prediction] = {}
    cut, guessed = 0, 0

    def answer(rows: Sequence[int]):
        batch = [shown[i] for i in rows]
        return _speak(vlm, batch, method, max_new_tokens) if method in SPOKEN else (_choose(vlm, batch, method), 0)

    with _evaluating(vlm), tqdm(total=len(shown), desc=method, unit="problem", disable=not progress) as bar:
        for rows, (found, unfinished) in in_parts(answer, _longest_first(shown), batch_size):
            cut += unfinished
            if method == "official":
                guessed += sum(choice is None for choice, *_ in found)
                found = [(_guess(shown[i]) if choice is None else choice, *rest) for (choice, *rest), i in zip(found, rows)]
            answers |= {i: _prediction(problems[i], orders[i], *answer) for i, answer in zip(rows, found)}
            bar.update(len(rows))
            give_back()  # a KV cache grows by copying: each length leaves a hole behind
    if cut:
        warnings.warn(f"{cut} of {len(problems)} generations were cut at {max_new_tokens} tokens; raise max_new_tokens",
                      stacklevel=2)
    if guessed:
        warnings.warn(f"{guessed} of {len(problems)} answers named no letter and were guessed, as the official scorer does",
                      stacklevel=2)
    return [answers[i] for i in range(len(problems))]


def blanked(problems: Sequence[Problem]) -> list[Problem]:
    """The problems with a picture, each behind plain grey: evaluate these to see what needs no looking."""
    return [problem.blanked() for problem in problems if problem.image is not None]


def occlusion(vlm: VLM, problem: Problem, prediction: Prediction, grid: int = 8, batch_size: int = 16) -> np.ndarray:
    """What the model looked at: (grid, grid) falls in the log-likelihood of `prediction.text`, in nats.

    Cell (row, column) is the log-likelihood with the whole picture minus the one with a grey patch over that cell
    (occlusion maps: Zeiler and Fergus 2014, arXiv 1311.2901). Raises `EvaluationError` without a picture.
    """
    if problem.image is None:
        raise EvaluationError(f"problem {problem.id} has no picture to cover; choose one with an image")
    patched = [_covered(problem.image, row, column, grid) for row in range(grid) for column in range(grid)]
    copies = [problem, *(replace(problem, image=image) for image in patched)]
    text = _tokens(vlm, prediction.text)
    scores = []
    with _evaluating(vlm):
        for _, rows in in_parts(lambda part: log_likelihoods(vlm, part, [[text]] * len(part)), copies, batch_size):
            scores += [row[0] for row in rows]
    return scores[0] - np.array(scores[1:]).reshape(grid, grid)


def log_likelihoods(
    vlm: VLM, problems: Sequence[Problem], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Summed log-probabilities of token lists after each problem's prompt; one number per continuation.

    The prompts run once, left-padded, together with the tokens that all of a problem's continuations share. Their
    KV cache is then repeated per continuation and the rest runs right-padded. Equal to scoring whole rows.
    """
    starts = [os.path.commonprefix([c[:-1] for c in lists]) for lists in continuations]
    prompts = [encode_prompt(vlm.processor, p).followed_by(start) for p, start in zip(problems, starts)]
    batch = _left_padded(vlm, prompts)
    keep = max(map(len, starts)) + 1
    if hasattr(base_model(vlm.model).model, "rope_deltas"):
        base_model(vlm.model).model.rope_deltas = None  # of an earlier batch
    prefix = vlm.model(**batch, use_cache=True, logits_to_keep=keep)
    logits = prefix.logits.float()
    norms = logits.logsumexp(-1)
    owners = [i for i, lists in enumerate(continuations) for _ in lists]
    tails = [c[len(starts[i]) :] for i, lists in enumerate(continuations) for c in lists]
    totals = []
    for i, tail in zip(owners, tails):
        tokens = torch.tensor([*starts[i], tail[0]], device=logits.device)
        picked = logits[i, -len(tokens) :].gather(-1, tokens[:, None])[:, 0]
        totals.append((picked - norms[i, -len(tokens) :]).sum())
    if max(map(len, tails)) > 1:
        totals = [a + b for a, b in zip(totals, _tail_likelihoods(vlm, batch, prefix.past_key_values, owners, tails))]
    numbers = iter(torch.stack(totals).tolist())
    return [[next(numbers) for _ in lists] for lists in continuations]


def _tail_likelihoods(vlm: VLM, batch: dict, past, owners: list[int], tails: list[list[int]]) -> torch.Tensor:
    """Summed log-probabilities (rows,) of each tail's second and later tokens, reusing the prompts' cache."""
    device, core = batch["input_ids"].device, base_model(vlm.model).model
    rows = torch.tensor(owners, device=device)
    past.batch_select_indices(rows)
    width = max(map(len, tails)) - 1
    inputs, targets = (
        torch.tensor([t[a : len(t) - b] + [fill] * (width + 1 - len(t)) for t in tails], device=device)
        for a, b, fill in ((0, 1, 0), (1, 0, IGNORED))
    )
    new = {"input_ids": inputs, "attention_mask": (targets != IGNORED).long()}
    by_token = {name: t[rows] for name, t in batch.items() if t.shape == batch["input_ids"].shape}
    whole = {name: torch.cat([t, new.get(name, torch.full_like(inputs, SAID.get(name, 0)))], dim=1)
             for name, t in by_token.items()}
    if getattr(core, "rope_deltas", None) is not None:  # Qwen's models count on from where a row's picture moved them
        whole["position_ids"] = (whole["attention_mask"].cumsum(-1) - 1 + core.rope_deltas[rows]).expand(3, -1, -1)
    # The model's own rule says what a forward over a filled cache needs: it differs between architectures.
    step = vlm.model.prepare_inputs_for_generation(
        **whole, past_key_values=past, next_sequence_length=width, use_cache=True, is_first_iteration=False
    )
    logits = vlm.model(**step).logits.float()
    picked = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return (picked - logits.logsumexp(-1)).masked_fill(targets == IGNORED, 0.0).sum(-1)


def _choose(vlm: VLM, problems: Sequence[Problem], method: Method) -> list[tuple[int, str, tuple[float, ...]]]:
    """(choice, text, scores) of each problem by the likelihood of its answers or of their letters."""
    if method == "letter":
        texts = [list(LETTERS[: len(p.choices)]) for p in problems]
        tokens = [[_tokens(vlm, text)[:-1] for text in options] for options in texts]  # a letter needs no end token
    else:
        texts = [[target_text(replace(p, answer=i), "answer") for i in range(len(p.choices))] for p in problems]
        tokens = [[_tokens(vlm, text) for text in options] for options in texts]
    found = []
    for problem, options, scores in zip(problems, texts, log_likelihoods(vlm, problems, tokens)):
        if not np.isfinite(scores).all():
            raise EvaluationError(f"problem {problem.id}: the model's scores are not finite; load it in float32")
        best = int(np.argmax(scores))
        found.append((best, options[best], tuple(scores)))
    return found


def _speak(vlm: VLM, problems: Sequence[Problem], method: Method, max_new_tokens: int) -> tuple[list[tuple], int]:
    """(choice or None, text, no scores) of each problem by what the model says, and how many answers were cut."""
    prompt, parse = SPOKEN[method]
    texts, unfinished = _generate(vlm, problems, max_new_tokens, prompt)
    return [(parse(text, p.choices), text, ()) for text, p in zip(texts, problems)], unfinished


def _guess(problem: Problem) -> int:
    return random.Random(f"guess {problem.id}").randrange(len(problem.choices))


def _generate(vlm: VLM, problems: Sequence[Problem], max_new_tokens: int, prompt=prompt_text) -> tuple[list[str], int]:
    """Greedy continuations of the prompts, and how many of them did not reach their end token."""
    tokenizer = vlm.processor.tokenizer
    batch = _left_padded(vlm, [encode_prompt(vlm.processor, p, prompt) for p in problems])
    rows = vlm.model.generate(
        **batch, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=_pad(vlm),
    )[:, batch["input_ids"].shape[1] :]
    unfinished = int((rows != tokenizer.eos_token_id).all(-1).sum())
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)], unfinished


def _left_padded(vlm: VLM, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """One batch whose rows end together."""
    batch = on_device(vlm.model, collate(samples, side="left"))
    del batch["labels"]
    batch["input_ids"][batch["attention_mask"] == 0] = _pad(vlm)
    return batch


def _prediction(problem: Problem, order: list[int], shown_choice: int | None, text: str, scores) -> Prediction:
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


def _tokens(vlm: VLM, text: str) -> list[int]:
    """`text` as the assistant says it in training, end token included."""
    labels = encode_texts(vlm.processor, "", "", None, text).labels
    return labels[labels != IGNORED].tolist()


def _pad(vlm: VLM) -> int:
    tokenizer = vlm.processor.tokenizer
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _covered(image: Image.Image, row: int, column: int, grid: int) -> Image.Image:
    copy, (width, height) = image.copy(), image.size
    box = (column * width // grid, row * height // grid, (column + 1) * width // grid, (row + 1) * height // grid)
    copy.paste((128, 128, 128), box)
    return copy


@contextmanager
def _evaluating(vlm: VLM):
    """Eval mode without gradients; the training flags of all modules come back as they were."""
    training: list[torch.nn.Module] = [m for m in vlm.model.modules() if m.training]
    vlm.model.eval()
    try:
        with torch.inference_mode(), mixed(vlm.model.device):
            yield
    finally:
        for module in training:
            module.training = True
