"""Whether an adapter belongs on a model: the base that it was trained on, and what was trained beside it."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

import torch
from torch import nn

from mmlora.adapters.filling import same_values
from mmlora.adapters.wrapping import BESIDE, AdapterError
from mmlora.models.base import OF_ADAPTERS, base_of, own_name, stored_as
from mmlora.models.vlm import base_model


def check_base(
    model: nn.Module, beside: Container[str], marks: Mapping[str, str], named: str | None, folder: Path, chosen: bool
) -> None:
    """Raise `AdapterError` for another base; say so where the same weights are held in other numbers."""
    base = base_of(model, beside)
    trained_on = f"the adapter in {folder} was trained on other weights ({named}) than this model's ({base.name})"
    if "base_weights" in marks:
        if marks["base_weights"] != base.weights:
            raise AdapterError(f"{trained_on}; load it onto the base it was trained on")
    elif chosen:
        print(
            f"the adapter in {folder} names {named} as its base but holds no hash of it: whether {base.name} has the same "
            "weights was not checked"
        )
    elif named and short_name(named) != short_name(base.name):  # an adapter from elsewhere: its name is all there is
        raise AdapterError(
            f"{trained_on}; load it onto the base it was trained on, or, if the two are the same under different names, call "
            f"load_vlm({str(folder)!r}, base={base.name!r})"
        )
    if marks.get("base_stored", stored_as(model)) != stored_as(model):
        print(f"the adapter in {folder} was trained on weights in {marks['base_stored']}, these are in {stored_as(model)}: "
              "a few answers may differ")  # fmt: skip


def short_name(name: str) -> str:
    """A base's own name in lower case, without its owner or the folders above it, also in the hub's cache (models--…)."""
    path = name.replace("\\", "/").rstrip("/")
    cached = [part for part in path.split("/") if part.startswith("models--")]
    return (cached[-1].rpartition("--") if cached else path.rpartition("/"))[2].lower()


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The base's own parameters by the names that they have without adapters."""
    named = base_model(model).named_parameters()
    return {own_name(n): p for n, p in named if not OF_ADAPTERS.search(f".{n}")}


def refuse_other_state(
    model: nn.Module, beside: Mapping[str, torch.Tensor], own: Mapping[str, nn.Parameter], folder: Path
) -> None:
    """Raise `AdapterError` unless the base's parameters are those that the further adapter was trained with.

    What earlier adapters changed must have been changed alike for this one: they share one connector.
    """
    changed = {id(parameter): value for parameter, value in getattr(base_model(model), BESIDE, ())}
    for key, parameter in own.items():
        expected = beside.get(key, changed.get(id(parameter)))
        if expected is None and not parameter.requires_grad:
            continue
        if expected is None or not same_values(parameter, expected):
            raise AdapterError(
                f"the adapter in {folder} was trained with another {key} than this model has now, and adapters on one base "
                "share what was trained beside them, such as a connector: load it onto a base of its own"
            )
