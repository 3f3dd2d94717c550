"""Fused decoder layers with LoRA: the values that transformers and peft compute, in fewer and larger matrix products.

A decoder layer of Llama's shape runs through four matrix products (q, k and v at once; output; gate and up at once; down),
each with its LoRA factors (`stacked.py`); what lies between them is in `kernels.py`. Frozen weights are held in the dtype that
is multiplied, so that none is converted in a step. The plain layers are the reference: `fused` stands before them, compares
itself with each once for every adapter, and leaves to it what is of another shape, and adapters that are more than one plain
LoRA (DoRA, several at once, another one for each row).
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
from mmlora.adapters.stacked import StackedLinear, Unsupported, restack
from mmlora.encoding.loss import converted, head_in
from mmlora.models.memory import out_of_memory
from mmlora.models.precision import DTYPES, precision
from mmlora.models.processes import has_shards
from mmlora.models.vlm import base_model, decoder_layers

ROWS = 512  # tokens that go through an MLP at a time where no gradient is asked for
SCORES = 2**24  # attention scores at a time there: 64 MB in float32
APART = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # a fused layer's from the plain one's step


class FusedLayer:
    """The forward pass of one decoder layer of Llama's shape; raises `Unsupported` for another."""

    def __init__(self, layer: nn.Module, plain: Callable[..., torch.Tensor], dtype: torch.dtype):
        self.layer, self.plain, self.dtype = layer, plain, dtype
        self.unsupported: str | None = None  # why an adapter that became active later goes to the plain layer
        self._read()

    def _read(self) -> None:
        """Take up the layer's modules and the adapter that is active in them."""
        layer = self.layer
        self.compared = False
        self.inner = [module for module in layer.modules() if module is not layer]
        try:
            attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
            self.members = self._members()
            query, key, value, out, gate, up, down = self.members
            self.act = ACTS[type(mlp.act_fn)]
            self.index, self.size, self.scale = attention.layer_idx, attention.head_dim, attention.scaling
            self.before, self.between = norm_of(layer.input_layernorm), norm_of(layer.post_attention_layernorm)
        except (AttributeError, KeyError) as missing:
            raise Unsupported(f"it has other parts ({missing})") from missing
        self.of_query, self.of_key = (getattr(attention, name, nn.Identity()) for name in ("q_norm", "k_norm"))
        if getattr(attention, "attn_logit_softcapping", None):
            raise Unsupported("its attention is capped")
        self.qkv = StackedLinear([query, key, value], self.dtype)
        self.out = StackedLinear([out], self.dtype)
        self.gate_up = StackedLinear([gate, up], self.dtype)
        self.down = StackedLinear([down], self.dtype)
        self.linears: tuple[StackedLinear, ...] = (self.qkv, self.out, self.gate_up, self.down)
        self.drops = max(getattr(attention, "attention_dropout", 0.0), *(linear.dropout for linear in self.linears))
        self.trained = any(linear.trained for linear in self.linears)

    def _members(self) -> list[nn.Module]:
        """The seven linear modules, which an adapter that was attached or taken off has replaced."""
        attention, mlp = self.layer.self_attn, self.layer.mlp
        own = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        return [*own, mlp.gate_proj, mlp.up_proj, mlp.down_proj]

    def follow(self) -> bool:
        """Take up another adapter that became active since; whether one did. What does not fit waits for the layer's call."""
        same = all(one is other for one, other in zip(self._members(), self.members))
        if same and all(linear.current for linear in self.linears):
            return False
        self.unsupported = None
        try:
            self._read()
        except Unsupported as reason:
            self.unsupported = str(reason)
            self.linears = ()
        return True

    def __call__(self, states: torch.Tensor, **named: Any) -> torch.Tensor:
        """What the layer's own forward gives for (batch, length, width); raises `Unsupported` where the first one differs."""
        self._check()
        angles, mask = named.get("position_embeddings") or (), named.get("attention_mask")
        if [t.shape[-1] for t in angles if t.dim() == 3] != [self.size] * 2:
            raise Unsupported("its positions are given in another way")
        if not self.compared:
            alone = {
                "position_embeddings": tuple(t[:1] for t in angles),
                "attention_mask": mask if mask is None else mask[:1],
            }
            self._compare(states[:1], {**named, **alone, "cache": None})
        with torch.autocast(states.device.type, enabled=False):
            return self._states(states, mask, angles, named.get("cache"))

    def _check(self) -> None:
        """Raise `Unsupported` where the plain layer would now do more than compute."""
        if self.unsupported:
            raise Unsupported(self.unsupported)
        if self.trained and torch.is_grad_enabled():
            raise Unsupported("its own matrices train")
        if self.layer.training and self.drops:
            raise Unsupported("it drops units")
        if self.layer.training and getattr(self.layer, "gradient_checkpointing", False):
            raise Unsupported("its activations are recomputed")
        if any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_hf_hook") for m in self.inner):
            hooks = [hook for module in self.inner for hook in module._forward_pre_hooks.values()]
            mixed = any("adapter_names" in getattr(hook, "keywords", {}) for hook in hooks)  # peft's own hook
            raise Unsupported(
                "each row of the batch has an adapter of its own" if mixed else "something is hooked into it"
            )

    @torch.no_grad()
    def _compare(self, states: torch.Tensor, named: dict) -> None:
        """Raise `Unsupported` unless both ways compute the same states of one sample's tokens."""
        mask = named["attention_mask"]
        try:
            with torch.autocast(states.device.type, enabled=False):
                ours = self._states(states, mask, named["position_embeddings"])
            looks = (bias_of(mask, states.shape[1], states.shape[1]) > LEAST / 2).any(-1).flatten()  # not so padding
            ours, theirs, start = (t[:, looks].float() for t in (ours, self.plain(states, **named), states))
        except (TypeError, ValueError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            raise Unsupported(f"it takes or gives something else ({error})") from error
        finally:
            torch.clear_autocast_cache()  # older torch would keep the plain layer's casts, which have no gradient here
        apart = torch.dist(ours, theirs) / torch.dist(theirs, start)
        self.compared = bool(apart < APART[self.dtype])
        if not self.compared:
            raise Unsupported(f"its states differ by {apart:.1e}")

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

    Weights that `shard` took apart stay in the plain layers. May be entered again: what was made stays. Which adapter is
    active is read anew as each forward pass begins; a layer that took the plain path once stays there.
    """

    def __init__(self, model: nn.Module):
        self.model, self.dtype = model, base_model(model).dtype if precision() == "no" else DTYPES[precision()]
        self.head = converted(base_model(model).get_output_embeddings(), self.dtype)
        self.made: dict[nn.Module, FusedLayer | None] = {}  # None: takes the plain path
        self.version: int | None = None  # sum over all factors, where they were stacked without a gradient

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
        except Unsupported as reason:
            del layer.forward
            if None not in self.made.values():
                tqdm.write(f"{type(layer).__name__} takes the plain path, which is slower: {reason}")
            self.made[layer] = None
            return plain(hidden_states, **named)

    def _of(self, layer: nn.Module, plain: Callable) -> FusedLayer:
        """The fused layer with its factors as they are now: the first one that is called brings them to all others."""
        found = self.made.get(layer)
        if found is None:  # made when it is called: those below a cache's boundary never are, and cost nothing
            with torch.inference_mode(False):
                self.made[layer] = found = FusedLayer(layer, plain, self.dtype)
            restack(found.linears)
            return found
        if found is next(filter(None, self.made.values())):  # a forward pass begins
            layers = [each for each in self.made.values() if each]
            with torch.inference_mode(False):
                switched = [each for each in layers if each.follow()]
            linears = [linear for each in layers for linear in each.linears]
            version = sum(factor._version for linear in linears for factor in linear.factors)
            if switched or torch.is_grad_enabled() or version != self.version:  # or else nothing moved since
                restack(linears)
            self.version = None if torch.is_grad_enabled() else version
        return found
