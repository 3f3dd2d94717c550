"""Linear modules that read the same input as one product with LoRA, its backward derived by hand (an idea of Unsloth's,
github.com/unslothai/unsloth): one pass, nothing kept beside the input and the few numbers between the factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F


class Unfit(Exception):
    """A layer of another shape than Llama's; the message says in what."""


class _Product(Function):
    """`x @ weight.T + bias + x @ A.T @ B.T` for (tokens, in), where A and B stack the factors of a `Product`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, product: Product, *stack: torch.Tensor) -> torch.Tensor:
        ctx.product, y = product, F.linear(x, product.weight, product.bias)
        if stack:
            down, up = stack
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
        return back, None, inner_gradient.T @ x, gradient.T @ inner


class _Stacked(Function):
    """The factors of all `products`, stacked in the numbers that are multiplied: A and B of each, one after the other."""

    @staticmethod
    def forward(ctx: Any, products: Sequence[Product], *factors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.products, ctx.factors = products, [(f.shape, f.dtype) for f in factors]
        stacks = _cut(
            [shape for product in products for shape in product.shapes], products[0].weight.dtype, factors[0].device
        )
        places = [part for product, *pair in _by_product(products, stacks) for part in product.parts(*pair)]
        scaled = torch._foreach_mul(list(factors), [scale for p in products for scale in p.scales])
        torch._foreach_copy_(places, scaled)
        return tuple(stacks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple:
        parts = [part for product, *pair in _by_product(ctx.products, gradients) for part in product.parts(*pair)]
        found = _cut([shape for shape, _ in ctx.factors], torch.float32, parts[0].device)
        torch._foreach_copy_(found, parts)
        torch._foreach_mul_(found, [scale for product in ctx.products for scale in product.scales])
        return None, *(gradient.to(dtype) for gradient, (_, dtype) in zip(found, ctx.factors))


def _cut(
    shapes: Sequence[torch.Size | tuple[int, int]], dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Zeros of these shapes, all in one block of memory."""
    flat = torch.zeros(sum(rows * columns for rows, columns in shapes), dtype=dtype, device=device)
    return [part.view(shape) for part, shape in zip(flat.split([r * c for r, c in shapes]), shapes)]


def _by_product(products: Sequence[Product], stacks: Sequence[torch.Tensor]) -> Iterator[tuple[Product, Any, Any]]:
    return zip(products, stacks[::2], stacks[1::2])


class Product:
    """Linear modules that read the same input, as one: frozen weights end to end, LoRA factors in one stack.

    `stack` holds the factors as `stacked` made them last: A (ranks, in) and B (out, ranks), B with its scales and zero
    where a member does not read another's ranks; nothing where there is no adapter.
    """

    def __init__(self, modules: Sequence[Any], dtype: torch.dtype):
        bases, names = zip(*map(_split, modules))
        weights = [base.weight.detach().to(dtype) for base in bases]
        biases = [base.bias.detach().to(dtype) for base in bases if base.bias is not None]
        if 0 < len(biases) < len(bases):
            raise Unfit("only some of its products have a bias")
        self.weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.bias = torch.cat(biases) if biases else None
        sizes = [len(weight) for weight in weights]
        for base, part in zip(bases, self.weight.split(sizes)):
            if base.weight.dtype == dtype:  # the same numbers need not be kept twice
                base.weight.data = part
        self.sizes, self.stack = sizes, ()
        self.factors: list[nn.Parameter] = []
        self.trained = any(p.requires_grad for base in bases for p in base.parameters())
        self.dropout = 0.0
        self.places: list[tuple[slice, slice]] = []  # rows and columns of each member's block in B
        self.scales: list[float] = []  # of each factor: A's is 1
        row = column = 0
        for module, name, size in zip(modules, names, sizes):
            if name is not None:
                self.places.append((slice(row, row + size), slice(column, column := column + module.r[name])))
                self.scales += [1.0, module.scaling[name]]
                self.factors += [module.lora_A[name].weight, module.lora_B[name].weight]
                self.dropout = max(self.dropout, getattr(module.lora_dropout[name], "p", 0.0))
            row += size
        self.shapes = (column, self.weight.shape[1]), (row, column)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, in) → (tokens, out of all members)."""
        return _Product.apply(x, self, *self.stack)

    def parts(self, down: torch.Tensor, up: torch.Tensor) -> Iterator[torch.Tensor]:
        """Where `factors` lie in the stacks."""
        for rows, columns in self.places:
            yield down[columns]
            yield up[rows, columns]


def stacked(products: Iterable[Product]) -> None:
    """Give every product the factors as they are now: one pass over all of them, for a step has hundreds."""
    adapted = [product for product in products if product.factors]
    if adapted:
        stacks = _Stacked.apply(adapted, *(factor for product in adapted for factor in product.factors))
        for product, *stack in _by_product(adapted, stacks):
            product.stack = tuple(stack)


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
