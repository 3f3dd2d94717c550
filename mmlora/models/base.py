"""Which weights an adapter stands on: recognised by what is stored, however it was loaded.

The same files give the same `Base` in float32, bfloat16, float16 or four bits. An adapter names its base by it, a cache
and a checkpoint are tied to it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from mmlora.errors import MMLoraError
from mmlora.files import sha256_of_all
from mmlora.guests import UNKNOWN_LICENCE

#: Found in the names of an adapter's parameters, and not of the base's, in an adapted model.
OF_ADAPTERS = re.compile(r"\.lora_|\.modules_to_save\.|\.trainable_tokens_")
FILE = (
    "base.json"  # beside weights that were put together here, whose files may differ between machines in a last digit
)


class BaseError(MMLoraError):
    """A record of a base that cannot be read; the message names the file and says what to do."""


@dataclass(frozen=True)
class Base:
    """A model as it was published: `name` is its hub id, a guest's name or its folder, `revision` the hub's commit.

    `licence` is the hub's name for it, "other" where nobody said. `weights` is a hash of the stored weights.
    """

    name: str
    revision: str | None
    licence: str
    weights: str


def of_folder(folder: Path) -> Base:
    """The base in a folder that `save_pretrained` wrote: by its own record, or else by its files. Raises `BaseError`."""
    if (folder / FILE).is_file():
        try:
            return Base(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise BaseError(
                f"{folder / FILE} is not a record of published weights ({error}); copy it again, or remove it, and the files are hashed instead"
            ) from error
    files = sorted(folder.glob("*.safetensors"))
    return Base(str(folder.absolute()), None, UNKNOWN_LICENCE, sha256_of_all(files))


def write(base: Base, folder: Path) -> None:
    """Keep the record beside the weights."""
    (folder / FILE).write_text(json.dumps(asdict(base), indent=1) + "\n", encoding="utf-8")


def mark(model: nn.Module, base: Base) -> None:
    """Let `base_of` and peft's own files name this base."""
    model.mmlora_base = base
    model.name_or_path = model.config.name_or_path = base.name


def unmark(model: nn.Module) -> None:
    """Let the model be told by its values from now on: it is no longer what was published."""
    model.__dict__.pop("mmlora_base", None)


def base_of(model: nn.Module, beside: Container[str] = ()) -> Base:
    """The base of a loaded model, adapted or not; one that was made by hand is told by its values.

    `beside` names parameters that were trained beside an adapter, and so are no values of the base.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = getattr(inner, "mmlora_base", None)
    return found or Base(type(inner).__name__, None, UNKNOWN_LICENCE, f"values {_values_hash(model, beside)}")


def stored_as(model: nn.Module) -> str:
    """What frozen weights are held in here: "float32", "bfloat16", "float16" or "nf4"."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    held = next(p.dtype for p in inner.parameters() if p.is_floating_point())
    return "nf4" if getattr(inner, "is_loaded_in_4bit", False) else str(held).removeprefix("torch.")


def own_name(name: str) -> str:
    """The base's own name for a parameter that an adapter has wrapped."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's values as bytes, in its own dtype, for a hash."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _values_hash(model: nn.Module, beside: Container[str]) -> str:
    """All names and shapes, and 64 values of each tensor as bfloat16, under any adapter."""
    digest = hashlib.sha256()
    named = ((own_name(n), p) for n, p in model.named_parameters() if not OF_ADAPTERS.search(f".{n}"))
    for name, parameter in sorted((n, p) for n, p in named if n not in beside):
        values = parameter.detach().flatten()
        values = values[:: max(1, values.numel() // 64)][:64].to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(parameter.shape)} ".encode() + values.cpu().numpy().tobytes())
    return digest.hexdigest()
