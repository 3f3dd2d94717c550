"""Hashes of an adapter's files when it was saved, kept in the tensors' metadata, so that a changed file is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from mmlora.adapters.config import CONFIG
from mmlora.adapters.wrapping import AdapterError
from mmlora.models.base import tensor_bytes

FILES, NUMBERS = "files_sha256", "tensors_sha256"  # the metadata's keys
#: The files of a folder that change a model's answers, beside the adapter's own tensors; the others are not checked.
DECISIVE = (CONFIG, "*.safetensors", "*token*", "*processor*", "chat_template*", "vocab*", "merges.txt", "*.model")
PLACE = ("base_model_name_or_path", "revision")  # these may change: where the base is


def of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """One SHA-256 of all tensors' names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor_bytes(tensor))
    return found.hexdigest()


def of_files(folder: Path, besides: str) -> dict[str, str]:
    """The SHA-256 of every file there that changes answers, except the one named `besides`."""
    files = {file for pattern in DECISIVE for file in folder.glob(pattern) if file.is_file() and file.name != besides}
    return {file.name: _of_file(file) for file in sorted(files)}


def check(folder: Path, file: str, tensors: Mapping[str, torch.Tensor], marks: Mapping[str, str]) -> None:
    """Raise `AdapterError` for a file that changed since it was saved; without hashes, as from other programs, none is checked."""
    if marks.get(NUMBERS, kept := of_tensors(tensors)) != kept:
        raise AdapterError(
            f"the tensors in {folder / file} are not those that were saved: the file is damaged; fetch it again"
        )
    for name, kept in json.loads(marks.get(FILES, "{}")).items():
        if not (folder / name).is_file() or _of_file(folder / name) != kept:
            raise AdapterError(
                f"{folder / name} is not as it was saved: it is damaged or from another adapter; fetch it again"
            )


def _of_file(file: Path) -> str:
    content = file.read_bytes()
    if file.name == CONFIG:
        said = {name: value for name, value in json.loads(content).items() if name not in PLACE}
        content = json.dumps(said, sort_keys=True).encode()
    elif file.suffix != ".safetensors":
        content = content.replace(b"\r\n", b"\n")  # as git writes texts on Windows
    return hashlib.sha256(content).hexdigest()
