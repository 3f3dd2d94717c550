"""LoRA adapters through peft: attach one, beside others too, merge it, take them off again.

Source of the method: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from mmlora.adapters.named import active_names, own_config
from mmlora.adapters.targets import target_names
from mmlora.adapters.towers import Tower, towers
from mmlora.adapters.wrapping import (
    BESIDE,
    DEFAULT,
    AdapterError,
    activate,
    adding,
    put_on,
    refuse_beside,
    refuse_name,
    refuse_rank,
    remove_all,
    rewrites,
    take_no_torchao,
)
from mmlora.errors import on_one_line
from mmlora.models.base import OF_ADAPTERS, stored_as, unmark
from mmlora.models.vlm import base_model

RANK = 16  # an adapter's where none is asked for
EVERYWHERE = "all-linear"


def attach(
    model: nn.Module,
    rank: int = RANK,
    alpha: int | None = None,
    layers: Iterable[int] | None = None,
    targets: Iterable[str] | Literal["all-linear"] = EVERYWHERE,
    *,
    within: Iterable[Tower] = ("language",),
    dropout: float = 0.0,
    seed: int = 0,
    name: str = DEFAULT,
    config: LoraConfig | None = None,
) -> PeftModel:
    """Put a fresh LoRA adapter on `model`, make it the active one, freeze all else, print the table by tower.

    `alpha` is 2 x `rank` unless given. `layers` are decoder layers; None means the upper half: what lies below
    can then be cached. `targets` are the last parts of module names ("q_proj"), or every linear projection of those
    layers and of the other towers in `within`, a convolution of one pixel included.

    On a model that carries adapters already the new one needs a `name` of its own; the others stay as they are and
    compute nothing until `named.switch` makes one of them active.

    `config` takes the place of `rank`, `alpha` and `dropout` and may be any of peft's LoRA kinds: DoRA (`use_dora`), rsLoRA
    (`use_rslora`), `rank_pattern`, PiSSA (`init_lora_weights="pissa"`), and so on. Its `target_modules`, where it names any,
    take the place of `layers`, `targets` and `within`. EVA (`init_lora_weights="eva"`) starts at random until
    `peft.initialize_lora_eva_weights(model, batches, adapter_name=name)` has read batches of inputs. LoRA+ is a setting of
    training, `TrainSettings.b_rate`.

    Raises `AdapterError` for a name that is taken, a target or tower that matches nothing, a layer out of range, for what peft
    refuses, for a second adapter beside one that changes the base's own weights (PiSSA, biases), and inside
    `torch.inference_mode`, whose tensors can never train.
    """
    if torch.is_inference_mode_enabled():
        raise AdapterError("an adapter attached inside torch.inference_mode could never train; attach it outside")
    refuse_name(model, name)
    if config is None:
        refuse_rank(rank)
        chosen = LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, lora_dropout=dropout)
    else:
        chosen = _given(config, (rank, alpha, dropout) == (RANK, None, 0.0))
        if chosen.target_modules and (layers is not None or targets != EVERYWHERE or tuple(within) != ("language",)):
            raise AdapterError("config has target_modules of its own; leave layers, targets and within out, or those")
    if not chosen.target_modules and not chosen.target_parameters:
        chosen.target_modules = set(target_names(base_model(model), layers, targets, tuple(within)))
    refuse_beside(model, chosen)
    if rewrites(chosen) and stored_as(model) == "nf4":
        raise AdapterError(
            f"{chosen.init_lora_weights} changes the base's weights, which four bits cannot take up; load it without four_bit"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = _fresh(model, chosen, name)
    print(towers(adapted))
    return adapted


def _given(config: LoraConfig, alone: bool) -> LoraConfig:
    """A copy of the caller's configuration: peft writes into what it is given."""
    if not isinstance(config, LoraConfig):
        raise AdapterError(f"config is a {type(config).__name__}; give a peft.LoraConfig")
    if not alone:
        raise AdapterError(
            "rank, alpha or dropout is given beside a config; set it there (r, lora_alpha, lora_dropout)"
        )
    if config.layer_replication or config.alora_invocation_tokens:
        raise AdapterError("layer_replication and alora_invocation_tokens change how the model runs: use peft alone")
    chosen = copy.deepcopy(config)
    chosen.inference_mode = False
    return chosen


def _fresh(model: nn.Module, config: LoraConfig, name: str) -> PeftModel:
    """The adapter put on and active; parameters of the base that it changes or trains are listed in `BESIDE`."""
    base = base_model(model)
    touched = config.bias != "none" or rewrites(config)
    before = [(p, p.detach().clone()) for p in base.parameters()] if touched else []
    try:
        with adding(model, name), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "lora with eva initialization")  # about memory only
            adapted = put_on(model, config, name)
            activate(adapted, name)
    except Exception as error:  # peft's own refusals are of many kinds
        reason = on_one_line(error, 400)
        raise AdapterError(f"peft cannot put this adapter on the model: {reason}") from error
    own = {id(p) for n, p in adapted.named_parameters() if not OF_ADAPTERS.search(f".{n}")}
    changed = [(p, old) for p, old in before if id(p) in own and (p.requires_grad or not torch.equal(p, old))]
    if changed:
        setattr(base, BESIDE, changed)
    return adapted


def detach(model: nn.Module) -> PreTrainedModel:
    """The base under its adapters, all of them taken off without a trace, so that others can be attached; a bare model as it is.

    Raises `AdapterError` where an adapter is added to the weights for the time being: subtracting it would round them.
    """
    if any(isinstance(module, BaseTunerLayer) and module.merged for module in base_model(model).modules()):
        raise AdapterError(
            "this adapter is merged into the weights (merge_adapter), which cannot be undone exactly: load the base again, or "
            "call unmerge_adapter() first, which leaves rounding errors"
        )
    return remove_all(model)


def merge(model: PeftModel) -> PreTrainedModel:
    """The base with the active adapter's product added to its weights, in place: faster, and from now on another base.

    Where several are active, their sum is added. Adapters that are not active belong to the old base: they are taken off, and
    that is printed. What was trained beside the adapter stays, too. Raises `AdapterError` unless an active adapter can be
    merged: four-bit weights would be rounded again and lose part of it, and a weight that two modules share would change for
    both.
    """
    merging = active_names(model)
    if not merging:
        raise AdapterError(
            f"none of {', '.join(model.peft_config)} is active, so none can be merged: switch(model, name) first"
        )
    for name in merging:
        own_config(model, name)
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
    _refuse_shared(model, tuned, merging)
    left = [name for name in model.peft_config if name not in merging]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about modules that are merged already, or not
        try:
            model.merge_adapter()  # every module or, if one fails, none
        except (ValueError, RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
            model.unmerge_adapter()
            reason = on_one_line(error)
            raise AdapterError(f"this adapter cannot be merged into the weights ({reason}): use it unmerged") from error
        merged = model.merge_and_unload()
    if left:
        print(f"{', '.join(merging)} merged; {', '.join(left)} taken off, which belonged to the base as it was")
    merged.__dict__.pop(BESIDE, None)
    unmark(merged)
    return merged


def _refuse_shared(model: nn.Module, tuned: Mapping[str, BaseTunerLayer], merging: Iterable[str]) -> None:
    """Raise `AdapterError` if an adapted weight is shared with another module, as tied embeddings are."""
    parameters = model.named_parameters(remove_duplicate=False)
    uses = Counter(id(parameter) for name, parameter in parameters if ".modules_to_save." not in name)
    for name, module in tuned.items():
        if not isinstance(module, LoraLayer) or not {*module.lora_A, *module.lora_embedding_A} & set(merging):
            continue
        weight = getattr(module.get_base_layer(), "weight", None)
        if weight is not None and uses[id(weight)] > 1:
            raise AdapterError(
                f"{name} shares its weight with another module (tied embeddings), which merging would change too: use the "
                "adapter unmerged"
            )
