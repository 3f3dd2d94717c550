"""Loading an adapter's tensors with peft's own function, which also knows older names: all of them or none.

peft silently leaves out tensors that match no parameter. Here every tensor of the file must match a parameter, and every
parameter of the adapter a tensor; the one exception is a copy of the base's embedding matrix, which peft saves with an
adapter on it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from mmlora.errors import on_one_line
from mmlora.models.base import OF_ADAPTERS
from mmlora.models.vlm import base_model

PREFIX = "base_model.model."
_SHAPES = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch.Size\((.*?)\).*?model is torch.Size\((.*?)\)"
)


class Misfit(Exception):
    """Tensors that are not this model's adapter; the message says how many fit and names one that does not."""


def own_values(model: PeftModel, tensors: Mapping[str, torch.Tensor]) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """The parameters of the base that an adapter's file would change, such as biases, with copies of their values now."""
    base, found = dict(base_model(model).named_parameters(remove_duplicate=False)), {}
    for name, tensor in tensors.items():
        own = base.get(name.removeprefix(PREFIX))
        if own is not None and not OF_ADAPTERS.search(name) and not same_values(own, tensor):
            found[id(own)] = own
    return [(own, own.detach().clone()) for own in found.values()]


def fill(model: PeftModel, tensors: Mapping[str, torch.Tensor], adapter: str) -> None:
    """Load the file's tensors into the adapter of this name. Raises `Misfit`, after which the caller takes the adapter off."""
    for name, tensor in tensors.items():
        if ".lora_" in name and not tensor.is_floating_point():
            raise Misfit(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise Misfit(f"{name} holds numbers that are not finite")
    needed = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False).keys()
    given = {name: tensor for name, tensor in tensors.items() if name in needed or not _is_copy(model, name, tensor)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = set_peft_model_state_dict(model, given, adapter)
    except KeyError as error:  # a module that was trained whole
        raise Misfit(f"{error.args[0]} is missing") from error
    except RuntimeError as error:
        if found := _SHAPES.search(str(error)):
            name, theirs, ours = found.groups()
            raise Misfit(f"{name} has shape {theirs}, not {ours}") from error
        raise Misfit(on_one_line(error)) from error
    places = dict(model.named_parameters(remove_duplicate=False))
    # by identity, because tied parameters have two names
    filled = {id(place) for name, place in places.items() if name not in result.missing_keys}
    unfilled = [name for name in result.missing_keys if id(places.get(name)) not in filled]
    own = f".{adapter}."  # what other adapters hold is not in the file
    missing = sorted(n for n in unfilled if n in needed or (OF_ADAPTERS.search(n) and own in f"{n}."))
    unexpected = sorted(result.unexpected_keys)
    if unexpected or missing:
        raise Misfit("; ".join(_told(len(tensors), unexpected, missing)))


def _told(total: int, unexpected: list[str], missing: list[str]) -> Iterator[str]:
    if unexpected:
        fit = f"{total - len(unexpected)} of its {total}" if len(unexpected) < total else f"none of its {total}"
        yield f"{fit} tensors fit, {len(unexpected)} tensors are unexpected, such as {unexpected[0]}"
    if missing:
        yield f"{len(missing)} tensors are missing, such as {missing[0]}"


def _is_copy(model: PeftModel, name: str, tensor: torch.Tensor) -> bool:
    """Whether this is a copy of the base's own embedding matrix: under whatever name, it changes nothing."""
    base = base_model(model)
    if not name.endswith(".base_layer.weight"):
        return False
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    return any(same_values(weight, tensor) for end in ends if (weight := getattr(end, "weight", None)) is not None)


def same_values(own: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether a parameter already holds this tensor, in the parameter's own dtype."""
    return own.shape == tensor.shape and torch.equal(own.detach().cpu(), tensor.to(own.dtype).cpu())
