"""The encoded rows that lie beside a prefix cache, in one file: what is said and supervised, without pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mmlora.encoding.sample import Sample

LABELS, LENGTHS, TOKEN, PICTURE, ITEMS = "labels", "lengths", "token/", "picture/", "items/"


def write(rows: Sequence[Sample], file: Path) -> None:
    """Keep the rows end to end, every kind of token and of picture tensor by its name."""
    tokens = {name: None for row in rows for name in row.tokens}
    seen = {name: None for row in rows for name in row.pictures}
    tensors = {LENGTHS: torch.tensor([len(row) for row in rows]), LABELS: torch.cat([row.labels for row in rows])}
    for name in tokens:
        tensors[TOKEN + name] = torch.cat([row.tokens.get(name, torch.zeros_like(row.input_ids)) for row in rows])
    for name in seen:
        found = [row.pictures[name] for row in rows if name in row.pictures]
        tensors[PICTURE + name] = torch.cat(found)
        tensors[ITEMS + name] = torch.tensor([len(row.pictures.get(name, ())) for row in rows])
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def read(file: Path, ids: Sequence[str]) -> list[Sample]:
    """What `write` kept, under these ids. Raises `ValueError` where their number is another one."""
    tensors = load_file(file)
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
    return [
        Sample(
            id,
            {name: parts[row] for name, parts in tokens.items()},
            labels[row],
            {name: parts[row] for name, parts in seen.items() if len(parts[row])},
        )
        for row, id in enumerate(ids)
    ]
