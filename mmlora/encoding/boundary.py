"""Where a model's frozen beginning ends, and its forward pass on either side of that.

The model's own forward does both halves: the lower one is stopped at the boundary, the upper one finds its lower layers
replaced by the states that were kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import nn

from mmlora.errors import MMLoraError
from mmlora.models.vlm import base_model, decoder_layers


class CacheError(MMLoraError):
    """A prefix cache that cannot be written or used; the message names the folder."""


def boundary(model: nn.Module) -> int:
    """The first decoder layer that holds a trainable parameter; everything before it can be cached.

    Raises `CacheError` when something outside the decoder's layers trains, or nothing does.
    """
    number = {id(p): i for i, layer in enumerate(decoder_layers(model)) for p in layer.parameters()}
    first = None
    for name, parameter in base_model(model).named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) not in number:
            raise CacheError(
                f"{name} is trainable and lies outside the decoder's layers: train without the prefix cache"
            )
        first = number[id(parameter)] if first is None else min(first, number[id(parameter)])
    if first is None:
        raise CacheError("no parameter is trainable, so there is no boundary: attach an adapter first")
    return first


class _Reached(Exception):
    """Ends a forward pass at the boundary; carries the hidden states."""


def lower(model: nn.Module, batch: dict[str, torch.Tensor], first: int) -> torch.Tensor:
    """Hidden states (batch, length, width) that come to decoder layer `first`."""

    def stop(layer: nn.Module, inputs: tuple, named: dict) -> NoReturn:
        raise _Reached(inputs[0] if inputs else named["hidden_states"])

    hook = decoder_layers(model)[first].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        base_model(model).model(**batch, use_cache=False)
    except _Reached as reached:
        return reached.args[0]
    finally:
        hook.remove()


class _Passed(nn.Module):
    """Stands for a decoder layer whose work is done."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states


@contextmanager
def resuming(model: nn.Module, first: int, states: torch.Tensor) -> Iterator[None]:
    """Inside, the model's forward passes begin at decoder layer `first` with `states` (batch, length, width)."""
    layers = decoder_layers(model)
    lower = list(layers[:first])

    def resume(layer: nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
        hidden = inputs[0] if inputs else named.pop("hidden_states")
        begun = states.to(hidden.dtype)
        if layer.training and getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
            begun = begun.detach().requires_grad_()  # or reentrant checkpointing drops the graph
        return (begun, *inputs[1:]), named

    hook = layers[first].register_forward_pre_hook(resume, with_kwargs=True)
    for index in range(first):
        layers[index] = _Passed()
    try:
        yield
    finally:
        hook.remove()
        for index, layer in enumerate(lower):
            layers[index] = layer
