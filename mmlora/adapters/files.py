"""An adapter as files: peft's own two, what else was trained, the processor, and a card.

`adapter_config.json` names the base by its hub id and revision, so that plain peft finds it; the tensors' metadata says
which stored weights it was trained on, so that it loads onto no other base, and holds hashes of the folder's files, so that
a changed file is noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mmlora.adapters import config as configs
from mmlora.adapters import integrity
from mmlora.adapters.card import card
from mmlora.adapters.config import CONFIG, TENSORS
from mmlora.adapters.filling import PREFIX, Misfit, fill, own_values
from mmlora.adapters.identity import base_parameters, check_base, refuse_other_state
from mmlora.adapters.named import own_config
from mmlora.adapters.wrapping import (
    BESIDE,
    DEFAULT,
    AdapterError,
    activate,
    adding,
    put_on,
    refuse_beside,
    refuse_name,
    rewrites,
)
from mmlora.errors import MMLoraError, on_one_line
from mmlora.files import refusals
from mmlora.guests import UNKNOWN_LICENCE
from mmlora.models import connector
from mmlora.models.base import Base, base_of, own_name, stored_as
from mmlora.models.resolution import set_side
from mmlora.models.vlm import VLM, base_model, load_base
from mmlora.models.words import refuse_unfit
from mmlora.paths import expanded

ADAPTER = TENSORS
TRAINED = "trained.safetensors"  # what was trained beside the adapter, such as a connector; plain peft leaves it out


def save_adapter(
    model: PeftModel,
    folder: str | Path,
    facts: Mapping[str, object],
    *,
    name: str | None = None,
    processor: Any = None,
    data_licence: str = UNKNOWN_LICENCE,
) -> Path:
    """Write the adapter's files and a filled `README.md` into `folder`; returns it.

    `name` says which one where the model carries several. `facts` become rows of the card's table, in order. With
    `processor`, `load_vlm(folder)` gives back exactly what was trained, chat template and picture side included.
    `data_licence` is the hub's name for the licence of the training data; the card's follows from it and from the base's.
    Raises `AdapterError` for a model that carries no adapter, or several and no `name`, and `FileError` if the folder
    cannot be written.
    """
    name, _ = own_config(model, name)
    folder = Path(folder)
    beside = _ready(_beside(model))
    base = base_of(model, beside)
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        connector.keep(base_model(model), folder)
        if processor is not None:
            processor.save_pretrained(folder)
        write(model, base, folder, beside, name)
        text = card(model, base, facts, data_licence, sorted(beside), name)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def write(
    model: PeftModel,
    base: Base,
    folder: str | Path,
    beside: Mapping[str, torch.Tensor] | None = None,
    name: str | None = None,
) -> Path:
    """Write the adapter of this name, or the only one, on `base`, and the tensors trained `beside` it; returns the folder.

    The adapter's tensors are written last, because they hold the hashes of the other files: a folder that was only partly
    written is noticed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name, own_settings = own_config(model, name)
    # save_embedding_layers=False, or else peft asks the hub whether they changed
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    taken = {own_name(key.removeprefix(PREFIX)) for key in own}  # such as biases, which peft itself saves
    beside = {key: tensor for key, tensor in (beside or {}).items() if key not in taken}
    marks = {
        "format": "pt",
        "base_model": base.name,
        "base_revision": base.revision or "",
        "base_weights": base.weights,
        "base_stored": stored_as(model),
    }
    config = {**own_settings.to_dict(), "inference_mode": True}
    config |= {"base_model_name_or_path": base.name, "revision": base.revision}
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / TRAINED).unlink(missing_ok=True)
    if beside:
        save_file(beside, folder / TRAINED, metadata=marks)
    ready = _ready(own)
    marks[integrity.NUMBERS] = integrity.of_tensors(ready)
    marks[integrity.FILES] = json.dumps(integrity.of_files(folder, besides=ADAPTER))
    save_file(ready, folder / ADAPTER, metadata=marks)
    return folder


def _beside(model: PeftModel) -> dict[str, torch.Tensor]:
    """What trains beside the adapter, or was loaded with it."""
    kept = {id(parameter) for parameter, _ in getattr(base_model(model), BESIDE, ())}
    return {n: p for n, p in base_parameters(model).items() if p.requires_grad or id(p) in kept}


def _ready(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def load_vlm(
    name: str | Path = "smolbridge",
    *,
    base: str | Path | None = None,
    side: int | None = None,
    revision: str | None = None,
    four_bit: bool = False,
) -> VLM:
    """Load a model by its name, as `load_base` does, or what was trained from an adapter's folder.

    An adapter's folder names its base and holds its processor, so what comes back is what was trained. `base` is the folder
    or hub id of that base, for when it is no longer under the name that the adapter gives; its weights must be the same.
    Raises what `load_base` and `load_adapter` raise.
    """
    folder = expanded(name)
    if not os.path.isfile(folder / CONFIG):  # Path.is_file raises where a name is too long
        if os.path.isdir(folder) and (
            (folder / ADAPTER).is_file() or (folder / configs.PICKLE).is_file() or any(folder.glob(f"*/{CONFIG}"))
        ):
            configs.refuse_without(folder, CONFIG)
        if base is not None:
            raise AdapterError(f"{name} is not an adapter's folder, so it has no base; leave `base` out")
        return load_base(name, side=side, revision=revision, four_bit=four_bit)
    vlm = connector.kept(_named_base(folder, base, revision, four_bit), folder)
    processor = _kept_processor(vlm.processor, folder)
    refuse_unfit(str(name), base_model(vlm.model), processor)
    if side is not None:
        set_side(processor, side)
    return VLM(str(name), _load(vlm.model, folder, DEFAULT, base is not None), processor)


def _named_base(folder: Path, base: str | Path | None, revision: str | None, four_bit: bool) -> VLM:
    """The base that the caller gives, or else the one that the adapter names. Raises `AdapterError` if it cannot be loaded."""
    named = configs.named_base(folder)
    if base is None and named is None:
        raise AdapterError(f"the adapter in {folder} names no base: give it, load_vlm({str(folder)!r}, base=…)")
    try:
        known = configs.revision_of(folder) if base is None else None
        return load_base(base or str(named), revision=revision or known, four_bit=four_bit)
    except MMLoraError as error:
        whose = f"the adapter in {folder} was trained on {named}"
        if base is None:
            way = f"if it is elsewhere now, say where: load_vlm({str(folder)!r}, base=…)"
            raise AdapterError(f"{whose}, which cannot be loaded ({error}); {way}") from error
        raise AdapterError(f"{whose}, and {base}, which was given for it, cannot be loaded: {error}") from error


def _kept_processor(own: Any, folder: Path) -> Any:
    """The processor saved beside the adapter, or else the base's."""
    if not (folder / "tokenizer_config.json").is_file():
        return own
    pictures = ("processor_config.json", "preprocessor_config.json")
    if hasattr(own, "image_processor") and not any((folder / file).is_file() for file in pictures):
        print(f"{folder} has a tokenizer but no image processor, so both are taken from the base")
        return own
    try:
        return type(own).from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises no kind of its own
        reason = on_one_line(error, 300)
        raise AdapterError(f"the processor in {folder} cannot be read ({reason}); copy or fetch it again") from error


def load_adapter(model: nn.Module, folder: str | Path, name: str = DEFAULT) -> PeftModel:
    """`model` with the adapter in `folder`, frozen, active and in evaluation mode, as plain peft loads it.

    The adapter may come from any program. On a model that carries adapters already the new one needs a `name` of its own, and
    must have been trained on what this model is now: the same stored weights, and the same connector where one was trained
    beside it. The others stay, and are not active.

    Reads safetensors only. Raises `AdapterError` when the base is another one, when the file's tensors and the adapter's
    parameters do not match one to one, when a file has changed since it was saved, or when the name is taken; the model is
    then as it was.
    """
    return _load(model, Path(folder), name)


def _load(model: nn.Module, folder: Path, name: str = DEFAULT, chosen: bool = False) -> PeftModel:
    """`load_adapter`; a `chosen` base was given by the caller and is trusted where the adapter holds no hash of its base."""
    refuse_name(model, name)
    config = configs.read(folder)
    refuse_beside(model, config)
    tensors, marks = _read(folder, ADAPTER)
    beside = _read(folder, TRAINED)[0] if (folder / TRAINED).is_file() else {}
    biases = {own_name(key.removeprefix(PREFIX)) for key in tensors if config.bias != "none" and key.endswith(".bias")}
    check_base(model, beside.keys() | biases, marks, config.base_model_name_or_path, folder, chosen)
    own = base_parameters(model)
    if problem := _mismatch(beside, {key: own[key] for key in beside if key in own}):
        raise AdapterError(f"what was trained beside the adapter in {folder} does not fit this model: {problem}")
    further = isinstance(model, PeftModel)
    if further:
        refuse_other_state(model, beside, own, folder)
    config.base_model_name_or_path = None  # peft would warn about a name that is merely spelled otherwise
    with adding(model, name):
        adapted = _filled(model, config, tensors, folder, name)
        integrity.check(folder, ADAPTER, tensors, marks)
        activate(adapted, name)
    if not further:
        adapted.requires_grad_(False)  # peft lets biases train
        changed = getattr(base_model(adapted), BESIDE)
        known = {id(parameter) for parameter, _ in changed}
        changed += [(own[key], own[key].detach().clone()) for key in beside if id(own[key]) not in known]
        for key, tensor in beside.items():
            own[key].data = tensor.to(own[key].device)  # in the dtype that it was trained in
    return adapted.eval()


def _filled(
    model: nn.Module, config: LoraConfig, tensors: Mapping[str, torch.Tensor], folder: Path, name: str
) -> PeftModel:
    """The model with the adapter; the base's parameters that it changes are listed in the base's attribute `BESIDE`."""
    base = base_model(model)
    own: list[tuple[nn.Parameter, torch.Tensor]] = []
    if rewrites(config):  # it rewrites the base's weights first, and is a difference from the rewritten ones
        own = [(p, p.detach().clone()) for m in base.modules() if isinstance(m, nn.Linear) for p in m.parameters()]
    try:
        if not isinstance(model, PeftModel):
            setattr(base, BESIDE, own)
        adapted = put_on(model, config, name)
        own[:] = [(p, value) for p, value in own if not torch.equal(p, value)]
        known = {id(p) for p, _ in own}
        own += [(p, value) for p, value in own_values(adapted, tensors) if id(p) not in known]
        if own and isinstance(model, PeftModel):
            raise Misfit("it changes parameters of the base, which the adapters here share")
        fill(adapted, tensors, name)
    except Misfit as misfit:
        raise AdapterError(
            f"the adapter in {folder} does not fit this model: {misfit}; it was made for another model, or with names that the "
            "installed peft and transformers do not know"
        ) from misfit
    except Exception as error:  # peft raises many types, some of them when half of the modules are wrapped
        raise AdapterError(f"the adapter in {folder} does not fit this model: {on_one_line(error, 400)}") from error
    return adapted


def _read(folder: Path, file: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    configs.refuse_without(folder, file)
    try:
        with safe_open(folder / file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        if (folder / file).read_bytes()[:24].startswith(b"version https://git-lfs"):
            raise AdapterError(
                f"{folder / file} is only a git-lfs pointer; fetch the file itself: git lfs pull"
            ) from error
        raise AdapterError(f"{folder / file} is damaged ({error}); fetch it again") from error


def _mismatch(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """What is missing, unexpected or of another shape, in words; empty when all fits."""
    for what, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            return f"{len(names)} tensors are {what}, such as {min(names)}"
    wrong = [name for name in sorted(found) if found[name].shape != expected[name].shape]
    return f"{wrong[0]} has shape {list(found[wrong[0]].shape)}, not {list(expected[wrong[0]].shape)}" if wrong else ""
