"""Reading an adapter's `adapter_config.json`, whichever program wrote it; options that cannot be used here are named."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
from peft import LoraConfig

from mmlora.adapters.wrapping import AdapterError
from mmlora.errors import on_one_line

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
#: peft's task types that keep the decoder's language-model head; the others replace it by a head that scores.
SPEAKS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION")
NUMBERS = 32  # characters of a value that are shown
SHOWN = 300  # characters of a library's message


def named_base(folder: Path) -> str | None:
    """The base that the adapter's configuration names; None where it names none. Raises `AdapterError`."""
    named = _said(folder).get("base_model_name_or_path")
    return named if isinstance(named, str) and named else None


def revision_of(folder: Path) -> str | None:
    """The commit or tag of its base on the hub. Raises `AdapterError`."""
    return _said(folder).get("revision")


def read(folder: Path) -> LoraConfig:
    """The adapter's configuration. Raises `AdapterError` for an adapter that is not LoRA or that cannot be applied here."""
    said = _said(folder)
    kind = said.pop("peft_type", None)
    if kind != "LORA":
        what = f"names the kind {kind!r}" if kind is not None else "names no peft_type"
        raise AdapterError(f"{folder / CONFIG} {what}; only LoRA adapters can be loaded here")
    if said.get("task_type") not in SPEAKS:
        raise AdapterError(
            f"the adapter in {folder} was trained for the task {said['task_type']}, which writes no text; give another one"
        )
    for name in ("layer_replication", "alora_invocation_tokens"):
        if said.get(name):
            raise AdapterError(
                f"the adapter in {folder} uses {name}, which changes more than the model's weights; load it with peft itself"
            )
    _leave_out_unknown(said, folder)
    _refuse_unsound(said, folder)
    try:
        return LoraConfig(**(said | {"inference_mode": True}))
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise AdapterError(
            f"{folder / CONFIG} is not valid for peft {peft.__version__} ({on_one_line(error, SHOWN)}); fetch it again or update peft"
        ) from error


def _said(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    refuse_without(folder, CONFIG)
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{file} cannot be read as JSON ({on_one_line(error, SHOWN)}); copy or fetch it again"
        ) from error
    if not isinstance(said, dict):
        raise AdapterError(f"{file} is not a JSON object; copy or fetch it again")
    return said


def refuse_without(folder: Path, name: str) -> None:
    """Raise `AdapterError` if the folder lacks the file; the message says what it holds instead."""
    if (folder / name).is_file():
        return
    if (folder / PICKLE).is_file() and name == TENSORS:
        raise AdapterError(
            f"{folder} holds its tensors in {PICKLE}, and pickles are not read, because they can run code: if you trust it, "
            f"load it with peft and save it again, which writes {TENSORS}"
        )
    inside = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}"))
    hint = (
        f"there are adapters in its subfolders {', '.join(inside)}: give one of these"
        if inside
        else "give a folder that save_adapter wrote"
    )
    raise AdapterError(f"{folder} has no {name}; {hint} (pickles are not read)")


def _leave_out_unknown(said: dict[str, Any], folder: Path) -> None:
    """Drop options that only a newer peft knows: silently where they are off, with a printed line for a number or a word.

    Raises `AdapterError` for an option that is switched on, since the installed peft does not know what it does.
    """
    said.pop("runtime_config", None)  # how peft ran, not what it computed
    known = inspect.signature(LoraConfig).parameters
    unknown = {name: said.pop(name) for name in sorted(said.keys() - known.keys())}
    unknown = {name: value for name, value in unknown.items() if value not in (None, False, [], {}, "")}
    for name, value in unknown.items():
        told = f"{name} = {str(value)[:NUMBERS]}, which peft {peft.__version__} does not know"
        if value is True or isinstance(value, (dict, list)):
            raise AdapterError(f"the adapter in {folder} has {told}: update peft, or load an adapter without it")
        print(f"the adapter in {folder} has {told}; it is ignored, as plain peft does")


def _refuse_unsound(said: Mapping[str, Any], folder: Path) -> None:
    """Raise `AdapterError` for a value that peft would meet in its arithmetic only, or take for another one."""
    number = "a finite number", lambda value: _is_number(value) and math.isfinite(value)
    whole = "a whole number above 0", lambda value: _is_number(value) and isinstance(value, int) and value > 0
    truth = "true or false", lambda value: value is None or isinstance(value, bool)
    text = "text or null", lambda value: value is None or isinstance(value, str)
    expected = {"r": whole, "lora_alpha": number, "lora_dropout": number, "use_rslora": truth, "use_dora": truth,
                "base_model_name_or_path": text, "revision": text}  # fmt: skip
    found = [(name, said[name], kind) for name, kind in expected.items() if name in said]
    for name, kind in (("rank_pattern", whole), ("alpha_pattern", number)):
        pattern = said.get(name) or {}
        values = pattern.values() if isinstance(pattern, dict) else [pattern]
        found += [(name, value, kind) for value in values]
    for name, value, (what, holds) in found:
        if not holds(value):
            raise AdapterError(
                f"{folder / CONFIG} has {name} = {str(value)[:NUMBERS]!r}, which is not {what}; fetch it again, or correct it"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
