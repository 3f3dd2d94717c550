"""Replies to many prompts at once: batched prefill, then decode steps that rows leave when they have ended.

`generate` is greedy decoding; `complete` takes any rule that chooses the next tokens (`inference.sampling` draws them).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from mmlora.adapters.named import in_order, one_per_row
from mmlora.encoding.conversation import Conversation
from mmlora.encoding.room import refuse_longer, room
from mmlora.encoding.sample import Sample, encode
from mmlora.errors import MMLoraError
from mmlora.inference.session import Session, concatenated, left_padded, prefill
from mmlora.models.precision import finite, products
from mmlora.models.vlm import VLM

PREFILL_ROWS = 64  # replies whose prompts are in one prefill: its matrix products are large enough
CACHE_BYTES = 2**30  # of KV cache that is decoded together, where more prompts are given
NAMED_IDS = 10  # ids that a message names at most
COMPACT_BELOW = 0.75  # share of rows still active at which ended ones leave the batch: that copies those that stay

#: From logits (rows, vocabulary) and the rows' numbers, int64 (rows,), to their next tokens, int64 (rows,).
Choose = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class InferenceError(MMLoraError):
    """A model or setting that gives no reply; the message says what to do."""


def generate(
    vlm: VLM,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
    on_finished: Callable[[int], object] = lambda count: None,
    adapters: Sequence[str | None] | None = None,
) -> tuple[list[str], int]:
    """Greedy replies to the prompts, in their order, and how many of them did not reach their end token.

    Call it inside `evaluating`. `adapters` names the adapter that answers each prompt, mixed in one batch, None for the base
    alone; without, the active one answers all. `on_finished` is called with the number of replies that have just finished. A
    reply ends at the model's context length at the latest, with a warning that names it. Raises `EncodingError` for a prompt
    that leaves no place for a reply, and `InferenceError` where the first logits are not finite, as some models' are in float16.
    """
    samples = [encode(vlm.processor, conversation) for conversation in conversations]
    rows = complete(vlm, samples, max_new_tokens, greedy, on_finished=on_finished, adapters=adapters)
    tokenizer = vlm.processor.tokenizer
    return decoded(tokenizer, rows), sum(tokenizer.eos_token_id not in row for row in rows)


def greedy(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The tokens with the highest logits; a `Choose`."""
    return logits.max(-1).indices  # argmax takes three times as long in bfloat16


def decoded(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """The texts of these tokens, without special tokens and outer white space, and nothing inside tidied away."""
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]


def complete(
    vlm: VLM,
    samples: Sequence[Sample],
    max_new_tokens: int,
    choose: Choose,
    replies: int = 1,
    on_finished: Callable[[int], object] = lambda count: None,
    adapters: Sequence[str | None] | None = None,
) -> list[list[int]]:
    """The tokens of every reply, end token included where it was reached; row `i * replies + k` is reply k to sample i.

    Samples of like length are in one prefill, and what is prefilled is decoded together as far as `CACHE_BYTES` allows.
    Call it inside `evaluating`. Raises as `generate` does, and `AdapterError` where `adapters` are not one for each sample.
    """
    one_per_row(adapters, len(samples))
    for sample in samples:
        refuse_longer(sample.id, len(sample) + 1, room(vlm.model))
    order = sorted(range(len(samples)), key=lambda i: -len(samples[i]))
    numbers = [i * replies + k for i in order for k in range(replies)]
    tokens: list[list[int]] = [[] for _ in numbers]
    start = 0
    for logits, session in prefilled(vlm, [samples[i] for i in order], replies, in_order(adapters, order)):
        rows = torch.tensor(numbers[start : start + len(logits)], device=logits.device)
        start, unfinished = start + len(rows), len(rows)
        for active, chosen, last in decode_steps(vlm, logits, session, rows, max_new_tokens, choose):
            for row, token in zip(active.tolist(), chosen.tolist(), strict=True):
                tokens[row].append(token)
            finished = int(last.sum())
            unfinished -= finished
            on_finished(finished)
        on_finished(unfinished)
    end = vlm.processor.tokenizer.eos_token_id
    cut = {row // replies for row, said in enumerate(tokens) if end not in said and len(said) < max_new_tokens}
    warn_of_context(vlm, [samples[i].id for i in order if i in cut])
    return tokens


def warn_of_context(vlm: VLM, ids: Sequence[str]) -> None:
    """Warn whose replies were cut at the model's context length."""
    if ids:
        named = ", ".join(ids[:NAMED_IDS]) + (", …" if len(ids) > NAMED_IDS else "")
        warnings.warn(
            f"the replies to {named} ({len(ids)} in all) were cut at the {room(vlm.model)} tokens that the model can read",
            stacklevel=4,
        )


def prefilled(
    vlm: VLM, samples: Sequence[Sample], replies: int = 1, adapters: Sequence[str | None] | None = None
) -> Iterator[tuple[torch.Tensor, Session]]:
    """All prompts after their prefill, in as few sessions as `CACHE_BYTES` allows: first logits (rows, vocabulary), session.

    Each prompt is computed once; its row is repeated for each of its `replies`. Raises `InferenceError` where logits are not
    finite.
    """
    size = max(1, PREFILL_ROWS // replies)
    waiting: list[tuple[torch.Tensor, Session]] = []
    for at in range(0, len(samples), size):
        names = None if adapters is None else adapters[at : at + size]
        out, session = prefill(vlm, left_padded(vlm, samples[at : at + size]), logits_to_keep=1, adapters=names)
        if not out.logits.isfinite().all():
            raise InferenceError(f"the logits of {vlm.name} are not finite in {products()}; {finite()}")
        logits, joinable = out.logits[:, -1], session.can_concatenate
        if replies > 1:
            rows = torch.arange(len(logits), device=logits.device).repeat_interleave(replies)
            session.select(rows)
            logits = logits[rows]
        if not joinable:
            yield logits, session
            continue
        waiting.append((logits, session))
        if at + size >= len(samples) or sum(part.nbytes for _, part in waiting) + session.nbytes > CACHE_BYTES:
            yield torch.cat([first for first, _ in waiting]), concatenated([part for _, part in waiting])
            waiting = []


def decode_steps(
    vlm: VLM, logits: torch.Tensor, session: Session, rows: torch.Tensor, max_new_tokens: int, choose: Choose
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Decode until all rows have ended: yields their numbers and tokens, int64, and which tokens are a row's last, bool.

    `logits` (rows, vocabulary) are those of the first tokens, `rows` the rows' numbers, int64 (rows,). A row's last token is its
    end token or the one at the model's context length; rows that reach `max_new_tokens` before have none.
    """
    end = vlm.processor.tokenizer.eos_token_id
    ended = torch.zeros(len(rows), dtype=torch.bool, device=logits.device)
    left = room(vlm.model) - session.tokens["attention_mask"].sum(-1)
    for step in range(max_new_tokens):
        tokens = choose(logits, rows)
        last = ~ended & ((tokens == end) | (left == step + 1))
        yield rows[~ended], tokens[~ended], last
        ended = ended | last
        if step + 1 == max_new_tokens or ended.all():
            return
        active = (~ended).nonzero()[:, 0]
        if len(active) <= COMPACT_BELOW * len(ended):
            session.select(active)
            rows, tokens, ended, left = rows[active], tokens[active], ended[active], left[active]
        logits = session.decode_step(tokens[:, None]).logits[:, -1]
