"""The three towers of a multimodal model: vision, connector, language, and what trains in each.

Every figure here is given by tower, because the usual silent mistake is an adapter in the wrong one.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from mmlora.errors import MMLoraError


class TowerError(MMLoraError):
    """A tower that a model lacks, or that cannot learn; the message says what to leave out."""


Tower = Literal["vision", "connector", "language"]
TOWERS: tuple[Tower, ...] = ("vision", "connector", "language")
_CONNECTOR = re.compile(r"connector|bridge|projector|merger|aligner|resampler|qformer|(image|vision|language)_proj")
_VISION = re.compile(r"vision|visual|image_(encoder|tower)|vit|namer")


def tower_of(name: str) -> Tower:
    """The tower that a module or parameter belongs to, told from its dotted name as transformers writes it."""
    parts = name.split(".")
    if any(_CONNECTOR.search(part) for part in parts):
        return "connector"
    return "vision" if any(_VISION.match(part) for part in parts) else "language"


def learning_connector(model: nn.Module) -> dict[str, nn.Parameter]:
    """Let the connector's own weights train, in float32, which small steps need; they by their names.

    Raises `TowerError` for a model without a connector, and for one in four bits.
    """
    found = {name: p for name, p in model.named_parameters() if tower_of(name) == "connector" and "lora_" not in name}
    if not found:
        raise TowerError(
            "this model has no connector that could learn; leave train_connector out, and align_minutes at 0"
        )
    if any(not p.is_floating_point() for p in found.values()):
        raise TowerError(
            "this model's connector is in four bits, which cannot learn; leave four_bit out, or train_connector, and align_minutes at 0"
        )
    for parameter in found.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return found


@dataclass(frozen=True)
class TowerRow:
    tower: Tower
    modules: int
    trainable: int
    parameters: int


@dataclass(frozen=True)
class TowerReport:
    """What will train, tower by tower; printing it gives a table."""

    rows: tuple[TowerRow, ...]

    @property
    def trainable(self) -> int:
        return sum(row.trainable for row in self.rows)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    def __str__(self):
        lines = [f"{'tower':<10} {'modules':>8} {'trainable':>12} {'of all':>8}"]
        sums = ("total", sum(r.modules for r in self.rows), self.trainable)
        for tower, modules, trainable in [*((r.tower, r.modules, r.trainable) for r in self.rows), sums]:
            lines.append(f"{tower:<10} {modules:>8} {trainable:>12,} {trainable / max(1, self.parameters):>8.2%}")
        return "\n".join(lines)


def towers(model: nn.Module) -> TowerReport:
    """Modules with something to train, trainable and all parameters of `model`, by tower."""
    modules: dict[Tower, set[str]] = {tower: set() for tower in TOWERS}
    trainable, everything = dict.fromkeys(TOWERS, 0), dict.fromkeys(TOWERS, 0)
    for name, parameter in model.named_parameters():
        tower = tower_of(name)
        stored = getattr(parameter, "quant_state", None)  # two numbers of four bits lie in one byte
        everything[tower] += parameter.numel() if stored is None else stored.shape.numel()
        if parameter.requires_grad:
            trainable[tower] += parameter.numel()
            modules[tower].add(re.sub(r"\.(lora_.*|[^.]*)$", "", name))
    return TowerReport(tuple(TowerRow(t, len(modules[t]), trainable[t], everything[t]) for t in TOWERS))


def gradient_norms(model: nn.Module) -> dict[Tower, float]:
    """The gradient's L2 norm in every tower that trains, after a backward pass; 0 where none arrived."""
    squares: dict[Tower, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tower = tower_of(name)
            gradient = 0.0 if parameter.grad is None else parameter.grad.float().norm().item()
            squares[tower] = squares.get(tower, 0.0) + gradient**2
    return {tower: math.sqrt(square) for tower, square in squares.items()}


def training_mode(model: nn.Module) -> None:
    """Dropout on where something trains; frozen towers compute exactly as in inference, so they can be cached."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()
