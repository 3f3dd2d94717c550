"""The adapters on one base by their names: listed, switched, removed, and told row by row in a batch.

An adapter that is not active costs memory and no time. Switching changes which factors peft's layers read, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from mmlora.adapters.wrapping import BASE_ONLY, AdapterError, activate, refuse_inner, refuse_spent, remove
from mmlora.models.vlm import base_model, decoder_layers


@dataclass(frozen=True)
class AdapterRow:
    """An adapter on a model; `rank` is the highest of its modules, `trains` whether any of its parameters learns now."""

    name: str
    rank: int
    alpha: float
    parameters: int
    active: bool
    trains: bool


def adapters(model: PeftModel) -> tuple[AdapterRow, ...]:
    """The adapters of this model, in the order in which they came. Raises `AdapterError` for a model without any."""
    active = active_names(model)
    own = {name: _parameters(model, name) for name in model.peft_config}
    ranks = {name: [m.r[name] for m in model.modules() if isinstance(m, LoraLayer) and name in m.r] for name in own}
    return tuple(
        AdapterRow(
            name,
            max(ranks[name], default=0),
            getattr(config, "lora_alpha", 0),
            sum(p.numel() for p in own[name]),
            name in active,
            any(p.requires_grad for p in own[name]),
        )
        for name, config in model.peft_config.items()
    )


def switch(model: PeftModel, name: str) -> PeftModel:
    """Let this adapter compute and no other; returns the model.

    One that was attached trains from now on, one that was loaded or combined stays frozen. Answers are bit for bit those of the
    adapter loaded alone. Raises `AdapterError` for an unknown name, and while an adapter is merged into the weights.
    """
    own_config(model, name)
    _refuse_merged(model)
    activate(model, name)
    return model


def unload(model: PeftModel, name: str) -> PeftModel:
    """Remove this adapter and free its memory; returns the model.

    Where it was active, the first of the others becomes so. Raises `AdapterError` for an unknown name, for the last adapter,
    which `detach` takes off, and while an adapter is merged into the weights.
    """
    own_config(model, name)
    _refuse_merged(model)
    others = [other for other in model.peft_config if other != name]
    if not others:
        raise AdapterError(f"{name} is this model's only adapter; take it off with detach(model), which gives the base")
    if name in active_names(model):
        activate(model, others[0])
    remove(model, name)
    return model


def own_config(model: nn.Module, name: str | None = None) -> tuple[str, LoraConfig]:
    """The name and the configuration of a model's one adapter, or of the one of this name.

    Raises `AdapterError` for none, for several where no name is given, an unknown name, and another kind than LoRA.
    """
    refuse_spent(model)
    refuse_inner(model)
    configs = getattr(model, "peft_config", {}) if isinstance(model, PeftModel) else {}
    if not configs:
        raise AdapterError(
            "this model carries no adapter: none was attached or loaded, or it was merged or taken off already"
        )
    if name is None and len(configs) > 1:
        raise AdapterError(
            f"this model carries {len(configs)} adapters, {', '.join(configs)}: say which one, with name="
        )
    if name is not None and name not in configs:
        raise AdapterError(f"this model has no adapter called {name!r}; it has {', '.join(configs)}")
    name = next(iter(configs)) if name is None else name
    if not isinstance(configs[name], LoraConfig):
        raise AdapterError(
            f"this model's adapter is {configs[name].peft_type}, and only LoRA can be merged, saved or switched here"
        )
    return name, configs[name]


def active_names(model: PeftModel) -> list[str]:
    """The adapters that compute now. Raises `AdapterError` for a model without any."""
    if not isinstance(model, PeftModel) or len(model.peft_config) == 1:
        return [own_config(model)[0]]
    return [name for name in model.active_adapters if name in model.peft_config]


def adapter_per_row(model: nn.Module, names: Sequence[str | None]) -> list[str]:
    """What peft takes as `adapter_names` for a batch whose rows each have another adapter; None is the base alone.

    Raises `AdapterError` for unknown names, and where a mixed batch would come out wrong: an adapter outside the decoder's
    layers (a picture tower's rows are pictures), one that is more than LoRA (DoRA and others), one that is merged, and
    adapters that are switched off.
    """
    for name in {name for name in names if name is not None}:
        own_config(model, name)
    if not isinstance(model, PeftModel):
        own_config(model)  # says what is missing
    _refuse_merged(model)
    inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    for place, module in base_model(model).named_modules():
        if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            continue
        odd = sorted(set(getattr(module, "lora_variant", {})) & set(names))
        if odd:
            raise AdapterError(
                f"{odd[0]} is more than plain LoRA (at {place}), which cannot be mixed in one batch; answer its rows apart"
            )
        if id(module) not in inside or isinstance(module, AuxiliaryTrainingWrapper):
            raise AdapterError(
                f"an adapter changes {place}, and only LoRA in the decoder's layers can be mixed in one batch; answer the rows of "
                "each adapter apart, after switch(model, name)"
            )
        if module.disable_adapters:
            raise AdapterError("the adapters are switched off: call enable_adapter_layers() first")
    return [BASE_ONLY if name is None else name for name in names]


def one_per_row(adapters: Sequence[str | None] | None, rows: int) -> None:
    """Raise `AdapterError` unless there is an adapter's name for each row, or none are given."""
    if adapters is not None and (isinstance(adapters, str) or len(adapters) != rows):
        raise AdapterError(
            f"{rows} conversations and {len(adapters)} adapters were given; give one name for each, or leave them out"
        )


def in_order(adapters: Sequence[str | None] | None, order: Sequence[int]) -> list[str | None] | None:
    """The names of these rows, in this order."""
    return None if adapters is None else [adapters[i] for i in order]


def _refuse_merged(model: nn.Module) -> None:
    """Raise `AdapterError` while an adapter is added to the weights: another one would compute on top of it."""
    merged = {n for m in model.modules() if isinstance(m, BaseTunerLayer) for n in m.merged_adapters}
    if merged:
        raise AdapterError(f"{', '.join(sorted(merged))} is added to the weights now: call unmerge_adapter() first")


def _parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The adapter's own parameters, which peft keeps under its name."""
    return [p for full, p in model.named_parameters() if f".{name}." in f"{full}."]
