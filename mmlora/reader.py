"""Stage one of the alignment: the bridge learns to read pictures without a decoder, by plain regression.

What should a visual token say? Cut a picture's caption into as many pieces as there are visual tokens: each token
should be the mean embedding of the words in its piece. No decoder runs, so a bridge sees hundreds of pictures a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from mmlora.smolbridge import Bridge
from mmlora.trainplan import schedule

BASIS = 1000  # pictures that settle the cells' principal components: 64,000 cells


@dataclass(frozen=True)
class ReadSettings:
    """How stage one trains."""

    epochs: int = 6  # beyond that it learns these pictures by heart
    learning_rate: float = 1e-3  # the peak
    warmup_share: float = 0.05  # of the steps; before that Adam's moments are noise
    batch_size: int = 256  # pictures a step
    dropout: float = 0.2  # of cells' numbers and hidden units: the perceptron has more weights than there are pictures
    weight_decay: float = 0.05
    held_out: int = 1000  # pictures, the first ones, that only measure


@torch.inference_mode()
def look(vlm, pictures: Iterable, count: int, file: Path, settle: bool) -> np.ndarray:
    """What the bridge's perceptron reads of every picture: float16 (count, cells * cell_width), memory-mapped.

    With `settle` the first `BASIS` pictures settle `describe`: the cells' principal components at equal size, for most
    of what the tower reports is the same in all pictures, and plain training would not see past it.
    """
    core = vlm.model.model
    pictures = iter(tqdm(pictures, total=count, desc="looking", unit="picture"))
    first = torch.cat([_cells(vlm, part).half() for part in _parts(islice(pictures, min(BASIS, count)))])
    if settle:
        whiten(core.connector, first)
    shape = (count, core.connector.read.in_features)
    aside = np.memmap(file.with_suffix(".part"), np.float16, "w+", shape=shape)
    aside[: len(first)] = torch.cat([core.connector.seen(part.float()) for part in first.split(64)]).numpy()
    at = len(first)
    for part in _parts(pictures):
        aside[at : at + len(part)] = core.connector.seen(_cells(vlm, part)).numpy()
        at += len(part)
    aside.flush()
    file.with_suffix(".part").replace(file)
    return np.memmap(file, np.float16, "r", shape=shape)


def _parts(pictures, size: int = 16):
    while part := list(islice(pictures, size)):
        yield part


def _cells(vlm, pictures: list) -> torch.Tensor:
    pixels = vlm.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return vlm.model.model.get_image_cells(pixels)


def whiten(bridge: Bridge, cells: torch.Tensor) -> None:
    """Set `describe` to the principal components of `cells` (pictures, cells, cell_size), each of variance one.

    A hundredth of the mean variance is added, so that what hardly varies is not blown up to noise.
    """
    normed = torch.cat([bridge.norm_in(part.float()).flatten(0, 1) for part in cells.split(64)])
    mean = normed.mean(0)
    covariance = (normed - mean).T @ (normed - mean) / len(normed)
    variance, directions = (t.flip(-1)[..., : bridge.describe.out_features] for t in torch.linalg.eigh(covariance))
    bridge.describe.weight.copy_((directions / (variance + 0.01 * covariance.diagonal().mean()).sqrt()).T)
    bridge.describe.bias.copy_(-bridge.describe.weight @ mean)


def word_codes(tokenizer, embeddings: torch.Tensor, captions: list[str], pieces: int) -> torch.Tensor:
    """(captions, pieces * hidden) float32: the mean embedding of each piece's words, all at one scale, mean zero.

    Embeddings (vocabulary, hidden) count by direction only. A word on a border counts in both pieces by its share.
    """
    ids = [tokenizer(caption, add_special_tokens=False)["input_ids"] for caption in captions]
    words = nn.functional.normalize(embeddings.detach().float(), dim=1)
    shares = {n: _shares(n, pieces) for n in {len(row) for row in ids}}
    codes = torch.stack([(shares[len(row)] @ words[row]).flatten() for row in tqdm(ids, desc="words")])
    codes -= codes.mean(0)
    return codes.div_(codes.std())


def _shares(words: int, pieces: int) -> torch.Tensor:
    """(pieces, words): how much of each piece a word fills; rows add up to one."""
    starts = torch.arange(pieces)[:, None] * words / pieces
    word = torch.arange(words)[None]
    overlap = torch.minimum(starts + words / pieces, word + 1) - torch.maximum(starts, word)
    return overlap.clamp(min=0) * pieces / words


def read(bridge: Bridge, seen: np.ndarray, codes: torch.Tensor, settings: ReadSettings) -> dict[str, float]:
    """Train `read` and `write` so that what the bridge writes for `seen` is `codes`; returns the two errors.

    The errors are mean squares on training and held-out pictures; 1.0 is what guessing the mean would give.
    """
    held, rows = settings.held_out, len(seen)
    mean = torch.from_numpy(seen[held : held + 4000].astype(np.float32)).mean(0)
    drop, gelu = nn.Dropout(settings.dropout), nn.GELU()
    body = nn.Sequential(drop, bridge.read, gelu, drop, bridge.write)
    body.requires_grad_(True)
    optimizer = torch.optim.AdamW(body.parameters(), settings.learning_rate, (0.9, 0.98), weight_decay=settings.weight_decay)

    def error(indices) -> torch.Tensor:
        written = body(torch.from_numpy(seen[indices].astype(np.float32)) - mean)
        return nn.functional.mse_loss(written, codes[indices])

    steps, losses, rng = settings.epochs * ((rows - held) // settings.batch_size), [], np.random.default_rng(0)
    order = np.concatenate([held + rng.permutation(rows - held) for _ in range(settings.epochs)])
    for step in (bar := tqdm(range(steps), desc="reading")):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule((step + 0.5) / steps, settings.warmup_share)
        loss = error(np.sort(order[step * settings.batch_size : (step + 1) * settings.batch_size]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        bar.set_postfix(error=f"{losses[-1]:.3f}")
    body.eval().requires_grad_(False)
    with torch.no_grad():
        bridge.read.bias -= bridge.read.weight @ mean  # from here on the bridge is given pictures as they are
        mean.zero_()
        return {"train_error": float(np.mean(losses[-50:])), "held_out_error": float(error(np.arange(held)))}
