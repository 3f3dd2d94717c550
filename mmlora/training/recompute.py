"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174), switched on where a single sample does not fit otherwise.

It is no first choice: a layer's forward pass is computed once more in the backward pass, and the fused layers, which save
more time than anything else, step aside for it. Nor can it be planned: what `mmlora.needs` says of activations is rough by
factors, while an allocator that refuses is exact. So training halves its forward passes first, and this comes last.
"""

from __future__ import annotations

from torch import nn

from mmlora.models.vlm import base_model


def can_recompute(model: nn.Module) -> bool:
    """Whether the architecture has gradient checkpointing and it is switched off."""
    inner = base_model(model)
    return bool(getattr(inner, "supports_gradient_checkpointing", False)) and not inner.is_activation_checkpointing


def recompute(model: nn.Module) -> None:
    """Let the layers in training mode keep their inputs only, and compute the rest again in the backward pass."""
    inner = base_model(model)
    inner.activation_checkpointing_enable({"use_reentrant": False})
    inner.disable_input_require_grads()  # only reentrant checkpoints need it; frozen lower layers would get gradients


def keep_activations(model: nn.Module) -> None:
    """Switch gradient checkpointing off again."""
    base_model(model).activation_checkpointing_disable()
