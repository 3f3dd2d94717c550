"""What an adapter's files held when they were saved: hashes kept in the tensors' metadata, so that a changed one is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from mmlora.adapters.config import CONFIG
from mmlora.adapters.wrapping import AdapterError

FILES, NUMBERS = "files_sha256", "tensors_sha256"  # the metadata's keys
#: What of a folder decides answers, beside the adapter's own tensors: the rest may be anybody's.
DECISIVE = (CONFIG, "*.safetensors", "*token*", "*processor*", "chat_template*", "vocab*", "merges.txt", "*.model")
PLACE = ("base_model_name_or_path", "revision")  # where the base lies may be written anew


def of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """One SHA-256 over names, types, shapes and numbers."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def of_files(folder: Path, besides: str) -> dict[str, str]:
    """The SHA-256 of every file there that decides answers, but for the one of this name."""
    files = {file for pattern in DECISIVE for file in folder.glob(pattern) if file.is_file() and file.name != besides}
    return {file.name: _of_file(file) for file in sorted(files)}


def check(folder: Path, file: str, tensors: Mapping[str, torch.Tensor], marks: Mapping[str, str]) -> None:
    """Raise `AdapterError` for what is no longer as it was saved; what others saved has no such marks and is taken as it is."""
    if marks.get(NUMBERS, kept := of_tensors(tensors)) != kept:
        raise AdapterError(
            f"the numbers in {folder / file} are not those that were saved: it is damaged; fetch it again"
        )
    for name, kept in json.loads(marks.get(FILES, "{}")).items():
        if not (folder / name).is_file() or _of_file(folder / name) != kept:
            raise AdapterError(f"{folder / name} is not as it was saved: it is damaged or another's; fetch it again")


def _of_file(file: Path) -> str:
    content = file.read_bytes()
    if file.name == CONFIG:
        said = {name: value for name, value in json.loads(content).items() if name not in PLACE}
        content = json.dumps(said, sort_keys=True).encode()
    elif file.suffix != ".safetensors":
        content = content.replace(b"\r\n", b"\n")  # as git writes texts on Windows
    return hashlib.sha256(content).hexdigest()
