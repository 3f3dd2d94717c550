"""The loss on supervised tokens only, with the vocabulary projection folded in.

A small model's vocabulary projection costs nearly as much as its adapted layers, so it runs on supervised positions
alone, and its softmax is turned into the gradient in place instead of being kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from mmlora.models.vlm import base_model

IGNORED = -100  # the label that takes no part in the loss, torch's own convention
EXACT, ROUNDED = 1e-3, 5e-2  # how far two ways to compute a loss may differ, in float32 and in half precision
MULTIPLIED = "mmlora_multiplied"  # a head's attribute: its weight in the numbers that are multiplied, see `head_in`
CHUNK = 512  # positions that are multiplied at a time: 512 x 49,152 logits in float32 are 100 MB
ROWS = 16  # of these, positions that a processor makes a softmax of at a time: 3 MB of float32, which its cache holds


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


def supervised_loss(
    hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor, cap: float | None = None
) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy over supervised tokens (float32, 0-dim), and their number.

    `hidden` (batch, length, width) comes after the final norm, `labels` (batch, length) holds -100 where nothing is
    supervised; position t predicts label t + 1, the only shift there is. The head gets no gradient. `cap` bounds the
    logits where the architecture does (Gemma 2, arXiv 2408.00118).
    """
    targets, weight = labels[:, 1:], getattr(head, MULTIPLIED, head.weight)
    keep = targets != IGNORED
    spoken = hidden[:, :-1][keep].to(weight.dtype)
    return _ProjectedCrossEntropy.apply(spoken, weight, targets[keep], cap), int(keep.sum())


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


def batch_loss(model: nn.Module, batch: dict[str, torch.Tensor], own: bool = False) -> tuple[torch.Tensor, int]:
    """Summed loss over the supervised tokens of a batch (float32, 0-dim), and their number.

    With `own` the model's own loss does it, which computes the logits of every position (see `needs_own_loss`).
    """
    inner, inputs = base_model(model), {name: t for name, t in batch.items() if name != "labels"}
    labels = batch["labels"]
    if own:
        tokens = int((labels[:, 1:] != IGNORED).sum())
        return inner(**inputs, labels=labels, use_cache=False).loss.float() * tokens, tokens
    hidden = inner.model(**inputs, use_cache=False)[0]
    cap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
    return supervised_loss(hidden, inner.get_output_embeddings(), labels, cap)


@torch.no_grad()
def needs_own_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> bool:
    """Whether a head is more than a frozen projection, so that `supervised_loss` would not do; says so.

    A bias (some GPT-like heads) and a weight that trains tell by themselves, a scale (Cohere, Granite) by this batch's loss.
    """
    inner = base_model(model)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        numbers = {p.dtype for n, p in inner.named_parameters() if p.is_floating_point() and "lora_" not in n}
        exact = torch.autocast(inner.device.type, enabled=False) if len(numbers) == 1 else nullcontext()
        with exact:  # a connector that learns in float32 needs the caller's autocast to meet towers in half precision
            (ours, tokens), (theirs, _) = batch_loss(model, batch), batch_loss(model, batch, own=True)
    finally:
        torch.clear_autocast_cache()  # older torch would go on with these casts, which have no gradient
        for module in training:
            module.training = True
    head = inner.get_output_embeddings()
    biased = getattr(head, "bias", None) is not None or any(p.requires_grad for p in head.parameters())
    close = EXACT if getattr(head, MULTIPLIED, head.weight).dtype == torch.float32 else ROUNDED
    differs = tokens > 0 and not torch.isclose(ours, theirs, rtol=close, equal_nan=True)
    if biased or differs:
        print(
            f"the loss of {type(inner).__name__} is more than a frozen projection: taking the model's own, which needs more memory"
        )
    return biased or differs
