"""LoRA on open_clip's models, tower by tower.

open_clip's own transformers hold query, key and value in one matrix inside `nn.MultiheadAttention`, which is no `nn.Linear`,
and never call its `out_proj`: torch reads its weight. peft adapts that module as a whole by adding the product to the weights
for the time of a call, so it is named here by its own name; every other layer is found as a linear module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel
from torch import nn

from mmlora.adapters import config as configs
from mmlora.adapters import files
from mmlora.adapters.targets import is_linear
from mmlora.adapters.wrapping import AdapterError, refuse_rank, refuse_wrapped, wrapped
from mmlora.files import refusals
from mmlora.models.base import base_of
from mmlora.openclip import assemble
from mmlora.openclip.assemble import Clip, ClipError

Part = Literal["vision", "text"]
PARTS: tuple[Part, ...] = ("vision", "text")
HEADS = ("visual.head", "text.proj")  # projections, which are trained whole and never by an adapter


def attach(
    model: nn.Module, rank: int = 8, within: Iterable[Part] = PARTS, *, targets: Iterable[str] = (), seed: int = 0
) -> PeftModel:
    """Wrap an open_clip model with a fresh LoRA adapter (alpha is 2 x rank) in the towers `within`, and freeze all else.

    `targets` are ends of module names ("attn", "query"); every attention and linear module unless given. Raises `ClipError`
    where nothing matches and `AdapterError` for a second adapter.
    """
    refuse_wrapped(model)
    refuse_rank(rank)
    names = [name for part in within for name in _names(model, part, tuple(targets))]
    if not names:
        raise ClipError(
            f"nothing in the towers {', '.join(within)} is called {', '.join(targets)}; leave `targets` out"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # anchored: a list is matched by names' ends, and a plain CLIP's text names end the picture tower's
        return wrapped(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="|".join(map(re.escape, names))))


def save(model: PeftModel, folder: str | Path, name: str, pretrained: str | None = None) -> Path:
    """Write the adapter as peft's own two files; `name` and `pretrained` are what `assemble.load` finds its base by."""
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    with refusals(folder):
        return files.write(model, replace(base_of(model), name=name, revision=pretrained), folder)


def load(folder: str | Path) -> Clip:
    """The base that an adapter of `save` was trained on, with the adapter on it, frozen.

    Raises `ClipError` where open_clip does not find the base, and `AdapterError` where the folder holds no adapter or
    where the base's weights are no longer those it was trained on.
    """
    config = Path(folder) / files.CONFIG
    if not config.is_file():
        raise AdapterError(f"{folder} has no {files.CONFIG}; give a folder that openclip.adapters.save wrote")
    if (base := configs.named_base(Path(folder))) is None:
        raise AdapterError(f"{config} names no base; give a folder that openclip.adapters.save wrote")
    clip = assemble.load(base, configs.revision_of(Path(folder)))
    return clip._replace(model=files.load_adapter(clip.model, folder))


def part_of(name: str) -> Part:
    """The tower of a module or parameter. A plain `CLIP` has its text tower's modules at the top."""
    return "vision" if "visual" in name.split(".") else "text"


def _names(model: nn.Module, part: Part, targets: tuple[str, ...]) -> list[str]:
    """Full names of what an adapter can go on, in the model's order."""
    whole = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    inside = tuple(f"{name}." for name in whole)  # out_proj, which peft adapts together with its attention
    linear = [n for n, m in model.named_modules() if is_linear(m) and not n.startswith((*inside, *HEADS))]
    found = [name for name, _ in model.named_modules() if name in {*whole, *linear} and part_of(name) == part]
    return [name for name in found if not targets or name.rsplit(".", 1)[-1] in targets]
