"""The forward pass up to supervised positions, and losses on what it gives, with the vocabulary projection folded in.

`forward` gives the hidden states that predict supervised tokens; an objective turns them into a loss: `sft` here, preferences
and a teacher in `training.objectives`. A small model's vocabulary projection costs nearly as much as its adapted layers, so it
runs on supervised positions alone, some at a time, and no logits are kept for the backward pass: the gradient for the hidden
states is made with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mmlora.models.vlm import base_model, evaluation_mode

IGNORED = -100  # the label that takes no part in the loss, torch's own convention
EXACT, ROUNDED = 1e-3, 5e-2  # how far two ways to compute a loss may differ, in float32 and in half precision
MULTIPLIED = "mmlora_multiplied"  # a head's attribute: its weight in the numbers that are multiplied, see `head_in`
CHUNK = 512  # positions that are multiplied at a time: 512 x 49,152 logits in float32 are 100 MB
ROWS = 16  # of these, positions that a processor makes a softmax of at a time: 3 MB of float32, which its cache holds


@dataclass(frozen=True)
class Supervised:
    """What a forward pass gives at the positions that predict a supervised token, sample after sample.

    Position t predicts label t + 1, the only shift there is.
    """

    targets: torch.Tensor  # int64 (tokens,): the supervised tokens
    keep: torch.Tensor  # bool (batch, length - 1): the positions that predict them
    hidden: Any = None  # (tokens, width), after the final norm, in the dtype of `weight`
    weight: Any = None  # (vocabulary, width), the frozen projection's
    cap: float | None = None  # bounds the logits where the architecture does (Gemma 2, arXiv 2408.00118)
    output: Any = None  # instead of these, the model's own output, where its head is more than a frozen projection

    @classmethod
    def of(cls, hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor, cap: float | None = None) -> Supervised:
        """From hidden states (batch, length, width) and labels (batch, length), -100 where nothing is supervised."""
        weight = getattr(head, MULTIPLIED, head.weight)
        keep = labels[:, 1:] != IGNORED
        return cls(labels[:, 1:][keep], keep, hidden[:, :-1][keep].to(weight.dtype), weight, cap)

    def by_sample(self, values: torch.Tensor) -> torch.Tensor:
        """The sums (batch,) of `values` (tokens,) over each sample's tokens."""
        return torch.stack([part.sum() for part in values.split(self.counts.tolist())])

    @property
    def counts(self) -> torch.Tensor:
        """Supervised tokens of each sample, int64 (batch,)."""
        return self.keep.sum(1)


def _softened(logits: torch.Tensor, wanted: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Summed cross-entropy (float32) of logits (positions, words), which become their own gradient in place."""
    exact = logits.float()
    if cap:
        exact = cap * (exact / cap).tanh_()
        slope = 1 - (exact / cap) ** 2
    highest, said = exact.amax(-1, keepdim=True), exact.gather(1, wanted)
    whole = exact.sub_(highest).exp_().sum(-1, keepdim=True)
    exact.div_(whole).scatter_add_(1, wanted, -torch.ones_like(whole))
    logits.copy_(exact * slope if cap else exact)
    return (whole.log() + highest - said).sum()


class _ProjectedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T`; the gradient for `hidden` is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, cap: float | None
    ) -> torch.Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK):
            logits = hidden[start : start + CHUNK] @ weight.T
            rows = ROWS if logits.device.type == "cpu" else CHUNK
            for part, wanted in zip(logits.split(rows), targets[start : start + CHUNK, None].split(rows)):
                total += _softened(part, wanted, cap)
            if gradient is not None:
                gradient[start : start + CHUNK] = logits @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return (gradient.float() * scale).to(gradient.dtype), None, None, None  # float16 cannot hold a loss scale


def sft(states: Supervised) -> tuple[torch.Tensor, int]:
    """Supervised fine-tuning: the cross-entropy summed over supervised tokens (float32, 0-dim), and their number."""
    tokens = len(states.targets)
    if states.output is not None:
        return states.output.loss.float() * tokens, tokens
    return _ProjectedCrossEntropy.apply(states.hidden, states.weight, states.targets, states.cap), tokens


TokenLoss = Callable[[torch.Tensor, slice], torch.Tensor]  # logits and their place among the tokens → (tokens, columns)


class _TokenLosses(torch.autograd.Function):
    """A `TokenLoss` of `hidden @ weight.T`; the gradient of its first column is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, cap: float | None, loss: TokenLoss
    ) -> torch.Tensor:
        found = []
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, max(1, len(hidden)), CHUNK):
            logits = hidden[start : start + CHUNK] @ weight.T
            at = start
            for part in logits.split(ROWS if logits.device.type == "cpu" else CHUNK):
                with torch.enable_grad():
                    exact = part.detach().float().requires_grad_(gradient is not None)
                    values = loss(cap * (exact / cap).tanh() if cap else exact, slice(at, at + len(part)))
                    total = values[:, 0].sum()
                if gradient is not None:
                    part.copy_(torch.autograd.grad(total, exact)[0])
                found.append(values.detach())
                at += len(part)
            if gradient is not None:
                gradient[start : start + CHUNK] = logits @ weight
        ctx.save_for_backward(gradient)
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return (gradient.float() * scale[:, :1]).to(gradient.dtype), None, None, None


def token_losses(states: Supervised, loss: TokenLoss) -> torch.Tensor:
    """What `loss` makes of the float32 logits (tokens, vocabulary) of supervised positions, some at a time: (tokens, columns).

    The gradient is the first column's; further columns are metrics. `loss` treats every token by itself, and its second
    argument is the slice of the tokens that the logits are of.
    """
    if states.output is not None:
        return loss(states.output.logits[:, :-1][states.keep].float(), slice(0, len(states.targets)))
    return _TokenLosses.apply(states.hidden, states.weight, states.cap, loss)


def log_probabilities(states: Supervised) -> torch.Tensor:
    """The model's natural log-probability of each supervised token, float32 (tokens,)."""

    def negative(logits: torch.Tensor, part: slice) -> torch.Tensor:
        return cross_entropy(logits, states.targets[part], reduction="none")[:, None]

    return -token_losses(states, negative)[:, 0]


def converted(head: nn.Module, dtype: torch.dtype) -> torch.Tensor | None:
    """The vocabulary projection's weight in `dtype`; None where it is so, trains, or is more than a weight."""
    plain = type(head) is nn.Linear and head.bias is None and "forward" not in vars(head)
    if not plain or head.weight.dtype == dtype or head.weight.requires_grad:
        return None
    with torch.inference_mode(False):
        return head.weight.detach().to(dtype)


@contextmanager
def head_in(head: nn.Module, weight: torch.Tensor | None) -> Iterator[None]:
    """Inside, the projection multiplies with this `converted` weight: none of it is converted at every token."""
    if weight is None or "forward" in vars(head):
        yield
        return
    setattr(head, MULTIPLIED, weight)
    head.forward = lambda hidden: nn.functional.linear(hidden.to(weight.dtype), weight)
    try:
        yield
    finally:
        delattr(head, MULTIPLIED)
        del head.forward


def on_device(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch where the model is, its pictures in the model's precision."""
    inner = base_model(model)
    return {n: t.to(inner.device, inner.dtype if t.is_floating_point() else t.dtype) for n, t in batch.items()}


def forward(model: nn.Module, batch: dict[str, torch.Tensor], own: bool = False) -> Supervised:
    """The model's forward pass over a batch, up to the positions that predict supervised tokens.

    With `own` the model projects them itself, which computes the logits of every position (see `needs_own_loss`).
    """
    inner, inputs = base_model(model), {name: t for name, t in batch.items() if name != "labels"}
    labels = batch["labels"]
    if own:
        keep = labels[:, 1:] != IGNORED
        output = inner(**inputs, labels=labels, use_cache=False)
        return Supervised(labels[:, 1:][keep], keep, output=output)
    hidden = inner.model(**inputs, use_cache=False)[0]
    cap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
    return Supervised.of(hidden, inner.get_output_embeddings(), labels, cap)


def batch_loss(model: nn.Module, batch: dict[str, torch.Tensor], own: bool = False) -> tuple[torch.Tensor, int]:
    """`sft` of a batch's `forward`: the loss summed over its supervised tokens (float32, 0-dim), and their number."""
    return sft(forward(model, batch, own))


@torch.no_grad()
def needs_own_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> bool:
    """Whether a head is more than a frozen projection, so that its logits must be the model's own; says so.

    A bias (some GPT-like heads) and a weight that trains tell by themselves, a scale (Cohere, Granite) by this batch's loss.
    """
    inner = base_model(model)
    with evaluation_mode(model):
        numbers = {p.dtype for n, p in inner.named_parameters() if p.is_floating_point() and "lora_" not in n}
        exact = torch.autocast(inner.device.type, enabled=False) if len(numbers) == 1 else nullcontext()
        try:
            with (
                exact
            ):  # a connector that learns in float32 needs the caller's autocast to meet towers in half precision
                (ours, tokens), (theirs, _) = batch_loss(model, batch), batch_loss(model, batch, own=True)
        finally:
            torch.clear_autocast_cache()  # older torch would go on with these casts, which have no gradient
    head = inner.get_output_embeddings()
    biased = getattr(head, "bias", None) is not None or any(p.requires_grad for p in head.parameters())
    close = EXACT if getattr(head, MULTIPLIED, head.weight).dtype == torch.float32 else ROUNDED
    differs = tokens > 0 and not torch.isclose(ours, theirs, rtol=close, equal_nan=True)
    if biased or differs:
        print(
            f"the loss of {type(inner).__name__} is more than a frozen projection: taking the model's own, which needs more memory"
        )
    return biased or differs
