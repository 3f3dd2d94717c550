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
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F
from tqdm import tqdm
from transformers.activations import GELUTanh, SiLUActivation

from mmlora.encoding.loss import head_in
from mmlora.models.precision import DTYPES, precision
from mmlora.models.vlm import base_model, decoder_layers

GELU = partial(F.gelu, approximate="tanh"), partial(torch.ops.aten.gelu_backward, approximate="tanh")
SILU = F.silu, torch.ops.aten.silu_backward
ACTS = {nn.SiLU: SILU, SiLUActivation: SILU, GELUTanh: GELU}  # what each gives, and its gradient
ROWS = 512  # tokens that go through an MLP at a time where no gradient is asked for
APART = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # a fused layer's from the plain one's step


class Unfit(Exception):
    """A layer of another shape than Llama's; the message says in what."""


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
        back = gradient @ ctx.product.weight if ctx.needs_input_grad[0] else None
        if not ctx.saved_tensors:
            return back, None
        x, inner, down, up = ctx.saved_tensors
        inner_gradient = gradient @ up
        if back is not None:
            back.addmm_(inner_gradient, down)
        return back, None, *ctx.product.unstacked(inner_gradient.T @ x, gradient.T @ inner)


class Product:
    """Linear modules that read the same input, as one: frozen weights end to end, LoRA factors in one stack."""

    def __init__(self, modules: Sequence[Any], dtype: torch.dtype):
        bases, names = zip(*map(_split, modules))
        weights = [base.weight.detach().to(dtype) for base in bases]
        biases = [base.bias.detach().to(dtype) for base in bases if base.bias is not None]
        if 0 < len(biases) < len(bases):
            raise Unfit("only some of its products have a bias")
        self.weight, self.dtype = weights[0] if len(weights) == 1 else torch.cat(weights), dtype
        self.bias = torch.cat(biases) if biases else None
        self.sizes = [len(weight) for weight in weights]
        for base, part in zip(bases, self.weight.split(self.sizes)):
            if base.weight.dtype == dtype:  # the same numbers need not be kept twice
                base.weight.data = part
        self.factors: list[nn.Parameter] = []
        self.places: list[tuple[slice, slice, float]] = []  # rows and columns of each member's block in B, its scale
        row = column = 0
        for module, name, size in zip(modules, names, self.sizes):
            if name is not None:
                columns = slice(column, column := column + module.r[name])
                self.places.append((slice(row, row + size), columns, module.scaling[name]))
                self.factors += [module.lora_A[name].weight, module.lora_B[name].weight]
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
        return torch.cat([act_backward(gradient * up, gate), act(gate).mul_(gradient)], -1), None


class FusedLayer:
    """The forward pass of one decoder layer of Llama's shape; raises `Unfit` for another."""

    def __init__(self, layer: nn.Module, plain: Callable[..., torch.Tensor], dtype: torch.dtype):
        self.plain, self.dtype, self.compared = plain, dtype, False
        self.trained = any(p.requires_grad for n, p in layer.named_parameters() if "lora" not in n and "norm" not in n)
        try:
            attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
            self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
            self.out, self.down = Product([attention.o_proj], dtype), Product([mlp.down_proj], dtype)
            self.gate_up, self.act = Product([mlp.gate_proj, mlp.up_proj], dtype), ACTS[type(mlp.act_fn)]
            self.index, self.size, self.scale = attention.layer_idx, attention.head_dim, attention.scaling
            self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm
        except (AttributeError, KeyError) as missing:
            raise Unfit(f"it has other parts ({missing})") from missing
        self.of_query, self.of_key = (getattr(attention, name, nn.Identity()) for name in ("q_norm", "k_norm"))
        if getattr(attention, "attn_logit_softcapping", None):
            raise Unfit("its attention is capped")

    def __call__(self, states: torch.Tensor, **named: Any) -> torch.Tensor:
        """What the layer's own forward gives for (batch, length, width); raises `Unfit` where the first one differs."""
        if self.trained and torch.is_grad_enabled():
            raise Unfit("its own matrices train")
        angles, mask = named.get("position_embeddings") or (), named.get("attention_mask")
        if [t.shape[-1] for t in angles if t.dim() == 3] != [self.size] * 2:
            raise Unfit("its positions are given in another way")
        if not self.compared:
            self._compare(states[:1], {**named, "past_key_values": None, "position_embeddings": tuple(t[:1] for t in angles),
                                       "attention_mask": mask if mask is None else mask[:1]})  # fmt: skip
        with torch.autocast(states.device.type, enabled=False):
            return self._states(states, mask, angles, named.get("past_key_values"))

    @torch.no_grad()
    def _compare(self, states: torch.Tensor, named: dict) -> None:
        """Raise `Unfit` unless both ways make the same of one sample's last token, which has seen all others."""
        with torch.autocast(states.device.type, enabled=False):
            ours = self._states(states, named["attention_mask"], named["position_embeddings"])
        ours, theirs, start = (t[:, -1].float() for t in (ours, self.plain(states, **named), states))
        apart = torch.dist(ours, theirs) / torch.dist(theirs, start)
        self.compared = bool(apart < APART[self.dtype])
        if not self.compared:
            raise Unfit(f"its states differ by {apart:.1e}")

    def _states(
        self, states: torch.Tensor, mask: torch.Tensor | None, angles: Sequence[torch.Tensor], past: Any = None
    ) -> torch.Tensor:
        (batch, length, width), (cos, sin) = states.shape, (t.to(self.dtype) for t in angles)
        x = states.reshape(-1, width)
        heads = self.qkv(self.before(x).to(self.dtype)).view(batch, length, -1).split(self.qkv.sizes, -1)
        query, key, value = (part.view(batch, length, -1, self.size) for part in heads)
        query = _Rotated.apply(self.of_query(query).to(self.dtype), cos, sin)
        key, value = _Rotated.apply(self.of_key(key).to(self.dtype), cos, sin), value.transpose(1, 2)
        if past is not None:
            key, value = past.update(key, value, self.index)
        if states.device.type == "cpu":
            seen = _Attention.apply(query, key, value, _bias(mask, length, key.shape[2]), self.scale)
        else:
            causal = {"is_causal": mask is None and length > 1}
            seen = F.scaled_dot_product_attention(query, key, value, mask, **causal, scale=self.scale, enable_gqa=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch * length, -1))
        parts = [x] if torch.is_grad_enabled() else x.split(ROWS)  # what stays in a processor's cache is faster
        fed = [self.down(_Gated.apply(self.gate_up(self.between(part).to(self.dtype)), self.act)) for part in parts]
        return (x + torch.cat(fed)).view(batch, length, width)


def _bias(mask: torch.Tensor | None, length: int, whole: int) -> torch.Tensor:
    """What is added to scores, float32: 0 where a token may look, the least number where not."""
    least = torch.finfo(torch.float32).min
    if mask is None:
        return torch.full((1, 1, length, whole), least).triu(1 + whole - length)
    return mask.float() if mask.is_floating_point() else torch.zeros(mask.shape).masked_fill_(~mask, least)


def _split(module: Any) -> tuple[nn.Linear, str | None]:
    """The matrix of a linear module, and the name of the plain LoRA that is at work on it, if one is."""
    inner, name = module, None
    if isinstance(module, LoraLinear):
        inner = module.get_base_layer()
        if not module.merged and not module.disable_adapters:
            name, *others = module.active_adapters
            if others or module.lora_variant or module.lora_bias[name] or getattr(module.lora_dropout[name], "p", 0.0):
                raise Unfit("its adapter is more than one plain LoRA without dropout")
    if type(inner) is not nn.Linear:
        raise Unfit("its weights are no plain matrices")
    return inner, name


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Inside, the decoder's layers compute in the fused way, for training and for answers; those that do not say so."""
    dtype = base_model(model).dtype if precision() == "no" else DTYPES[precision()]
    layers = [layer for layer in decoder_layers(model) if "forward" not in vars(layer)]  # none inside another `fused`
    made: dict[nn.Module, FusedLayer] = {}
    said: list[Unfit] = []

    def stand_before(layer: nn.Module) -> None:
        plain = layer.forward

        def forward(hidden_states: torch.Tensor, **named: Any) -> torch.Tensor:
            try:
                if layer not in made:  # those below a cache's boundary are never called, and cost nothing
                    with torch.inference_mode(False):
                        made[layer] = FusedLayer(layer, plain, dtype)
                return made[layer](hidden_states, **named)
            except Unfit as unfit:
                del layer.forward
                if not said:
                    tqdm.write(f"{type(layer).__name__} takes the plain path, which is slower: {unfit}")
                said.append(unfit)
                return plain(hidden_states, **named)

        layer.forward = forward

    for layer in layers:
        stand_before(layer)
    try:
        with head_in(dtype, base_model(model).get_output_embeddings()):
            yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
