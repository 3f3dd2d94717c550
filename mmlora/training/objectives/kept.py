"""What an objective computes of every sample once and keeps on disk: a reference's log-probabilities, a teacher's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from mmlora.adapters.fused import fused
from mmlora.adapters.integrity import of_tensors
from mmlora.encoding.loss import Supervised
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.samples import Samples
from mmlora.files import refusals, write_whole
from mmlora.models import processes
from mmlora.models.base import OF_ADAPTERS, tensor_bytes
from mmlora.models.memory import give_back, in_parts
from mmlora.models.precision import attention, mixed, products
from mmlora.models.vlm import base_model, evaluation_mode
from mmlora.training.log import TrainingError

Row = TypeVar("Row")
Source = Samples | PrefixCache
BATCH = 16  # samples a forward pass: no activations are kept


def kept(file: Path, key: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of the safetensors `file` where it was made under this key and is whole; or else computed, and written there.

    Every process calls this, and the first one writes. Raises `FileError` where the disk refuses.
    """
    found = _read(file, key)
    if all(processes.gathered(found is not None)) and found is not None:
        return found
    computed = compute()
    if processes.first():
        with refusals(file):
            write_whole(file, save(computed, {"key": key, "digest": of_tensors(computed)}))
    processes.wait()
    return computed


def _read(file: Path, key: str) -> dict[str, torch.Tensor] | None:
    try:
        with safe_open(file, "pt") as opened:
            metadata, tensors = opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}
        if metadata.get("key") == key and metadata.get("digest") == of_tensors(tensors):
            return tensors
        reason = "is damaged" if metadata.get("key") == key else "was made from other weights, samples or settings"
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        reason = f"is damaged ({error})"
    if processes.first():
        print(f"{file} {reason}; computing it again")
    return None


def key_of(model: nn.Module, source: Source, *settings: Any, adapter: bool = True) -> str:
    """Hash of the samples, of the model's weights as they are now, with or without its adapter's, and of what else matters.

    Raises `TrainingError` for weights that are sharded over processes.
    """
    if processes.sharded():
        raise TrainingError("nothing can be kept of weights that are sharded over processes; launch without FSDP")
    cache = (source.boundary, str(source.dtype)) if isinstance(source, PrefixCache) else None
    digest = hashlib.sha256(repr((source.fingerprint, cache, products(), settings)).encode())
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if adapter or not OF_ADAPTERS.search(f".{name}"):
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def of_each(model: nn.Module, source: Source, compute: Callable[[Supervised], Sequence[Row]]) -> list[Row]:
    """What `compute` makes of the forward passes, one row a sample, in the source's order. The processes share the samples."""
    device = base_model(model).device
    order = processes.mine(sorted(range(len(source)), key=lambda i: source.lengths[i]))

    def rows(part: Sequence[int]) -> Sequence[Row]:
        with mixed(device):
            return compute(source.forward(model, list(part)))

    found: dict[int, Row] = {}
    with evaluation_mode(model), torch.no_grad(), attention(device), fused(model):
        for part, result in in_parts(rows, order, BATCH):
            found |= zip(part, result)
    give_back()
    whole = {i: row for share in processes.gathered(found) for i, row in share.items()}
    return [whole[i] for i in range(len(source))]
