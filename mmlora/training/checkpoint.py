"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is a folder of files with a manifest of their hashes, written aside and renamed into place: under its
final name it is whole, or it is damaged and the manifest tells. No pickle anywhere: tensors are safetensors, the rest
is JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from mmlora.errors import MMLoraError
from mmlora.files import REFUSALS, ROOM, refusals

KEEP = 2  # the newest, and one more in case the newest turns out damaged
RANDOM = ("random.safetensors", "random.json")  # the random states of a process
_NAME, _ASIDE = "checkpoint-", ".tmp-"


class CheckpointError(MMLoraError):
    """A checkpoint that cannot be written or must not be used; the message says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `files` are the very bytes whose hashes were compared."""

    path: Path
    files: dict[str, bytes]

    @property
    def state(self) -> dict:
        return json.loads(self.files["state.json"])


def write(folder: str | Path, step: int, files: dict[str, bytes]) -> Path:
    """Write `files` as the checkpoint of `step` and keep the newest two; returns its path.

    Raises `CheckpointError` when the disk refuses; what was there before is then untouched and nothing is left over.
    """
    folder = Path(folder)
    final, aside = folder / f"{_NAME}{step:08d}", folder / f"{_ASIDE}{_NAME}{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _discard(aside)
        aside.mkdir()
        manifest = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        for name, content in {**files, "manifest.json": json.dumps(manifest, indent=1).encode()}.items():
            _write_through(aside / name, content)
        _sync_folder(aside)
        _discard(final)
        os.replace(aside, final)
        _sync_folder(folder)
    except OSError as error:
        _discard(aside)
        older = _newest_path(folder) if os.path.isdir(folder) else None
        rest = f"the newest one is still {older.name}" if older else "there is no older one"
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be written to {folder} ({error.strerror or error}); {rest}; "
            f"{REFUSALS.get(error.errno or 0, ROOM)}"
        ) from error
    with contextlib.suppress(OSError):  # an old folder that cannot be removed only costs room
        _prune(folder, final)
    return final


def _write_through(path: Path, content: bytes):
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path):
    if os.name == "nt":  # Windows has no way to sync a folder; its rename is journalled
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(path: Path):
    """Remove a folder so that a kill half-way leaves nothing that looks like a checkpoint."""
    if os.path.exists(path):  # Path.exists raises where a name is too long
        gone = path if path.name.startswith(_ASIDE) else path.with_name(f"{_ASIDE}old-{path.name}")
        if gone != path:
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _paths(folder: Path) -> list[Path]:
    """Checkpoints by step, newest first, unverified."""
    return sorted((p for p in folder.glob(f"{_NAME}*") if p.is_dir()), reverse=True)


def _newest_path(folder: Path) -> Path | None:
    return next(iter(_paths(folder)), None)


def _prune(folder: Path, current: Path):
    """Keep `current` and the one before it. Any from beyond `current` belongs to a future that was given up."""
    beyond = [p for p in _paths(folder) if p.name > current.name]
    kept = [p for p in _paths(folder) if p.name <= current.name][:KEEP]
    for path in [*beyond, *(p for p in _paths(folder) if p not in kept), *folder.glob(f"{_ASIDE}*")]:
        _discard(path)


def newest(folder: str | Path) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None where there is none; prints one line on what it refused and why.

    Raises `CheckpointError` when there are checkpoints but all are damaged: beginning again would delete them.
    """
    folder = Path(folder)
    with refusals(folder, kind=CheckpointError):
        paths = _paths(folder)
    aside = f"{_ASIDE}{_NAME}"
    refused = [f"{path.name.removeprefix(_ASIDE)} (unfinished)" for path in sorted(folder.glob(f"{aside}*"))]
    found = None
    for path in paths:
        found, reason = _read(path)
        if found:
            break
        refused.append(f"{path.name} ({reason})")
    if not found and paths:
        raise CheckpointError(f"no checkpoint in {folder} can be used: {', '.join(refused)}; choose another folder")
    if refused:
        print(f"refused {', '.join(refused)}; the newest good one is {found.path.name if found else 'none'}")
    return found


def _read(path: Path) -> tuple[Checkpoint | None, str]:
    """The verified checkpoint, or None and the reason."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        files = {name: (path / name).read_bytes() for name in manifest}
    except FileNotFoundError as error:
        return None, f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return None, f"cannot be read: {error}"
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != manifest[name]:
            return None, f"{name} is not what was written"
    return Checkpoint(path, files), ""


@dataclass(frozen=True)
class Chance:
    """The states of all random generators of this process."""

    tensors: dict[str, torch.Tensor]
    words: dict

    @classmethod
    def now(cls) -> Chance:
        legacy: Any = np.random.get_state()
        name, keys, *numbers = legacy
        tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
        if torch.cuda.is_available():
            tensors["cuda"] = torch.cuda.get_rng_state()
        return cls(tensors, {"numpy": [name, *numbers], "python": random.getstate()})

    def restore(self) -> None:
        torch.set_rng_state(self.tensors["torch"])
        if "cuda" in self.tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.tensors["cuda"])
        name, *numbers = self.words["numpy"]
        np.random.set_state((name, self.tensors["numpy"].numpy().astype(np.uint32), *numbers))
        version, internal, gauss = self.words["python"]
        random.setstate((version, tuple(internal), gauss))


def capture(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, bytes]:
    """Everything that a step changes, as files: trained tensors, optimizer moments, random states."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    moments = {
        f"{name}/{key}": value for name, p in trainable.items() for key, value in optimizer.state.get(p, {}).items()
    }
    chance = Chance.now()
    return {
        "trainable.safetensors": _pack(trainable),
        "optimizer.safetensors": _pack(moments),
        "random.safetensors": _pack(chance.tensors),
        "random.json": json.dumps(chance.words).encode(),
    }


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put back what `capture` took. Raises `CheckpointError` when other parameters train now."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tensors = load(checkpoint.files["trainable.safetensors"])
    if {n: t.shape for n, t in tensors.items()} != {n: p.shape for n, p in trainable.items()}:
        raise CheckpointError(
            f"{checkpoint.path} holds {len(tensors)} trained tensors that differ in name or shape from the "
            f"{len(trainable)} of this model; attach the same adapter or start in another folder"
        )
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(tensors[name])
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in load(checkpoint.files["optimizer.safetensors"]).items():
        owner, key = name.rsplit("/", 1)
        moments.setdefault(owner, {})[key] = value
    names = {id(p): name for name, p in trainable.items()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    state = {index: moments[name] for index, name in enumerate(order) if name in moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    Chance(load(checkpoint.files["random.safetensors"]), json.loads(checkpoint.files["random.json"])).restore()


def _pack(tensors: dict[str, torch.Tensor]) -> bytes:
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
