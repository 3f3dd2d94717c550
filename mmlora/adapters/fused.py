"""Decoder layers with LoRA without waste: the numbers that transformers and peft give, in fewer and larger products.

A decoder layer of Llama's shape runs through four products (q, k and v at once; output; gate and up at once; down), each
with its LoRA factors (`products.py`); what lies between them is in `kernels.py`. Frozen weights are held in the numbers that
are multiplied, so that none is converted in a step. The plain layers are the reference:
`fused` only stands before them, compares itself with each once, and leaves to it what is of another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from mmlora.adapters.kernels import ACTS, LEAST, Attention, Gated, Rotated, bias_of, norm_of
from mmlora.adapters.products import Product, Unfit, stacked
from mmlora.encoding.loss import converted, head_in
from mmlora.models.memory import out_of_memory
from mmlora.models.precision import DTYPES, precision
from mmlora.models.processes import has_shards
from mmlora.models.vlm import base_model, decoder_layers

ROWS = 512  # tokens that go through an MLP at a time where no gradient is asked for
SCORES = 2**24  # attention scores at a time there: 64 MB in float32
APART = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # a fused layer's from the plain one's step


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
            self.before, self.between = norm_of(layer.input_layernorm), norm_of(layer.post_attention_layernorm)
        except (AttributeError, KeyError) as missing:
            raise Unfit(f"it has other parts ({missing})") from missing
        self.of_query, self.of_key = (getattr(attention, name, nn.Identity()) for name in ("q_norm", "k_norm"))
        if getattr(attention, "attn_logit_softcapping", None):
            raise Unfit("its attention is capped")
        self.products = self.qkv, self.out, self.gate_up, self.down
        self.drops = max(getattr(attention, "attention_dropout", 0.0), *(p.dropout for p in self.products))
        self.trained = any(product.trained for product in self.products)

    def __call__(self, states: torch.Tensor, **named: Any) -> torch.Tensor:
        """What the layer's own forward gives for (batch, length, width); raises `Unfit` where the first one differs."""
        self._check()
        angles, mask = named.get("position_embeddings") or (), named.get("attention_mask")
        if [t.shape[-1] for t in angles if t.dim() == 3] != [self.size] * 2:
            raise Unfit("its positions are given in another way")
        if not self.compared:
            alone = {
                "position_embeddings": tuple(t[:1] for t in angles),
                "attention_mask": mask if mask is None else mask[:1],
            }
            self._compare(states[:1], {**named, **alone, "cache": None})
        with torch.autocast(states.device.type, enabled=False):
            return self._states(states, mask, angles, named.get("cache"))

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
            if out_of_memory(error):
                raise
            raise Unfit(f"it takes or gives something else ({error})") from error
        finally:
            torch.clear_autocast_cache()  # older torch would keep the plain layer's casts, which have no gradient here
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
        seen = self._seen(query, key, value, mask)
        x = x + self.out(seen.transpose(1, 2).reshape(batch * length, -1))
        cut = x.device.type == "cpu" and not torch.is_grad_enabled()
        parts = x.split(ROWS) if cut else [x]  # what stays in a processor's cache is faster
        fed = [self.down(Gated.apply(self.gate_up(self.between(part).to(self.dtype)), self.act)) for part in parts]
        return (x + torch.cat(fed)).view(batch, length, width)

    def _seen(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        (batch, number, length, _), whole = query.shape, key.shape[2]
        if query.device.type != "cpu":
            return attended_on_card(query, key, value, mask, self.scale)
        bias = bias_of(mask, length, whole).expand(batch, -1, -1, -1)
        few = batch if torch.is_grad_enabled() else max(1, SCORES // (number * length * whole))
        parts = zip(*(t.split(few) for t in (query, key, value, bias)))
        return torch.cat([Attention.apply(*part, self.scale) for part in parts])


def attended_on_card(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention by torch's fused kernels: (batch, heads, length, size) from keys and values of as many heads or fewer."""
    batch, number, length, size = query.shape
    if length == 1:  # a reply's next token: the queries of one key head side by side, so that nothing kept is copied
        query = query.reshape(batch, key.shape[1], -1, size)
        return F.scaled_dot_product_attention(query, key, value, mask, scale=scale).reshape(batch, number, 1, size)
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    key, value = (t.repeat_interleave(number // t.shape[1], 1) for t in (key, value))  # the fast kernels want it so
    return F.scaled_dot_product_attention(query, key, value, mask, scale=scale)


class fused:
    """Inside, the decoder's layers compute in the fused way, for training and for answers; one that cannot says so.

    Weights that `shard` took apart stay in the plain layers. May be entered again: what was made stays. An adapter is what
    it was at a layer's first call.
    """

    def __init__(self, model: nn.Module):
        self.model, self.dtype = model, base_model(model).dtype if precision() == "no" else DTYPES[precision()]
        self.head = converted(base_model(model).get_output_embeddings(), self.dtype)
        self.made: dict[nn.Module, FusedLayer | None] = {}  # None: takes the plain path
        self.version: int | None = None  # of all factors, where they were stacked without a gradient

    def __enter__(self) -> None:
        with ExitStack() as stack:
            for layer in decoder_layers(self.model):
                plain = has_shards(layer) or (layer in self.made and self.made[layer] is None)
                if not plain and "forward" not in vars(layer):  # or else inside another `fused`
                    layer.forward = partial(self._forward, layer, layer.forward)
                    stack.callback(vars(layer).pop, "forward", None)
            stack.enter_context(head_in(base_model(self.model).get_output_embeddings(), self.head))
            self.leave = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self.leave.close()

    def _forward(self, layer: nn.Module, plain: Callable, hidden_states: torch.Tensor, **named: Any) -> torch.Tensor:
        try:
            return self._of(layer, plain)(hidden_states, **named)
        except Unfit as unfit:
            del layer.forward
            if None not in self.made.values():
                tqdm.write(f"{type(layer).__name__} takes the plain path, which is slower: {unfit}")
            self.made[layer] = None
            return plain(hidden_states, **named)

    def _of(self, layer: nn.Module, plain: Callable) -> FusedLayer:
        """The fused layer with its factors as they are now: the first one that is called brings them to all others."""
        found = self.made.get(layer)
        if found is None:  # made when it is called: those below a cache's boundary never are, and cost nothing
            with torch.inference_mode(False):
                self.made[layer] = found = FusedLayer(layer, plain, self.dtype)
            stacked(found.products)
            return found
        if found is next(filter(None, self.made.values())):  # a forward pass begins
            products = [product for each in self.made.values() if each for product in each.products]
            version = sum(factor._version for product in products for factor in product.factors)
            if torch.is_grad_enabled() or version != self.version:  # while a model speaks, nothing moves
                stacked(products)
            self.version = None if torch.is_grad_enabled() else version
        return found
