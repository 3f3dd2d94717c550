"""Sampled replies: temperature, top-p, several replies to a prompt on one prefill, each with its log-probability."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mmlora.encoding.conversation import Conversation
from mmlora.encoding.sample import encode
from mmlora.inference.generate import InferenceError, complete, decoded, greedy
from mmlora.inference.session import evaluating
from mmlora.models.precision import finite, products
from mmlora.models.vlm import VLM

BITS = 24  # of a random number: as many as float32 has, so that it stays below 1 there
COLDEST = 1e-3  # the lowest temperature: logits divided by less may leave float32, and greedy is the same by then


@dataclass(frozen=True)
class Sampling:
    """How next tokens are drawn. Raises `InferenceError` for values that define no distribution."""

    temperature: float = 1.0  # divides the logits; 1 is the model's own distribution, 0 takes the likeliest token
    top_p: float = 1.0  # 1 leaves no token out; below, the tail of unlikely tokens is never drawn (arXiv 1904.09751)
    seed: int = 0  # fixed, so that a run can be repeated
    replies: int = 1  # to each prompt, whose prefill they share

    def __post_init__(self) -> None:
        if self.temperature != 0 and not COLDEST <= self.temperature < math.inf:
            raise InferenceError(f"the temperature is {self.temperature}; give 0 (greedy), or {COLDEST} or more")
        if not 0 < self.top_p <= 1:
            raise InferenceError(f"top_p is {self.top_p}; give a number above 0 and at most 1")
        if self.replies < 1:
            raise InferenceError(f"{self.replies} replies to each prompt were asked for; give 1 or more")


@dataclass(frozen=True)
class Reply:
    """One sampled reply. `tokens` include the end token where it was reached (`ended`).

    `log_probabilities` are those of each token in nats, under the model itself: at temperature 1, whatever top-p left out.
    """

    text: str
    tokens: tuple[int, ...]
    ended: bool
    log_probabilities: tuple[float, ...]

    @property
    def log_probability(self) -> float:
        """Summed over all tokens."""
        return math.fsum(self.log_probabilities)


class Draw:
    """A `Choose` that samples, with one random generator for each row; it records the log-probability of each token."""

    def __init__(self, sampling: Sampling, ids: Sequence[str]):
        self.sampling = sampling
        self.generators = [generator(sampling.seed, id, k) for id in ids for k in range(sampling.replies)]
        self.log_probabilities: list[list[float]] = [[] for _ in self.generators]

    def __call__(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        exact, numbers = logits.float(), rows.tolist()
        if self.sampling.temperature == 0:
            tokens = greedy(logits, rows)
        else:
            uniform = [self.generators[row].getrandbits(BITS) / 2**BITS for row in numbers]
            tokens = inverse_cdf(
                probabilities(exact, self.sampling), torch.tensor(uniform, device=exact.device)[:, None]
            )
        found = exact.gather(-1, tokens[:, None])[:, 0] - exact.logsumexp(-1)
        for row, value in zip(numbers, found.tolist(), strict=True):
            self.log_probabilities[row].append(value)
        return tokens


def generator(seed: int, id: str, reply: int) -> random.Random:
    """The random numbers of one reply: the same in any batch, in any order of prompts, on any device."""
    return random.Random(f"{seed} {id} {reply}")


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What is drawn from, float32 (rows, vocabulary): the softmax at this temperature, with zeros outside the nucleus.

    Raises `InferenceError` where logits are not finite.
    """
    if not logits.amax(-1).isfinite().all():
        raise InferenceError(f"logits to draw from are not finite in {products()}; {finite()}")
    whole = (logits / sampling.temperature).softmax(-1)
    return whole if sampling.top_p == 1 else nucleus(whole, sampling.top_p)


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The probabilities (rows, vocabulary) of the fewest likeliest tokens that reach `top_p` together; zero for all others.

    Of equally likely tokens the one with the lower id comes first (nucleus sampling: Holtzman et al. 2020, arXiv 1904.09751).
    """
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    before = F.pad(ordered.cumsum(-1), (1, -1))  # the sum of those that are likelier
    outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, ids, before >= top_p)
    return probabilities.masked_fill(outside, 0.0)


def inverse_cdf(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The tokens (rows,) where the cumulative weights (rows, vocabulary) pass these shares (rows, 1), from 0 to below 1.

    In the order of ids, not of weights: rounding then moves a boundary a little and swaps no two tokens.
    """
    cumulative = weights.cumsum(-1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]


def sample(
    vlm: VLM,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    on_finished: Callable[[int], object] = lambda count: None,
) -> list[list[Reply]]:
    """`sampling.replies` replies to each prompt, drawn from the model; conversations in their order.

    A reply depends on the model, the prompt, the seed, the conversation's id and the reply's number, and on nothing else but
    the rounding of logits: give each conversation an id of its own. `on_finished` is called with the number of replies that
    have just finished. A reply ends at the model's context length at the latest, with a warning. Raises `EncodingError` for
    a prompt that leaves no place for a reply, and `InferenceError` where logits are not finite.
    """
    samples = [encode(vlm.processor, conversation) for conversation in conversations]
    draw = Draw(sampling, [each.id for each in samples])
    with evaluating(vlm):
        rows = complete(vlm, samples, max_new_tokens, draw, sampling.replies, on_finished)
    tokenizer = vlm.processor.tokenizer
    replies = [
        Reply(text, tuple(row), tokenizer.eos_token_id in row, tuple(values[: len(row)]))
        for text, row, values in zip(decoded(tokenizer, rows), rows, draw.log_probabilities, strict=True)
    ]
    return [replies[at : at + sampling.replies] for at in range(0, len(replies), sampling.replies)]
