"""An adapter's `adapter_config.json`, whoever wrote it: read in full, or refused with what cannot be used."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import peft
from peft import LoraConfig

from mmlora.adapters.wrapping import AdapterError

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
#: What a task type of peft adds to a decoder: nothing, but for a head that scores instead of one that speaks.
SPEAKS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION")
NUMBERS = 32  # characters of a value that are shown


def named_base(folder: Path) -> str | None:
    """The base that the adapter's configuration names; None where it names none. Raises `AdapterError`."""
    named = _said(folder).get("base_model_name_or_path")
    return named if isinstance(named, str) and named else None


def revision_of(folder: Path) -> str | None:
    """The commit or tag of its base on the hub. Raises `AdapterError`."""
    return _said(folder).get("revision")


def read(folder: Path) -> LoraConfig:
    """The configuration as peft has it. Raises `AdapterError` for what is no LoRA, or one that cannot be computed here."""
    said = _said(folder)
    kind = said.pop("peft_type", None)
    if kind != "LORA":
        what = f"names the kind {kind!r}" if kind is not None else "names no peft_type"
        raise AdapterError(f"{folder / CONFIG} {what}; only LoRA adapters can be loaded here")
    if said.get("task_type") not in SPEAKS:
        raise AdapterError(
            f"the adapter in {folder} was trained for the task {said['task_type']}, which does not write words"
        )
    for name in ("layer_replication", "alora_invocation_tokens"):
        if said.get(name):
            raise AdapterError(
                f"the adapter in {folder} uses {name}, which changes how the model runs beside its weights: use peft alone"
            )
    _leave_out_unknown(said, folder)
    try:
        return LoraConfig(**(said | {"inference_mode": True}))
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise AdapterError(
            f"{folder / CONFIG} is no configuration that peft {peft.__version__} takes: {_line(error)}"
        ) from error


def _said(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    refuse_without(folder, CONFIG)
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file} cannot be read as JSON ({_line(error)}); copy or fetch it again") from error
    if not isinstance(said, dict):
        raise AdapterError(f"{file} is no JSON object; copy or fetch it again")
    return said


def refuse_without(folder: Path, name: str) -> None:
    """Raise `AdapterError` where the folder lacks the file, with what it has instead."""
    if (folder / name).is_file():
        return
    if (folder / PICKLE).is_file() and name == TENSORS:
        raise AdapterError(
            f"{folder} has its tensors as {PICKLE}, and pickles are not read, for they can run code: load it with peft where "
            f"you trust it and save it again, which writes {TENSORS}"
        )
    inside = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}"))
    hint = (
        f"it has adapters in its folders {', '.join(inside)}: give one"
        if inside
        else "give a folder that save_adapter wrote"
    )
    raise AdapterError(f"{folder} has no {name}; {hint} (pickles are not read)")


def _leave_out_unknown(said: dict[str, Any], folder: Path) -> None:
    """Take out what a newer peft wrote: in silence where it is off, with a line where it is a number or a word.

    Raises `AdapterError` for what is switched on, since nobody can know here what it does.
    """
    said.pop("runtime_config", None)  # how peft ran, not what it computed
    known = inspect.signature(LoraConfig).parameters
    unknown = {name: said.pop(name) for name in sorted(said.keys() - known.keys())}
    unknown = {name: value for name, value in unknown.items() if value not in (None, False, [], {}, "")}
    for name, value in unknown.items():
        told = f"{name} = {str(value)[:NUMBERS]}, which peft {peft.__version__} does not know"
        if value is True or isinstance(value, (dict, list)):
            raise AdapterError(f"the adapter in {folder} has {told}: update peft, or load an adapter without it")
        print(f"the adapter in {folder} has {told} and leaves out, as plain peft does")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
