"""The parts of a decoder layer that hold no weights, each with its backward by hand: rotary positions, attention, gates.

Fewer passes over memory than the same through autograd, and nothing kept that the backward does not read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F
from transformers.activations import GELUTanh, SiLUActivation

LEAST = torch.finfo(torch.float32).min
GELU = partial(F.gelu, approximate="tanh"), partial(torch.ops.aten.gelu_backward.grad_input, approximate="tanh")
SILU = F.silu, torch.ops.aten.silu_backward.grad_input
ACTS = {nn.SiLU: SILU, SiLUActivation: SILU, GELUTanh: GELU}  # what each gives, and its gradient into a tensor


class Rotated(Function):
    """Rotary positions (Su et al. 2021, 2104.09864): (batch, length, heads, size) → (batch, heads, length, size)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x.transpose(1, 2), cos.unsqueeze(1), sin.unsqueeze(1), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        cos, sin = (angles.unsqueeze(2) for angles in ctx.saved_tensors)
        swapped = sin.roll(sin.shape[-1] // 2, -1)  # what one half took from the other, it gives back with its sine
        return _turned(gradient.transpose(1, 2), cos, swapped, -1), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    half = x.shape[-1] // 2
    turned = torch.mul(x, cos, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return turned


class Attention(Function):
    """Attention by plain products, the query heads of one key head in one: on a CPU thrice as fast as torch's fused one.

    (batch, heads, length, size) each, keys and values with fewer heads; `bias` is float32 and broadcast to the scores.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, scale: float
    ) -> torch.Tensor:
        batch, heads, length, size = query.shape
        query, key, value = (t.reshape(batch * key.shape[1], -1, size) for t in (query, key, value))
        scores = torch.bmm(query, key.mT).view(batch, heads, length, -1)
        shares = torch.add(bias, scores, alpha=scale).softmax(-1).to(query.dtype).view(*query.shape[:2], -1)
        ctx.save_for_backward(query, key, value, shares)
        ctx.scale = scale
        return torch.bmm(shares, value).view(batch, heads, length, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        query, key, value, shares = ctx.saved_tensors
        shape, gradient = gradient.shape, gradient.reshape(query.shape)
        scores = torch._softmax_backward_data(torch.bmm(gradient, value.mT), shares, -1, shares.dtype).mul_(ctx.scale)
        into_key, into_value = torch.bmm(scores.mT, query), torch.bmm(shares.mT, gradient)
        into_key, into_value = (t.view(shape[0], -1, *key.shape[1:]) for t in (into_key, into_value))
        return torch.bmm(scores, key).view(shape), into_key, into_value, None, None


class Gated(Function):
    """act(gate) · up of (tokens, gate and up side by side), as SwiGLU and GeGLU have it (Shazeer 2020, 2002.05202)."""

    @staticmethod
    def forward(ctx: Any, both: torch.Tensor, act: tuple[Callable, Callable]) -> torch.Tensor:
        gate, up = both.chunk(2, -1)
        acted = act[0](gate)
        ctx.save_for_backward(both, acted)
        ctx.act_backward = act[1]
        return acted * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        both, acted = ctx.saved_tensors
        (gate, up), found = both.chunk(2, -1), torch.empty_like(both)
        into_gate, into_up = found.chunk(2, -1)
        torch.mul(acted, gradient, out=into_up)
        ctx.act_backward(gradient * up, gate, grad_input=into_gate)
        return found, None


class Normed(Function):
    """x / rms(x) · weight of (tokens, width) (Zhang and Sennrich 2019, 1910.07467); the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        inverse = torch.linalg.vecdot(x, x).unsqueeze(-1).div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        x, weight, inverse = ctx.saved_tensors
        weighted = gradient * weight
        along = torch.linalg.vecdot(weighted, x).unsqueeze(-1).mul_(inverse**2).div_(-x.shape[-1])
        return weighted.addcmul_(x, along).mul_(inverse), None, None


def norm_of(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """A norm as Llama has it, with its backward by hand; any other as it is."""
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if weight is None or epsilon is None or weight.requires_grad or weight.dtype != torch.float32:
        return module
    return lambda x: Normed.apply(x, weight, epsilon) if x.dtype == torch.float32 else module(x)


def bias_of(mask: torch.Tensor | None, length: int, whole: int) -> torch.Tensor:
    """What is added to scores, float32: 0 where a token may look, the least number where not."""
    if mask is None:
        return torch.full((1, 1, length, whole), LEAST).triu(1 + whole - length)
    return mask.float() if mask.is_floating_point() else torch.zeros(mask.shape).masked_fill_(~mask.cpu(), LEAST)
