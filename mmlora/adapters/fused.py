"""Decoder layers with LoRA without waste: the numbers that transformers and peft give, in fewer and larger products.

A decoder layer of Llama's shape runs through four products (q, k and v at once; output; gate and up at once; down), each
with its LoRA factors and a backward derived by hand, an idea of Unsloth's (github.com/unslothai/unsloth). Frozen weights
are held in the numbers that are multiplied, so that none is converted in a step. The plain layers are the reference:
`fused` only stands before them, compares itself with each once, and leaves alone what is of another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from tqdm import tqdm
from transformers.activations import GELUTanh, SiLUActivation

from mmlora.models.precision import DTYPES, precision
from mmlora.models.vlm import base_model, decoder_layers

Act = tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]  # what it gives, and its gradient
GELU: Act = (partial(F.gelu, approximate="tanh"), partial(torch.ops.aten.gelu_backward, approximate="tanh"))
SILU: Act = (F.silu, torch.ops.aten.silu_backward)
ACTS: dict[type[nn.Module], Act] = {nn.SiLU: SILU, SiLUActivation: SILU, GELUTanh: GELU}
#: How far a fused layer's step may be from the plain one's, relative to its length.
APART = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Unfit(Exception):
    """A layer that is not of Llama's shape; the message says in what."""


class _Product(Function):
    """`x @ weight.T + bias + x @ A.T @ B.T` for (tokens, in), where A and B stack the factors of a `Product`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, product: Product, *factors: torch.Tensor) -> torch.Tensor:
        ctx.product, y = product, F.linear(x, product.weight, product.bias)
        if factors:
            down, up = product.stacked(factors)
            inner = x @ down.T
            y.addmm_(inner, up.T)
            ctx.save_for_backward(x, inner, down, up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        product = ctx.product
        back = gradient @ product.weight if ctx.needs_input_grad[0] else None
        if not ctx.saved_tensors:
            return back, None
        x, inner, down, up = ctx.saved_tensors
        inner_gradient = gradient @ up
        if back is not None:
            back.addmm_(inner_gradient, down)
        return back, None, *product.unstacked(inner_gradient.T @ x, gradient.T @ inner)


class Product:
    """Linear modules that read the same input, as one: frozen weights end to end, LoRA factors in one stack."""

    def __init__(self, modules: Sequence[nn.Module], dtype: torch.dtype):
        bases = [_linear(module) for module in modules]
        weights = [base.weight.detach().to(dtype) for base in bases]
        biases = [base.bias.detach().to(dtype) for base in bases if base.bias is not None]
        if biases and len(biases) < len(bases):
            raise Unfit("some of its products have a bias and some have none")
        self.weight, self.dtype = weights[0] if len(weights) == 1 else torch.cat(weights), dtype
        self.bias = torch.cat(biases) if biases else None
        self.sizes = [len(weight) for weight in weights]
        for base, part in zip(bases, self.weight.split(self.sizes)):
            if base.weight.dtype == dtype:  # the same numbers need not be kept twice
                base.weight.data = part
        self.factors: list[nn.Parameter] = []
        self.places: list[tuple[slice, slice, float]] = []  # rows and columns of each member's block in B, its scale
        row = column = 0
        for module, size in zip(modules, self.sizes):
            if isinstance(module, LoraLinear):
                name = module.active_adapters[0]
                down, up = module.lora_A[name].weight, module.lora_B[name].weight
                self.places.append((slice(row, row + size), slice(column, column + len(down)), module.scaling[name]))
                self.factors += [down, up]
                column += len(down)
            row += size

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, in) → (tokens, out of all members)."""
        return _Product.apply(x, self, *self.factors)

    def stacked(self, factors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """A (ranks, in) and B (out, ranks), B with its scales and zero where a member does not read another's ranks."""
        down = torch.cat([factor.to(self.dtype) for factor in factors[::2]])
        up = down.new_zeros(sum(self.sizes), len(down))
        for (rows, columns, scale), factor in zip(self.places, factors[1::2]):
            up[rows, columns] = factor * scale
        return down, up

    def unstacked(self, down: torch.Tensor, up: torch.Tensor) -> Iterator[torch.Tensor]:
        """The gradients of `factors` from those of the stacks."""
        for (rows, columns, scale), parameter in zip(self.places, self.factors[::2]):
            yield down[columns].to(parameter.dtype)
            yield up[rows, columns].to(parameter.dtype).mul_(scale)


class _Rotated(Function):
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


class _Attention(Function):
    """Attention by plain products, the query heads of one key head in one: on a CPU thrice as fast as torch's fused one.

    `query` (batch, heads, length, size), `key` and `value` with fewer heads, `bias` float32 (batch or 1, 1, length, length).
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, scale: float
    ) -> torch.Tensor:
        batch, heads, length, size = query.shape
        query, key, value = (t.reshape(batch * key.shape[1], -1, size) for t in (query, key, value))
        scores = torch.bmm(query, key.mT).view(batch, heads, length, length)
        shares = torch.add(bias, scores, alpha=scale).softmax(-1).to(query.dtype).view(len(query), -1, length)
        ctx.save_for_backward(query, key, value, shares)
        ctx.scale = scale
        return torch.bmm(shares, value).view(batch, heads, length, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        query, key, value, shares = ctx.saved_tensors
        batch, _, length, size = gradient.shape
        gradient = gradient.reshape(query.shape)
        scores = torch._softmax_backward_data(torch.bmm(gradient, value.mT), shares, -1, shares.dtype).mul_(ctx.scale)
        into = torch.bmm(scores, key), torch.bmm(scores.mT, query), torch.bmm(shares.mT, gradient)
        return *(t.view(batch, -1, length, size) for t in into), None, None


class _Gated(Function):
    """act(gate) · up of (tokens, gate and up side by side), as SwiGLU and GeGLU have it (Shazeer 2020, 2002.05202)."""

    @staticmethod
    def forward(ctx: Any, both: torch.Tensor, act: tuple[Callable, Callable]) -> torch.Tensor:
        ctx.save_for_backward(both)
        ctx.act = act
        gate, up = both.chunk(2, -1)
        return act[0](gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        (both,), (act, act_backward) = ctx.saved_tensors, ctx.act
        gate, up = both.chunk(2, -1)
        into = torch.empty_like(both)
        into_gate, into_up = into.chunk(2, -1)
        into_gate.copy_(act_backward(gradient * up, gate))
        torch.mul(act(gate), gradient, out=into_up)
        return into, None


class FusedLayer:
    """The forward pass of one decoder layer of Llama's shape, for training. Raises `Unfit` where it is of another."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype):
        self.plain, self.dtype, self.compared = layer.forward, dtype, False
        try:
            attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
            self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
            self.out, self.down = Product([attention.o_proj], dtype), Product([mlp.down_proj], dtype)
            self.gate_up, self.act = Product([mlp.gate_proj, mlp.up_proj], dtype), ACTS[type(mlp.act_fn)]
            self.size, self.scale = attention.head_dim, attention.scaling
            self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm
        except (AttributeError, KeyError) as missing:
            raise Unfit(f"it has other parts ({missing})") from missing
        self.of_query, self.of_key = (getattr(attention, name, nn.Identity()) for name in ("q_norm", "k_norm"))
        if getattr(attention, "attn_logit_softcapping", None):
            raise Unfit("its attention is capped")

    def __call__(self, states: torch.Tensor, **named: Any) -> torch.Tensor:
        """What the layer's own forward gives for (batch, length, width); compared with it the first time.

        Raises `Unfit` where the two differ.
        """
        angles = named.get("position_embeddings") or ()
        if [t.shape[-1] for t in angles if t.dim() == 3] != [self.size] * 2:
            raise Unfit("its positions are given in another way")
        with torch.autocast(states.device.type, enabled=False):
            ours = self._states(states, named.get("attention_mask"), *(t.to(self.dtype) for t in angles))
        if not self.compared:
            with torch.no_grad():
                theirs = self.plain(states, **named).float()
                apart = torch.dist(ours.float(), theirs) / torch.dist(theirs, states.float())
            if not apart < APART[self.dtype]:
                raise Unfit(f"its states differ by {apart:.1e}")
            self.compared = True
        return ours

    def _states(
        self, states: torch.Tensor, mask: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        batch, length, width = states.shape
        x = states.reshape(-1, width)
        heads = self.qkv(self.before(x).to(self.dtype)).view(batch, length, -1).split(self.qkv.sizes, -1)
        query, key, value = (part.view(batch, length, -1, self.size) for part in heads)
        query = _Rotated.apply(self.of_query(query).to(self.dtype), cos, sin)
        key = _Rotated.apply(self.of_key(key).to(self.dtype), cos, sin)
        if states.device.type == "cpu":
            seen = _Attention.apply(query, key, value.transpose(1, 2), _bias(mask, length), self.scale)
        else:
            seen = F.scaled_dot_product_attention(
                query, key, value.transpose(1, 2), mask, is_causal=mask is None, scale=self.scale, enable_gqa=True
            )
        x = x + self.out(seen.transpose(1, 2).reshape(batch * length, -1))
        x = x + self.down(_Gated.apply(self.gate_up(self.between(x).to(self.dtype)), self.act))
        return x.view(batch, length, width)


def _bias(mask: torch.Tensor | None, length: int) -> torch.Tensor:
    """What is added to scores, float32: 0 where a token may look, the least number where not."""
    least = torch.finfo(torch.float32).min
    if mask is None:
        return torch.full((1, 1, length, length), least).triu(1)
    return mask.float() if mask.is_floating_point() else torch.zeros(mask.shape).masked_fill_(~mask, least)


def _linear(module: nn.Module) -> nn.Linear:
    """The frozen matrix of a linear module, with one plain LoRA or without."""
    inner = module
    if isinstance(module, LoraLinear):
        name, *others = module.active_adapters or [""]
        inner = module.get_base_layer()
        if others or module.merged or module.disable_adapters or module.lora_variant or module.lora_bias.get(name):
            raise Unfit("its adapter is more than one plain LoRA")
        if getattr(module.lora_dropout[name], "p", 0.0):
            raise Unfit("its adapter has dropout")
    if type(inner) is not nn.Linear or any(parameter.requires_grad for parameter in inner.parameters()):
        raise Unfit("its weights are no plain frozen matrices")
    return inner


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Inside, decoder layers with something to train do it in the fused way; one sentence says where they do not."""
    dtype = base_model(model).dtype if precision() == "no" else DTYPES[precision()]
    layers = [layer for layer in decoder_layers(model) if any(p.requires_grad for p in layer.parameters())]
    said: set[str] = set()

    def stand_before(layer: nn.Module) -> None:
        def forward(hidden_states: torch.Tensor, **named: Any) -> torch.Tensor:
            if named.get("past_key_values") is not None:
                return fast.plain(hidden_states, **named)
            try:
                return fast(hidden_states, **named)
            except Unfit as unfit:
                step_aside(layer, unfit)
                return fast.plain(hidden_states, **named)

        try:
            fast = FusedLayer(layer, dtype)
            layer.forward = forward
        except Unfit as unfit:
            step_aside(layer, unfit)

    def step_aside(layer: nn.Module, unfit: Unfit) -> None:
        vars(layer).pop("forward", None)
        if not said:
            tqdm.write(f"{type(layer).__name__} takes the plain path, which is slower: {unfit}")
        said.add(str(unfit))

    for layer in layers:
        stand_before(layer)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
