"""Log-probabilities of given replies after a prompt, without generating them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from mmlora.adapters.named import one_per_row
from mmlora.encoding.conversation import Conversation
from mmlora.encoding.loss import IGNORED
from mmlora.encoding.room import refuse_longer, room
from mmlora.encoding.sample import encode
from mmlora.inference.session import Session, left_padded, prefill
from mmlora.models.vlm import VLM


def log_likelihoods(
    vlm: VLM,
    conversations: Sequence[Conversation],
    continuations: Sequence[Sequence[Sequence[int]]],
    adapters: Sequence[str | None] | None = None,
) -> list[list[float]]:
    """Summed log-probabilities, in nats, of token lists after each conversation's prompt; one number per continuation.

    One prefill takes the prompts, left-padded, each with the tokens that all its continuations share. Its KV cache is then
    repeated for each continuation, and one decode step takes the rest, right-padded. Equal to scoring whole rows.
    `adapters` names the adapter of each conversation, None for the base alone; or else the active one scores all.
    Raises `EncodingError` where a prompt with its longest continuation is longer than the model can read.
    """
    one_per_row(adapters, len(conversations))
    starts: list[list[int]] = [list(os.path.commonprefix([list(c[:-1]) for c in lists])) for lists in continuations]
    prompts = [encode(vlm.processor, c).followed_by(start) for c, start in zip(conversations, starts)]
    for prompt, start, lists in zip(prompts, starts, continuations):
        refuse_longer(prompt.id, len(prompt) - len(start) + max(map(len, lists)), room(vlm.model))
    out, session = prefill(vlm, left_padded(vlm, prompts), max(map(len, starts)) + 1, adapters)
    logits = out.logits.float()
    norms = logits.logsumexp(-1)
    owners = [i for i, lists in enumerate(continuations) for _ in lists]
    tails = [list(c[len(starts[i]) :]) for i, lists in enumerate(continuations) for c in lists]
    totals = []
    for i, tail in zip(owners, tails):
        tokens = torch.tensor([*starts[i], tail[0]], device=logits.device)
        picked = logits[i, -len(tokens) :].gather(-1, tokens[:, None])[:, 0]
        totals.append((picked - norms[i, -len(tokens) :]).sum())
    if max(map(len, tails)) > 1:
        totals = [a + b for a, b in zip(totals, _tail_likelihoods(session, owners, tails))]
    numbers = iter(torch.stack(totals).tolist())
    return [[next(numbers) for _ in lists] for lists in continuations]


def _tail_likelihoods(session: Session, owners: list[int], tails: list[list[int]]) -> torch.Tensor:
    """Summed log-probabilities (rows,) of each tail's second and later tokens, on the prompts' KV cache.

    `owners` are the session's rows that the tails follow.
    """
    device = session.tokens["input_ids"].device
    session.select(torch.tensor(owners, device=device))
    width = max(map(len, tails)) - 1
    inputs, targets = (
        torch.tensor([t[a : len(t) - b] + [fill] * (width + 1 - len(t)) for t in tails], device=device)
        for a, b, fill in ((0, 1, 0), (1, 0, IGNORED))
    )
    logits = session.decode_step(inputs, (targets != IGNORED).long()).logits.float()
    picked = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return (picked - logits.logsumexp(-1)).masked_fill(targets == IGNORED, 0.0).sum(-1)
