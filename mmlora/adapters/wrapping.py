"""peft's wrappers around a base: put on, beside each other, made active, and removed so that nothing of them is left."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import torchao as lora_torchao
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, quantization_utils
from torch import nn
from transformers import PreTrainedModel

from mmlora.errors import MMLoraError
from mmlora.models.vlm import base_model

DEFAULT = "default"  # an adapter's name where none is given, as in peft
BESIDE = "mmlora_beside"  # a base's attribute: parameters that adapters changed in it, with the base's own values
BASE_ONLY = "__base__"  # peft's name, in a mixed batch, for a row without an adapter
#: Ways to begin an adapter that subtract its product from the base's weights.
REWRITES = ("pissa", "olora", "corda", "lora_ga", "loftq")
_NAME = re.compile(r"[A-Za-z0-9_][\w-]*")


class AdapterError(MMLoraError):
    """An adapter that cannot be attached, trained, saved, loaded, switched or combined; the message says what to do."""


def is_wrapped(model: nn.Module) -> bool:
    """Whether an adapter sits in the model, whatever is wrapped around it."""
    return isinstance(model, PeftModel) or any(isinstance(m, BaseTunerLayer) for m in model.modules())


def refuse_spent(model: nn.Module) -> None:
    """Raise `AdapterError` for a `PeftModel` whose adapter was merged or taken off, though peft still lists it."""
    inside = any(isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in model.modules())
    if isinstance(model, PeftModel) and not inside and not getattr(model, "_is_prompt_learning", False):
        raise AdapterError(
            "this model carries no adapter any more: it was merged or taken off; use the model that merge or detach returned"
        )


def refuse_inner(model: nn.Module) -> None:
    """Raise `AdapterError` for the base inside a `PeftModel`: it has the adapter's layers and not its names."""
    if not isinstance(model, PeftModel) and is_wrapped(model):
        raise AdapterError(
            "this is the base inside an adapted model; give the model that attach or load_adapter returned"
        )


def refuse_wrapped(model: nn.Module) -> None:
    """Raise `AdapterError` where the model carries an adapter already."""
    refuse_spent(model)
    if is_wrapped(model):
        raise AdapterError(
            "this model carries an adapter already; take it off with detach(model), or load the base again"
        )


def refuse_rank(rank: object) -> None:
    """Raise `AdapterError` unless this can be a rank."""
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise AdapterError(f"rank is {rank!r}; give a whole number above 0")


def rewrites(config: LoraConfig) -> bool:
    """Whether this kind of adapter begins by changing the base's weights, as PiSSA does."""
    return str(config.init_lora_weights).startswith(REWRITES) or getattr(config, "kasa_config", None) is not None


def refuse_name(model: nn.Module, name: str) -> None:
    """Raise `AdapterError` unless another adapter of this name can be put on `model`."""
    refuse_spent(model)
    refuse_inner(model)
    there = list(getattr(model, "peft_config", {})) if isinstance(model, PeftModel) else []
    if name in there:
        raise AdapterError(
            f"this model carries an adapter already that is called {name!r} (all: {', '.join(there)}); give another name=, or "
            "take it off with unload(model, name), or all of them with detach(model)"
        )
    parts = {part for full, _ in base_model(model).named_modules() for part in full.split(".")}
    unusable = not _NAME.fullmatch(name) or hasattr(nn.ModuleDict(), name) or name in {BASE_ONLY, "weight", "bias"}
    if unusable or name in parts or name in "lora_" or name.startswith("lora_"):
        raise AdapterError(
            f"an adapter cannot be called {name!r}; give a name of letters, digits, - and _ that no module of the model has"
        )


def refuse_beside(model: nn.Module, config: LoraConfig) -> None:
    """Raise `AdapterError` where this adapter, or one that is there, changes weights that all adapters share."""
    if not isinstance(model, PeftModel):
        return
    for name, each in [*model.peft_config.items(), ("the new one", config)]:
        if rewrites(each) or getattr(each, "bias", "none") != "none":
            what = f"starts as {each.init_lora_weights}" if rewrites(each) else f"trains biases ({each.bias})"
            raise AdapterError(
                f"{name} {what}, which changes the base that all adapters share: keep it alone on its base, or use another kind"
            )


@contextmanager
def adding(model: nn.Module, name: str) -> Iterator[None]:
    """Inside, an adapter of this name is put on; where that raises, the model is as it was."""
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        _take_off(model, name)
        for parameter, learned in learning:
            parameter.requires_grad_(learned)
        raise


def put_on(model: nn.Module, config: LoraConfig, name: str) -> PeftModel:
    """`model` with one adapter more, which is active only where it is the first; raises what peft raises."""
    if not isinstance(model, PeftModel):
        return wrapped(model, config, name)
    model.add_adapter(name, config)
    return model


def activate(model: PeftModel, name: str) -> None:
    """Let this adapter compute, and no other; it trains unless it was loaded, and the others stay frozen."""
    model.set_adapter(name, inference_mode=model.peft_config[name].inference_mode)


def remove(model: PeftModel, name: str) -> None:
    """Remove an adapter beside others, and the wrappers that it alone needed."""
    model.peft_config.setdefault(name, next(iter(model.peft_config.values())))  # peft forgot it where adding failed
    model.delete_adapter(name)
    base = base_model(model)
    for full, module in _wrappers(base):
        if not module._get_available_adapters():
            _unwrap(base, full, module)


def remove_all(model: nn.Module) -> PreTrainedModel:
    """The base without adapters, its changed parameters (`BESIDE`) put back; a bare model as it is."""
    base = base_model(model)
    for full, module in _wrappers(base):
        _unwrap(base, full, module)
    if hasattr(base, "peft_config"):
        del base.peft_config
    for parameter, own in base.__dict__.pop(BESIDE, ()):
        parameter.data = own.to(parameter.device)  # in its own dtype
    return base


def _wrappers(base: nn.Module) -> Iterator[tuple[str, Any]]:
    """peft's wrappers in the base by their full names, inner ones first: an attention module holds two."""
    auxiliary = [f"{name}." for name, module in base.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    for full, module in reversed(list(base.named_modules())):
        wrapper = isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        if wrapper and not full.startswith(tuple(auxiliary)):  # what lies inside goes with it
            yield full, module


def _unwrap(base: nn.Module, full: str, module: Any) -> None:
    """Put the base's own module back into the place of the wrapper around it."""
    parent, _, last = full.rpartition(".")
    whole = isinstance(module, AuxiliaryTrainingWrapper)
    setattr(base.get_submodule(parent), last, module.original_module if whole else module.get_base_layer())


def _take_off(model: nn.Module, name: str) -> None:
    """Remove what there is of this adapter, which may be a part of it."""
    if isinstance(model, PeftModel) and set(model.peft_config) - {name}:
        remove(model, name)
    else:
        remove_all(model)


def take_no_torchao() -> None:
    """peft refuses to work beside a torchao that is too old for it, as Colab's was, though nothing here is torchao's."""
    for module in (lora_torchao, quantization_utils):
        try:
            module.is_torchao_available()
        except ImportError:
            module.is_torchao_available = lambda: False


def wrapped(model: nn.Module, config: LoraConfig, name: str = DEFAULT) -> PeftModel:
    """`model` with the adapter that `config` describes; nothing is checked and nothing printed."""
    take_no_torchao()
    with warnings.catch_warnings():  # peft asks transformers by a name that it will drop: nothing a user can mend
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config, adapter_name=name)
