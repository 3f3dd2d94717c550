"""Linear modules that read the same input as one matrix product with LoRA, its backward derived by hand (an idea of
Unsloth's, github.com/unslothai/unsloth): one pass, and nothing kept but the input and the activations between A and B.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F


class Unsupported(Exception):
    """A layer that the fused path does not cover; the message says why."""


class _LinearWithLora(Function):
    """`x @ weight.T + bias + x @ A.T @ B.T` for (tokens, in), where A and B are the stacks of a `StackedLinear`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, linear: StackedLinear, *stack: torch.Tensor) -> torch.Tensor:
        ctx.linear = linear
        y = F.linear(x, linear.weight, linear.bias)
        if stack:
            down, up = stack
            inner = x @ down.T
            y.addmm_(inner, up.T)
            ctx.save_for_backward(x, inner, down, up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        back = gradient @ ctx.linear.weight if ctx.needs_input_grad[0] else None
        if not ctx.saved_tensors:
            return back, None
        x, inner, down, up = ctx.saved_tensors
        inner_gradient = gradient @ up
        if back is not None:
            back.addmm_(inner_gradient, down)
        return back, None, inner_gradient.T @ x, gradient.T @ inner


class _Stack(Function):
    """The LoRA factors of many `StackedLinear`s in their stacks, in the dtype that is multiplied: A and B of each in turn."""

    @staticmethod
    def forward(ctx: Any, linears: Sequence[StackedLinear], *factors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.linears = linears
        ctx.factors = [(factor.shape, factor.dtype) for factor in factors]
        shapes = [shape for linear in linears for shape in linear.shapes]
        stacks = _zeros(shapes, linears[0].weight.dtype, factors[0].device)
        blocks = [block for linear, *pair in _pairs(linears, stacks) for block in linear.blocks(*pair)]
        scaled = torch._foreach_mul(list(factors), [scale for linear in linears for scale in linear.scales])
        torch._foreach_copy_(blocks, scaled)
        return tuple(stacks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple:
        blocks = [block for linear, *pair in _pairs(ctx.linears, gradients) for block in linear.blocks(*pair)]
        found = _zeros([shape for shape, _ in ctx.factors], torch.float32, blocks[0].device)
        torch._foreach_copy_(found, blocks)
        torch._foreach_mul_(found, [scale for linear in ctx.linears for scale in linear.scales])
        return None, *(gradient.to(dtype) for gradient, (_, dtype) in zip(found, ctx.factors))


def _zeros(
    shapes: Sequence[torch.Size | tuple[int, int]], dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Zeros of these shapes, all in one block of memory."""
    flat = torch.zeros(sum(rows * columns for rows, columns in shapes), dtype=dtype, device=device)
    return [part.view(shape) for part, shape in zip(flat.split([r * c for r, c in shapes]), shapes)]


def _pairs(
    linears: Sequence[StackedLinear], stacks: Sequence[torch.Tensor]
) -> Iterator[tuple[StackedLinear, Any, Any]]:
    return zip(linears, stacks[::2], stacks[1::2])


class StackedLinear:
    """Linear modules that read the same input, as one: frozen weights end to end, the active adapter's factors in one stack.

    `stack` holds the factors as `restack` copied them last: A (ranks, in) and B (out, ranks), B with its scales and zero
    where a module does not read another's ranks; nothing where no adapter is active. Raises `Unsupported` for weights that are no
    plain matrices, and for an active adapter that is more than one plain LoRA; rsLoRA is one, of another scale.
    """

    def __init__(self, modules: Sequence[Any], dtype: torch.dtype):
        self.modules = tuple(modules)
        bases = [_base_linear(module) for module in modules]
        weights = [base.weight.detach().to(dtype) for base in bases]
        biases = [base.bias.detach().to(dtype) for base in bases if base.bias is not None]
        if 0 < len(biases) < len(bases):
            raise Unsupported("only some of the linear modules that it joins have a bias")
        self.weight = _joined(weights)
        self.bias = torch.cat(biases) if biases else None
        self.sizes = [len(weight) for weight in weights]
        for base, part in zip(bases, self.weight.split(self.sizes)):
            if base.weight.dtype == dtype:  # the same values need not be kept twice
                base.weight.data = part
        self.stack: tuple[torch.Tensor, ...] = ()
        self.trained = any(p.requires_grad for base in bases for p in base.parameters())
        self._read_adapter()

    def _read_adapter(self) -> None:
        """The factors of the active adapter, where they go in the stacks, and the state of peft's layers that says so."""
        self.state = self._state()
        self.factors: list[nn.Parameter] = []
        self.dropout = 0.0
        self.places: list[tuple[slice, slice]] = []  # rows and columns of each module's block in B
        self.scales: list[float] = []  # of each factor: A's is 1
        row = column = 0
        for module, size in zip(self.modules, self.sizes):
            name = _active_lora(module)
            if name is not None:
                rank = module.r[name]
                self.places.append((slice(row, row + size), slice(column, column + rank)))
                self.scales += [1.0, module.scaling[name]]
                self.factors += [module.lora_A[name].weight, module.lora_B[name].weight]
                self.dropout = max(self.dropout, getattr(module.lora_dropout[name], "p", 0.0))
                column += rank
            row += size
        self.shapes = (column, self.weight.shape[1]), (row, column)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, in) → (tokens, out of all modules)."""
        return _LinearWithLora.apply(x, self, *self.stack)

    def blocks(self, down: torch.Tensor, up: torch.Tensor) -> Iterator[torch.Tensor]:
        """Where `factors` lie in the stacks."""
        for rows, columns in self.places:
            yield down[columns]
            yield up[rows, columns]

    @property
    def current(self) -> bool:
        """Whether the same adapter is active, in the same factors at the same scale, as when this was made."""
        return self.state == self._state()

    def _state(self) -> list[tuple | None]:
        return [_adapter_state(module) if isinstance(module, LoraLinear) else None for module in self.modules]


def restack(linears: Iterable[StackedLinear]) -> None:
    """Copy the factors as they are now into the stacks: one pass over all of them, for a step has hundreds."""
    adapted = [linear for linear in linears if linear.factors]
    if adapted:
        stacks = _Stack.apply(adapted, *(factor for linear in adapted for factor in linear.factors))
        for linear, *stack in _pairs(adapted, stacks):
            linear.stack = tuple(stack)


def _joined(weights: list[torch.Tensor]) -> torch.Tensor:
    """The weights as one matrix: without a copy where an earlier stacking left them end to end."""
    first = weights[0]
    storage, offset = first.untyped_storage().data_ptr(), first.storage_offset()
    for weight in weights:
        if (
            weight.untyped_storage().data_ptr() != storage
            or weight.storage_offset() != offset
            or not weight.is_contiguous()
        ):
            return first if len(weights) == 1 else torch.cat(weights)
        offset += weight.numel()
    return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride(), first.storage_offset())


def _base_linear(module: Any) -> nn.Linear:
    """The frozen linear module under an adapter, or the module itself."""
    inner = module.get_base_layer() if isinstance(module, LoraLinear) else module
    if type(inner) is not nn.Linear:
        raise Unsupported("its weights are no plain matrices")
    return inner


def _active_lora(module: Any) -> str | None:
    """The name of the one plain LoRA that computes in this module; None where none does."""
    if not isinstance(module, LoraLinear):
        return None
    active = [name for name in module.active_adapters if name in module.lora_A]
    if module.merged and module.disable_adapters:
        raise Unsupported("its adapter is merged and disabled")
    if not active or module.merged or module.disable_adapters:
        return None
    name, *others = active
    if others:
        raise Unsupported(f"several adapters are active, {', '.join(active)}, more than one plain LoRA")
    if name in module.lora_variant or module.lora_bias[name]:
        kind = "DoRA or another variant" if name in module.lora_variant else "LoRA with biases"
        raise Unsupported(f"its adapter {name} is {kind}, more than one plain LoRA")
    return name


def _adapter_state(module: LoraLinear) -> tuple:
    """What decides which adapter computes in this module and how; factors are told by identity, which `factors` keeps alive."""
    known = module.lora_A
    active = [
        (name, module.scaling[name], id(known[name].weight), id(module.lora_B[name].weight))
        for name in module.active_adapters
        if name in known
    ]
    return module.disable_adapters, tuple(module.merged_adapters), active
