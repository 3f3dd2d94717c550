"""Decoder layers with LoRA without waste: the numbers that transformers and peft give, in fewer and larger products.

A decoder layer of Llama's shape runs through four products (q, k and v at once; output; gate and up at once; down), each
with its LoRA factors and a backward derived by hand, an idea of Unsloth's (github.com/unslothai/unsloth). Frozen weights
are held in the numbers that are multiplied, so that none is converted in a step. The plain layers are the reference:
`fused` only stands before them, compares itself with each once, and leaves to it what is of another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F
from tqdm import tqdm

from mmlora.adapters.kernels import ACTS, LEAST, Attention, Gated, Rotated, bias_of
from mmlora.encoding.loss import converted, head_in
from mmlora.models.precision import DTYPES, precision
from mmlora.models.vlm import base_model, decoder_layers

ROWS = 512  # tokens that go through an MLP at a time where no gradient is asked for
SCORES = 2**24  # attention scores at a time there: 64 MB in float32
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
        self.trained = any(p.requires_grad for base in bases for p in base.parameters())
        self.dropout = 0.0
        self.places: list[tuple[slice, slice, float]] = []  # rows and columns of each member's block in B, its scale
        row = column = 0
        for module, name, size in zip(modules, names, self.sizes):
            if name is not None:
                columns = slice(column, column := column + module.r[name])
                self.places.append((slice(row, row + size), columns, module.scaling[name]))
                self.factors += [module.lora_A[name].weight, module.lora_B[name].weight]
                self.dropout = max(self.dropout, getattr(module.lora_dropout[name], "p", 0.0))
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


class FusedLayer:
    """The forward pass of one decoder layer of Llama's shape; raises `Unfit` for another."""

    def __init__(self, layer: nn.Module, plain: Callable[..., torch.Tensor], dtype: torch.dtype):
        self.layer, self.plain, self.dtype, self.compared = layer, plain, dtype, False
        self.inner = [module for module in layer.modules() if module is not layer]
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
        products = self.qkv, self.out, self.gate_up, self.down
        self.drops = max(getattr(attention, "attention_dropout", 0.0), *(product.dropout for product in products))
        self.trained = any(product.trained for product in products)

    def __call__(self, states: torch.Tensor, **named: Any) -> torch.Tensor:
        """What the layer's own forward gives for (batch, length, width); raises `Unfit` where the first one differs."""
        self._check()
        angles, mask = named.get("position_embeddings") or (), named.get("attention_mask")
        if [t.shape[-1] for t in angles if t.dim() == 3] != [self.size] * 2:
            raise Unfit("its positions are given in another way")
        if not self.compared:
            self._compare(states[:1], {**named, "past_key_values": None, "position_embeddings": tuple(t[:1] for t in angles),
                                       "attention_mask": mask if mask is None else mask[:1]})  # fmt: skip
        with torch.autocast(states.device.type, enabled=False):
            return self._states(states, mask, angles, named.get("past_key_values"))

    def _check(self) -> None:
        """Raise `Unfit` where the plain layer would now do more than compute."""
        if self.trained and torch.is_grad_enabled():
            raise Unfit("its own matrices train")
        if self.layer.training and self.drops:
            raise Unfit("it drops units")
        if self.layer.training and getattr(self.layer, "gradient_checkpointing", False):
            raise Unfit("its activations are recomputed")
        if any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_hf_hook") for m in self.inner):
            raise Unfit("something is hooked into it")

    @torch.no_grad()
    def _compare(self, states: torch.Tensor, named: dict) -> None:
        """Raise `Unfit` unless both ways make the same of one sample's tokens."""
        mask = named["attention_mask"]
        try:
            with torch.autocast(states.device.type, enabled=False):
                ours = self._states(states, mask, named["position_embeddings"])
            looks = (bias_of(mask, states.shape[1], states.shape[1]) > LEAST / 2).any(-1).flatten()  # not so padding
            ours, theirs, start = (t[:, looks].float() for t in (ours, self.plain(states, **named), states))
        except (TypeError, ValueError, RuntimeError) as error:
            if should_reduce_batch_size(error):
                raise
            raise Unfit(f"it takes or gives something else ({error})") from error
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
        query = Rotated.apply(self.of_query(query).to(self.dtype), cos, sin)
        key, value = Rotated.apply(self.of_key(key).to(self.dtype), cos, sin), value.transpose(1, 2)
        if past is not None:
            key, value = past.update(key, value, self.index)
        seen = self._seen(query, key, value, mask=mask)
        x = x + self.out(seen.transpose(1, 2).reshape(batch * length, -1))
        parts = [x] if torch.is_grad_enabled() else x.split(ROWS)  # what stays in a processor's cache is faster
        fed = [self.down(Gated.apply(self.gate_up(self.between(part).to(self.dtype)), self.act)) for part in parts]
        return (x + torch.cat(fed)).view(batch, length, width)

    def _seen(self, *heads: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        query, key, value = heads
        batch, number, length, whole = *query.shape[:3], key.shape[2]
        if query.device.type != "cpu":
            causal = {"is_causal": mask is None and length > 1}
            if mask is not None:  # with a mask, torch's fast kernels want a key head for every query head
                key, value = (t.repeat_interleave(number // t.shape[1], 1) for t in (key, value))
            return F.scaled_dot_product_attention(
                query, key, value, mask, **causal, scale=self.scale, enable_gqa=mask is None
            )
        bias = bias_of(mask, length, whole).expand(batch, -1, -1, -1)
        few = batch if torch.is_grad_enabled() else max(1, SCORES // (number * length * whole))
        parts = zip(*(t.split(few) for t in (query, key, value, bias)))
        return torch.cat([Attention.apply(*part, self.scale) for part in parts])


def _split(module: Any) -> tuple[nn.Linear, str | None]:
    """The matrix of a linear module, and the name of the plain LoRA that is at work on it, if one is."""
    inner, name = module, None
    if isinstance(module, LoraLinear):
        inner = module.get_base_layer()
        active = [name for name in module.active_adapters if name in module.lora_A]
        if module.merged and module.disable_adapters:
            raise Unfit("its adapter is merged and disabled")
        if active and not module.merged and not module.disable_adapters:
            name, *others = active
            if others or module.lora_variant or module.lora_bias[name]:
                raise Unfit("its adapter is more than one plain LoRA")
    if type(inner) is not nn.Linear:
        raise Unfit("its weights are no plain matrices")
    return inner, name


class fused:
    """Inside, the decoder's layers compute in the fused way, for training and for answers; one that cannot says so.

    May be entered again: what was made stays. An adapter is what it was at a layer's first call.
    """

    def __init__(self, model: nn.Module):
        self.model, self.dtype = model, base_model(model).dtype if precision() == "no" else DTYPES[precision()]
        self.head = converted(base_model(model).get_output_embeddings(), self.dtype)
        self.made: dict[nn.Module, FusedLayer | None] = {}  # None: takes the plain path

    def __enter__(self) -> None:
        with ExitStack() as stack:
            for layer in decoder_layers(self.model):
                if "forward" not in vars(layer) and self.made.get(layer, self):  # none inside another `fused`
                    layer.forward = partial(self._forward, layer, layer.forward)
                    stack.callback(vars(layer).pop, "forward", None)
            stack.enter_context(head_in(base_model(self.model).get_output_embeddings(), self.head))
            self.leave = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self.leave.close()

    def _forward(self, layer: nn.Module, plain: Callable, hidden_states: torch.Tensor, **named: Any) -> torch.Tensor:
        try:
            if layer not in self.made:  # those below a cache's boundary are never called, and cost nothing
                with torch.inference_mode(False):
                    self.made[layer] = FusedLayer(layer, plain, self.dtype)
            return self.made[layer](hidden_states, **named)
        except Unfit as unfit:
            del layer.forward
            if None not in self.made.values():
                tqdm.write(f"{type(layer).__name__} takes the plain path, which is slower: {unfit}")
            self.made[layer] = None
            return plain(hidden_states, **named)
