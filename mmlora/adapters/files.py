"""An adapter as files: peft's own two, what else was trained, the processor, and a card.

`adapter_config.json` names the base by its hub id and revision, so that plain peft finds it; the tensors' metadata says
which stored weights it was trained on, so that no other base takes it.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mmlora.adapters.card import card
from mmlora.adapters.lora import BESIDE, AdapterError, refuse_wrapped, wrapped
from mmlora.guests import UNKNOWN_LICENCE
from mmlora.models import connector
from mmlora.models.base import Base, base_of, stored_as
from mmlora.models.resolution import set_side
from mmlora.models.vlm import VLM, base_model, load_base

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TRAINED = "trained.safetensors"  # what was trained beside the adapter, such as a connector; plain peft leaves it out


def save_adapter(
    model: PeftModel,
    folder: str | Path,
    facts: Mapping[str, object],
    *,
    processor: Any = None,
    data_licence: str = UNKNOWN_LICENCE,
) -> Path:
    """Write the adapter's files and a filled `README.md` into `folder`; returns it.

    `facts` become rows of the card's table, in order. With `processor`, `load_vlm(folder)` gives back exactly what was
    trained, chat template and picture side included. `data_licence` is the hub's name for the licence of the training
    data; the card's follows from it and from the base's.
    """
    beside = _ready(_beside(model))
    base = base_of(model, beside)
    folder = write(model, base, folder, beside)
    connector.keep(base_model(model), folder)
    if processor is not None:
        processor.save_pretrained(folder)
    (folder / "README.md").write_text(card(model, base, facts, data_licence, sorted(beside)), encoding="utf-8")
    return folder


def write(model: PeftModel, base: Base, folder: str | Path, beside: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Write the adapter on `base`, its configuration, and the tensors trained `beside` it; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marks = {
        "format": "pt",
        "base_model": base.name,
        "base_revision": base.revision or "",
        "base_weights": base.weights,
        "base_stored": stored_as(model),
    }
    own = get_peft_model_state_dict(
        model, save_embedding_layers=False
    )  # or else peft asks the hub whether they changed
    save_file(_ready(own), folder / ADAPTER, metadata=marks)
    config = {**model.peft_config["default"].to_dict(), "inference_mode": True}
    config |= {"base_model_name_or_path": base.name, "revision": base.revision}
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / TRAINED).unlink(missing_ok=True)
    if beside:
        save_file(dict(beside), folder / TRAINED, metadata=marks)
    return folder


def _beside(model: PeftModel) -> dict[str, torch.Tensor]:
    """What trains beside the adapter, or was loaded with it."""
    base = base_model(model)
    kept = {id(parameter) for parameter, _ in getattr(base, BESIDE, ())}
    named = ((n.replace(".base_layer.", "."), p) for n, p in base.named_parameters() if ".lora_" not in n)
    return {n: p for n, p in named if p.requires_grad or id(p) in kept}


def _ready(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def load_vlm(
    name: str | Path = "smolbridge", *, side: int | None = None, revision: str | None = None, four_bit: bool = False
) -> VLM:
    """Load a model by its name, as `load_base` does, or what was trained from an adapter's folder.

    An adapter's folder names its base and holds its processor, so what comes back is what was trained. Raises what
    `load_base` and `load_adapter` raise.
    """
    folder = Path(name).expanduser()
    if not (folder / CONFIG).is_file():
        return load_base(name, side=side, revision=revision, four_bit=four_bit)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    vlm = load_base(config["base_model_name_or_path"], revision=config.get("revision"), four_bit=four_bit)
    vlm = connector.kept(vlm, folder)
    kept = (folder / "tokenizer_config.json").is_file()
    processor = type(vlm.processor).from_pretrained(folder) if kept else vlm.processor
    if side is not None:
        set_side(processor, side)
    return VLM(str(name), load_adapter(vlm.model, folder), processor)


def load_adapter(model: nn.Module, folder: str | Path) -> PeftModel:
    """Wrap `model` with the adapter in `folder`, frozen and in evaluation mode.

    Reads safetensors only. Raises `AdapterError` when the base is another one, when keys or shapes do not fit exactly,
    or when the model is wrapped already; the model is then as it was.
    """
    folder = Path(folder)
    refuse_wrapped(model)
    tensors, marks = _read(folder, ADAPTER)
    config = LoraConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise AdapterError(f"{folder} holds a {config.peft_type} adapter; only LoRA can be loaded here")
    beside = _read(folder, TRAINED)[0] if (folder / TRAINED).is_file() else {}
    _check_base(model, beside, marks, config.base_model_name_or_path, folder)
    own = dict(base_model(model).named_parameters())
    if problem := _mismatch(beside, {name: own[name] for name in beside if name in own}):
        raise AdapterError(f"what was trained beside the adapter in {folder} does not fit this model: {problem}")
    config.base_model_name_or_path = None  # peft would warn about a name that is merely spelled otherwise
    try:
        adapted = wrapped(model, config)
    except ValueError as error:
        raise AdapterError(f"the adapter in {folder} does not fit this model: {error}") from error
    problem = _mismatch(tensors, get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if problem:
        adapted.unload()
        raise AdapterError(f"the adapter in {folder} is not what its configuration says: {problem}; fetch it again")
    set_peft_model_state_dict(adapted, tensors)
    setattr(base_model(adapted), BESIDE, [(own[name], own[name].detach().clone()) for name in beside])
    for name, tensor in beside.items():
        own[name].data = tensor.to(own[name].device)  # in the numbers that it was trained in
    return adapted.eval()


def _check_base(
    model: nn.Module, beside: Container[str], marks: Mapping[str, str], named: str | None, folder: Path
) -> None:
    """Raise `AdapterError` for another base; say so where the same weights are held in other numbers."""
    base = base_of(model, beside)
    if "base_weights" in marks:
        same = marks["base_weights"] == base.weights
    else:  # an adapter from elsewhere: its name is all there is
        same = not named or Path(named).name == Path(base.name).name
    if not same:
        raise AdapterError(
            f"the adapter in {folder} was trained on other weights ({named}) than this model's ({base.name}); load it onto "
            "the base it was trained on"
        )
    if marks.get("base_stored", stored_as(model)) != stored_as(model):
        print(f"the adapter in {folder} was trained on weights in {marks['base_stored']}, these are in {stored_as(model)}: "
              "a few answers may differ")  # fmt: skip


def _read(folder: Path, file: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    for name in (ADAPTER, CONFIG):
        if not (folder / name).is_file():
            raise AdapterError(f"{folder} has no {name}; give a folder that save_adapter wrote (pickles are not read)")
    try:
        with safe_open(folder / file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}
    except SafetensorError as error:
        raise AdapterError(f"{folder / file} is damaged ({error}); fetch it again") from error


def _mismatch(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """What is missing, unexpected or of another shape, in words; empty when all fits."""
    for what, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            return f"{len(names)} tensors are {what}, such as {min(names)}"
    wrong = [name for name in sorted(found) if found[name].shape != expected[name].shape]
    return f"{wrong[0]} has shape {list(found[wrong[0]].shape)}, not {list(expected[wrong[0]].shape)}" if wrong else ""
