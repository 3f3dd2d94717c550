"""Two files of a prefix cache: its encoded rows, which are tokens and labels without pixels, and its manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save

from mmlora.encoding.sample import Sample
from mmlora.files import write_whole

MANIFEST = "manifest.json"
LABELS, LENGTHS, SUMS, TOKEN, PICTURE, ITEMS = "labels", "lengths", "sums", "token/", "picture/", "items/"


def write(rows: Sequence[Sample], sums: Sequence[int], file: Path) -> str:
    """Write the rows end to end, every kind of token and of picture tensor by its name, and the checksums of their states.

    Returns the file's SHA-256. Raises `OSError`.
    """
    tokens = {name: None for row in rows for name in row.tokens}
    seen = {name: None for row in rows for name in row.pictures}
    tensors = {LENGTHS: torch.tensor([len(row) for row in rows]), LABELS: torch.cat([row.labels for row in rows])}
    tensors[SUMS] = torch.tensor(sums)
    for name in tokens:
        tensors[TOKEN + name] = torch.cat([row.tokens.get(name, torch.zeros_like(row.input_ids)) for row in rows])
    for name in seen:
        found = [row.pictures[name] for row in rows if name in row.pictures]
        tensors[PICTURE + name] = torch.cat(found)
        tensors[ITEMS + name] = torch.tensor([len(row.pictures.get(name, ())) for row in rows])
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    write_whole(file, content)
    return hashlib.sha256(content).hexdigest()


def read(file: Path, ids: Sequence[str], digest: str) -> tuple[list[Sample], list[int]]:
    """What `write` wrote, under these ids. Raises `ValueError` if the file has changed or holds another number of rows."""
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{file.name} is not what was written")
    tensors = load(content)
    lengths = tensors[LENGTHS].tolist()
    if len(lengths) != len(ids):
        raise ValueError(f"{file.name} has {len(lengths)} rows, not {len(ids)}")
    labels = tensors[LABELS].split(lengths)
    tokens = {name.removeprefix(TOKEN): t.split(lengths) for name, t in tensors.items() if name.startswith(TOKEN)}
    seen = {
        name.removeprefix(PICTURE): t.split(tensors[ITEMS + name.removeprefix(PICTURE)].tolist())
        for name, t in tensors.items()
        if name.startswith(PICTURE)
    }
    rows = [
        Sample(
            id,
            {name: parts[row] for name, parts in tokens.items()},
            labels[row],
            {name: parts[row] for name, parts in seen.items() if len(parts[row])},
        )
        for row, id in enumerate(ids)
    ]
    return rows, tensors[SUMS].tolist()


def write_manifest(folder: Path, manifest: dict) -> None:
    """Write a cache's manifest, with a hash of it. Raises `OSError`."""
    write_whole(folder / MANIFEST, json.dumps(manifest | {"whole": _digest(manifest)}))


def manifest(folder: Path) -> dict:
    """What `write_manifest` wrote. Raises `ValueError` if the file has changed."""
    found = json.loads((folder / MANIFEST).read_bytes())
    if found.pop("whole", None) != _digest(found):
        raise ValueError(f"{MANIFEST} is not what was written")
    return found


def _digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
