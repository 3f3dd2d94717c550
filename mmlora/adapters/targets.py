"""Which modules an adapter goes on: linear modules, chosen by tower, decoder layer and name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from mmlora.adapters.towers import Tower, tower_of
from mmlora.adapters.wrapping import AdapterError

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def target_names(
    base: nn.Module, layers: Iterable[int] | None, targets: Iterable[str], within: tuple[Tower, ...]
) -> list[str]:
    """Full names of the linear modules to adapt, in the model's order; `base` may carry adapters already.

    Raises `AdapterError` for a tower without linear modules, a decoder layer out of range and a target that matches nothing.
    """
    names = _linear_names(base)
    linear = {tower: [name for name in names if tower_of(name) == tower] for tower in within}
    if "language" in linear:
        chosen = _chosen_layers(linear["language"], layers)
        linear["language"] = [n for n in linear["language"] if (m := _LAYER.search(n)) and int(m[1]) in chosen]
    for tower, inside in linear.items():
        if not inside:
            raise AdapterError(f"the {tower} tower has no linear module to adapt; leave it out of `within`")
    found = [name for inside in linear.values() for name in inside]
    if targets == "all-linear":
        return found
    wanted = (targets,) if isinstance(targets, str) else tuple(targets)
    endings = sorted({name.rsplit(".", 1)[-1] for name in found})
    for target in wanted:
        if not any(f".{name}".endswith(f".{target}") for name in found):
            near = difflib.get_close_matches(target, endings, 3, 0.3) or endings[:8]
            raise AdapterError(f"the target {target!r} matches no linear module there; choose among {', '.join(near)}")
    return [name for name in found if any(f".{name}".endswith(f".{target}") for target in wanted)]


def is_linear(module: nn.Module) -> bool:
    """A linear module, or a convolution with a kernel of one pixel (what EfficientNet has)."""
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear) or pointwise


def _linear_names(base: nn.Module) -> list[str]:
    """The base's own linear modules, without those of adapters that it carries."""
    found: list[str] = []
    wrappers: list[str] = []
    for name, module in base.named_modules():
        if name.startswith(tuple(wrappers)):
            continue
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            wrappers.append(f"{name}.")
            module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
        if is_linear(module):
            found.append(name)
    return found


def _chosen_layers(names: list[str], layers: Iterable[int] | None) -> set[int]:
    count = 1 + max((int(m[1]) for n in names if (m := _LAYER.search(n))), default=-1)
    if layers is None:
        return set(range(count // 2, count))
    chosen = set(layers)
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        asked = f"layers {min(chosen)} to {max(chosen)}" if chosen else "no layers"
        raise AdapterError(f"{asked} of the decoder were asked for, but it has 0 to {count - 1}; choose among these")
    return chosen
