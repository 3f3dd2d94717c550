"""The loss on supervised tokens only, with the vocabulary projection folded in.

A small model's vocabulary projection costs nearly as much as its adapted layers, so it runs on supervised positions
alone, and its softmax is turned into the gradient in place instead of being kept for the backward pass.
"""

from __future__ import annotations

import torch

IGNORED = -100  # the label that takes no part in the loss, torch's own convention
CHUNK = 512  # positions at a time: 512 x 49,152 float32 logits are 100 MB


class _ProjectedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T`; the gradient for `hidden` is made in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, cap):
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK):
            part, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK, None]
            logits = (part @ weight.T).float()
            if cap:
                logits = cap * (logits / cap).tanh_()
                slope = 1 - (logits / cap) ** 2
            normalizer = logits.logsumexp(-1, keepdim=True)
            total += (normalizer - logits.gather(1, wanted)).sum()
            if gradient is not None:
                probabilities = logits.sub_(normalizer).exp_()
                probabilities.scatter_add_(1, wanted, -torch.ones_like(normalizer))
                if cap:
                    probabilities *= slope
                gradient[start : start + CHUNK] = probabilities.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, scale):
        (gradient,) = ctx.saved_tensors
        return gradient * scale.to(gradient.dtype), None, None, None


def supervised_loss(
    hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor, cap: float | None = None
) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy over supervised tokens (float32, 0-dim), and their number.

    `hidden` (batch, length, width) comes after the final norm, `labels` (batch, length) holds -100 where nothing is
    supervised; position t predicts label t + 1, the only shift there is. The head must be frozen. `cap` bounds the
    logits where the architecture does (Gemma 2, arXiv 2408.00118).
    """
    targets = labels[:, 1:]
    keep = targets != IGNORED
    return _ProjectedCrossEntropy.apply(hidden[:, :-1][keep], head.weight, targets[keep], cap), int(keep.sum())
