"""A new adapter out of others: the weighted sum of their updates to the base, exact or at a lower rank.

An adapter adds s·B·A to a weight, where s is its alpha over its rank. Sources: task arithmetic, arXiv 2212.04089; TIES, arXiv
2306.01708; DARE, arXiv 2311.03099. The combining itself is peft's `add_weighted_adapter`; here is what it does not refuse though
it would come out wrong, and how far an approximation is from the sum.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch.nn import functional as F

from mmlora.adapters.named import own_config
from mmlora.adapters.wrapping import AdapterError, adding, refuse_name, rewrites
from mmlora.errors import on_one_line

#: Of the updates: `cat` is their exact sum and its ranks add up; the others approximate by a singular value decomposition.
Sum = Literal["cat", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"]
#: Of A and B apart: (ΣwA)(ΣwB) holds products of one adapter's B with another's A, which no adapter learned.
Apart = Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
How = Literal[Sum, Apart]
SUMS, APART = get_args(Sum), get_args(Apart)


def combine(
    model: PeftModel,
    names: Sequence[str],
    weights: Sequence[float],
    name: str,
    how: How = "cat",
    *,
    rank: int | None = None,
    density: float | None = None,
    cross_terms: bool = False,
    seed: int = 0,
) -> float:
    """Add an adapter called `name` that is Σ weight · update of the adapters `names`; frozen, and not active.

    Returns ‖combined − sum‖ / ‖sum‖ in the Frobenius norm over all adapted weights, 0 up to rounding for `cat`, and prints it.

    `how` is `cat` (exact, and its rank is the sum of the ranks), `svd` (the nearest of `rank`, by default the highest of the
    ranks), or one that first drops values, keeping the share `density` of each update: by size (`magnitude_prune_svd`,
    `ties_svd`) or by chance, fixed by `seed` (`dare_linear_svd`, `dare_ties_svd`); `ties` forms then average the values that
    agree in sign, so they are no sum. The forms without `_svd` combine A and B apart and need `cross_terms=True`. Weights may
    be negative (task arithmetic), but for `ties` forms, whose signs are elected before the weights are applied.

    Raises `AdapterError`, and leaves the model as it was, for unknown names, and for adapters that peft would combine wrongly
    without a word: rsLoRA, DoRA and other variants, biases, and modules that were trained whole.
    """
    refuse_name(model, name)
    configs = [own_config(model, each)[1] for each in names]
    _check_form(names, weights, how, density, rank, cross_terms)
    for each, config in zip(names, configs):
        _refuse_kind(model, each, config)
    _refuse_places(model, names, configs, how)
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    asked = {"svd_rank": rank, "density": density}
    options = {option: value for option, value in asked.items() if value is not None}
    try:
        with adding(model, name), torch.no_grad(), torch.random.fork_rng(), _float32_factors(model, name):
            torch.manual_seed(seed)
            model.add_weighted_adapter(
                list(names), [float(w) for w in weights], name, how, svd_full_matrices=False, **options
            )
            _fill_up(model, name)
            error = _distance(model, names, weights, name)
    except (ValueError, RuntimeError, TypeError, KeyError) as failed:
        reason = on_one_line(failed)
        raise AdapterError(f"{', '.join(names)} cannot be combined by {how}: {reason}") from failed
    for parameter, learned in learning:  # peft freezes what has the new name anywhere in its own
        parameter.requires_grad_(learned)
    model.peft_config[name].inference_mode = True  # it stays frozen when it becomes active
    terms = " + ".join(f"{weight:g} × {each}" for each, weight in zip(names, weights))
    print(f"{name} = {terms} by {how}, rank {model.peft_config[name].r}, relative error {error:.1e}")
    return error


def _check_form(
    names: Sequence[str], weights: Sequence[float], how: str, density: float | None, rank: int | None, cross_terms: bool
) -> None:
    """Raise `AdapterError` for a call that makes no sense, before anything is computed."""
    if how not in SUMS + APART:
        raise AdapterError(f"adapters cannot be combined by {how!r}; there are {', '.join(SUMS + APART)}")
    if len(names) != len(weights) or len(set(names)) != len(names) or not names:
        raise AdapterError(
            f"{len(names)} adapters ({', '.join(names)}) and {len(weights)} weights; give each once, with a weight"
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise AdapterError(f"the weights are {', '.join(map(str, weights))}; give finite numbers")
    if len(names) == 1 and how != "cat":
        raise AdapterError(f"{how} takes at least two adapters; to scale one, use cat")
    if how in APART:
        said = f"{how} combines A and B apart, so each adapter's B meets the others' A: cross terms that are no sum of updates"
        if not cross_terms:
            near = "cat" if how == "linear" else f"{how}_svd"
            raise AdapterError(f"{said}; use {near}, or give cross_terms=True")
        print(said)
    sparse = how not in ("cat", "svd", "linear")
    if sparse and (density is None or not 0 < density <= 1):
        raise AdapterError(f"{how} keeps a share of each update; give density, above 0 and at most 1 (it is {density})")
    if not sparse and density is not None:
        raise AdapterError(f"{how} keeps everything; leave density out")
    if rank is not None and (not how.endswith("svd") or rank < 1):
        raise AdapterError(f"rank is for the forms that end in svd, and at least 1; {how} and {rank} were given")
    if "ties" in how and any(weight < 0 for weight in weights):
        raise AdapterError(
            f"{how} elects signs before weights are applied, so negative weights would mean something else; use cat or svd"
        )


def _refuse_kind(model: PeftModel, name: str, config: LoraConfig) -> None:
    """Raise `AdapterError` for an adapter that is more than s·B·A, which peft combines as if it were not."""
    layers = [m for m in model.modules() if isinstance(m, LoraLayer) and name in m.scaling]
    kinds = {
        f"{config.init_lora_weights} (a combined one would change the base's weights once more)": rewrites(config),
        "rsLoRA (a combined one would be scaled by the root of its rank once more)": config.use_rslora,
        "DoRA or another variant (its magnitudes would be lost)": any(name in layer.lora_variant for layer in layers),
        "an adapter with biases (they would be lost)": config.bias != "none" or config.lora_bias,
        "an adapter with modules that were trained whole (they would be lost)": config.modules_to_save,
        "an adapter with tokens that were trained (they would be lost)": config.trainable_token_indices,
        "an adapter on bare parameters (peft cannot combine them)": config.target_parameters,
    }
    for kind, found in kinds.items():
        if found:
            raise AdapterError(
                f"{name} is {kind}; only plain LoRA can be combined, so switch to it or merge it instead"
            )


def _refuse_places(model: PeftModel, names: Sequence[str], configs: Sequence[LoraConfig], how: str) -> None:
    """Raise `AdapterError` where the first configuration, which peft goes on with, would not cover all adapted modules."""
    for each, config in zip(names, configs):
        for field in ("layers_to_transform", "exclude_modules", "target_modules_to_tie"):
            if getattr(config, field, None) not in (None, [], set(), "") and len(names) > 1:
                raise AdapterError(
                    f"{each} chooses its modules by {field}, of which peft would keep the first adapter's for all; "
                    "attach with full names"
                )
    layers = [(place, module) for place, module in model.named_modules() if isinstance(module, LoraLayer)]
    places = {each: {place for place, module in layers if each in module.scaling} for each in names}
    first, *others = places.values()
    if how in APART and any(other != first for other in others):
        counts = ", ".join(f"{each} {len(found)}" for each, found in places.items())
        raise AdapterError(
            f"{how} needs adapters on the same modules, and these are not ({counts} modules); use cat or svd"
        )


@contextmanager
def _float32_factors(model: PeftModel, name: str) -> Iterator[None]:
    """Inside, peft makes the new factors in float32, as every other adapter's: a base in half precision would round them."""
    tuner = model.base_model
    inject = tuner.inject_adapter

    def injected(base: torch.nn.Module, adapter: str) -> None:
        inject(base, adapter)
        tuner._cast_adapter_dtype(adapter_name=adapter, autocast_adapter_dtype=True)

    tuner.inject_adapter = injected
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The density .* no pruning")
            yield
    finally:
        del tuner.inject_adapter


def _fill_up(model: PeftModel, name: str) -> None:
    """Give every module the rank that the configuration says: a decomposition has no more columns than the weight."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            down, up = module.lora_A[name].weight, module.lora_B[name].weight
            lacking = module.r[name] - len(down)
            if lacking and down.dim() == 2:
                down.data = F.pad(down.data, (0, 0, 0, lacking))
                up.data = F.pad(up.data, (0, lacking))


def _distance(model: PeftModel, names: Sequence[str], weights: Sequence[float], name: str) -> float:
    """‖combined − sum‖ / ‖sum‖ over all modules that any of these adapters is on."""
    apart = whole = 0.0
    for module in model.modules():
        if not isinstance(module, LoraLayer):
            continue
        there = [(each, weight) for each, weight in zip(names, weights) if each in module.scaling]
        if not there and name not in module.scaling:
            continue
        if not there or name not in module.scaling:
            raise ValueError("peft put the combined adapter on other modules than these are on")
        updates = (weight * module.get_delta_weight(each).double() for each, weight in there)
        exact = sum(updates, torch.zeros((), dtype=torch.float64))
        combined = module.get_delta_weight(name).double()
        apart += (combined - exact).square().sum().item()
        whole += exact.square().sum().item()
    return math.sqrt(apart / whole) if whole else math.sqrt(apart)
