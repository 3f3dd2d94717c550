"""LoRA adapters through peft: attach one, take it off again.

Source of the method: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import torchao as lora_torchao
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, quantization_utils
from torch import nn
from transformers import PreTrainedModel

from mmlora.adapters.towers import Tower, tower_of, towers
from mmlora.errors import MMLoraError
from mmlora.models.base import stored_as, unmark
from mmlora.models.vlm import base_model

BESIDE = "mmlora_beside"  # a base's attribute: the parameters that were loaded beside an adapter, with their own values
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


class AdapterError(MMLoraError):
    """An adapter that cannot be attached, trained, saved or loaded; the message says what to do."""


def attach(
    model: nn.Module,
    rank: int = 16,
    alpha: int | None = None,
    layers: Iterable[int] | None = None,
    targets: Iterable[str] | Literal["all-linear"] = "all-linear",
    *,
    within: Iterable[Tower] = ("language",),
    dropout: float = 0.0,
    seed: int = 0,
) -> PeftModel:
    """Wrap `model` with a fresh LoRA adapter, freeze all else, print the table by tower.

    `alpha` is 2 x `rank` unless given. `layers` are decoder layers; None means the upper half: what lies below
    can then be cached. `targets` are the last parts of module names ("q_proj"), or every linear projection of those
    layers and of the other towers in `within`, a convolution of one pixel included.
    Raises `AdapterError` for a second attach, a target or tower that matches nothing, a layer out of range, and inside
    `torch.inference_mode`, whose tensors can never train.
    """
    if torch.is_inference_mode_enabled():
        raise AdapterError("an adapter attached inside torch.inference_mode could never train; attach it outside")
    refuse_wrapped(model)
    refuse_rank(rank)
    names = _target_names(model, layers, targets, tuple(within))
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, lora_dropout=dropout, target_modules=names
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = wrapped(model, config)
    print(towers(adapted))
    return adapted


def detach(model: nn.Module) -> PreTrainedModel:
    """The base under an adapter, taken off without a trace, so that another can be attached; a bare model as it is.

    Raises `AdapterError` while the adapter is merged into the weights with `merge_adapter`: subtracting it would round them.
    """
    base = base_model(model)
    if any(isinstance(module, BaseTunerLayer) and module.merged for module in base.modules()):
        raise AdapterError(
            "this adapter is merged into the weights (merge_adapter), which cannot be undone exactly: load the base again, or "
            "call unmerge_adapter() first, which leaves rounding errors"
        )
    wholes = tuple(f"{name}." for name, module in base.named_modules() if isinstance(module, AuxiliaryTrainingWrapper))
    for name, module in reversed(list(base.named_modules())):  # the inner of two adapters first: attention holds two
        whole = isinstance(module, AuxiliaryTrainingWrapper)
        if (whole or isinstance(module, BaseTunerLayer)) and not name.startswith(wholes):
            parent, _, last = name.rpartition(".")
            setattr(base.get_submodule(parent), last, module.original_module if whole else module.get_base_layer())
    if hasattr(base, "peft_config"):
        del base.peft_config
    for parameter, own in base.__dict__.pop(BESIDE, ()):
        parameter.data = own.to(parameter.device)  # in its own numbers
    return base


def own_config(model: nn.Module) -> tuple[str, LoraConfig]:
    """The name and configuration of a model's only adapter. Raises `AdapterError` for none, for several, or if it is no LoRA."""
    _refuse_spent(model)
    configs = getattr(model, "peft_config", {}) if isinstance(model, PeftModel) else {}
    if not configs and is_wrapped(model):
        raise AdapterError(
            "this is the base inside an adapted model; give the model that attach or load_adapter returned"
        )
    if not configs:
        raise AdapterError(
            "this model carries no adapter (perhaps it was merged or taken off); attach or load one first"
        )
    if len(configs) > 1:
        raise AdapterError(
            f"this model carries {len(configs)} adapters, {', '.join(configs)}: keep one and remove the others, model.delete_adapter(name)"
        )
    name, config = next(iter(configs.items()))
    if not isinstance(config, LoraConfig):
        raise AdapterError(f"this model's adapter is {config.peft_type}, and only LoRA can be merged or saved here")
    return name, config


def merge(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter's product added to its weights, in place: faster, and from now on another base.

    An adapter that was trained on the old one is refused. What was trained beside the adapter stays, too. Raises
    `AdapterError` unless the model carries exactly one adapter, switched on, that can be merged: four-bit weights would be
    rounded again and lose part of it, and a weight that two modules share would change for both.
    """
    own_config(model)
    if stored_as(model) == "nf4":
        raise AdapterError(
            "four bits cannot hold base and adapter together; load the base without four_bit, then merge"
        )
    take_no_torchao()
    tuned = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    if any(module.disable_adapters for module in tuned.values()):
        raise AdapterError(
            "this adapter is switched off: call enable_adapter_layers() first, or take it off with detach(model)"
        )
    _refuse_shared(model, tuned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about modules that are merged already, or not
        try:
            model.merge_adapter()  # every module or, if one fails, none
        except (ValueError, RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
            model.unmerge_adapter()
            reason = " ".join(str(error).split()) or type(error).__name__
            raise AdapterError(f"this adapter cannot be merged into the weights ({reason}): use it unmerged") from error
        merged = model.merge_and_unload()
    merged.__dict__.pop(BESIDE, None)
    unmark(merged)
    return merged


def _refuse_shared(model: nn.Module, tuned: Mapping[str, BaseTunerLayer]) -> None:
    """Raise `AdapterError` if an adapted weight is shared with another module, as tied embeddings are."""
    parameters = model.named_parameters(remove_duplicate=False)
    uses = Counter(id(parameter) for name, parameter in parameters if ".modules_to_save." not in name)
    for name, module in tuned.items():
        weight = getattr(module.get_base_layer(), "weight", None) if isinstance(module, LoraLayer) else None
        if weight is not None and uses[id(weight)] > 1:
            raise AdapterError(
                f"{name} shares its weight with another module (tied embeddings), which merging would change too: use the "
                "adapter unmerged"
            )


def take_no_torchao() -> None:
    """peft refuses to work beside a torchao that is too old for it, as Colab's was, though nothing here is torchao's."""
    for module in (lora_torchao, quantization_utils):
        try:
            module.is_torchao_available()
        except ImportError:
            module.is_torchao_available = lambda: False


def wrapped(model: nn.Module, config: LoraConfig) -> PeftModel:
    """`model` with the adapter that `config` describes; nothing is checked and nothing printed."""
    take_no_torchao()
    with warnings.catch_warnings():  # peft asks transformers by a name that it will drop: nothing a user can mend
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)


def is_wrapped(model: nn.Module) -> bool:
    """Whether an adapter sits in the model, whatever is wrapped around it."""
    return isinstance(model, PeftModel) or any(isinstance(m, BaseTunerLayer) for m in model.modules())


def _refuse_spent(model: nn.Module) -> None:
    """Raise `AdapterError` for a `PeftModel` whose adapter was merged or taken off, though peft still lists it."""
    inside = any(isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in model.modules())
    if isinstance(model, PeftModel) and not inside and not getattr(model, "_is_prompt_learning", False):
        raise AdapterError(
            "this model carries no adapter any more: it was merged or taken off; use the model that merge or detach returned"
        )


def refuse_wrapped(model: nn.Module) -> None:
    """Raise `AdapterError` where an adapter sits already: two in one place would be none that anybody meant."""
    _refuse_spent(model)
    if is_wrapped(model):
        raise AdapterError(
            "this model carries an adapter already; take it off with detach(model), or load the base again"
        )


def refuse_rank(rank: object) -> None:
    """Raise `AdapterError` for what can be no rank."""
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise AdapterError(f"rank is {rank!r}; give a whole number above 0")


def _target_names(
    model: nn.Module, layers: Iterable[int] | None, targets: Iterable[str], within: tuple[Tower, ...]
) -> list[str]:
    """Full names of the linear modules to adapt, in the model's order."""
    linear = {t: [n for n, m in model.named_modules() if is_product(m) and tower_of(n) == t] for t in within}
    if "language" in linear:
        chosen = _chosen_layers(linear["language"], layers)
        linear["language"] = [n for n in linear["language"] if (m := _LAYER.search(n)) and int(m[1]) in chosen]
    for tower, names in linear.items():
        if not names:
            raise AdapterError(f"the {tower} tower has no linear module to adapt; leave it out of `within`")
    found = [name for names in linear.values() for name in names]
    if targets == "all-linear":
        return found
    wanted = (targets,) if isinstance(targets, str) else tuple(targets)
    endings = sorted({name.rsplit(".", 1)[-1] for name in found})
    for target in wanted:
        if not any(f".{name}".endswith(f".{target}") for name in found):
            near = difflib.get_close_matches(target, endings, 3, 0.3) or endings[:8]
            raise AdapterError(f"the target {target!r} matches no linear module there; choose among {', '.join(near)}")
    return [name for name in found if any(f".{name}".endswith(f".{target}") for target in wanted)]


def is_product(module: nn.Module) -> bool:
    """A matrix product: a linear module, or a convolution that looks at one pixel at a time (what EfficientNet has)."""
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear) or pointwise


def _chosen_layers(names: list[str], layers: Iterable[int] | None) -> set[int]:
    count = 1 + max((int(m[1]) for n in names if (m := _LAYER.search(n))), default=-1)
    if layers is None:
        return set(range(count // 2, count))
    chosen = set(layers)
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        asked = f"layers {min(chosen)} to {max(chosen)}" if chosen else "no layers"
        raise AdapterError(f"{asked} of the decoder were asked for, but it has 0 to {count - 1}; choose among these")
    return chosen
