"""Alignment: teach SmolBridge's connector to read, from pictures with captions.

A caption says what a picture shows. Each visual token should say one of its words, the first token the first word, and
the connector learns it by plain classification (AlignVLM's connector, arXiv 2502.01341, trained without the decoder, so
that it sees a thousand pictures a second). No question is ever seen. `tools/align_smolbridge.py` and `tools/align_world.py` made
the shipped connectors with it, and a run's first stage is made of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from mmlora.models.precision import mixed
from mmlora.models.vlm import VLM
from mmlora.smolbridge.connector import Connector
from mmlora.training.order import schedule

BASIS = 1000  # pictures that settle the cells' principal components: 64,000 cells
View = tuple[torch.Tensor, torch.Tensor | None]  # cells (pictures, cells, cell_size) and the glance
AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True}  # special tokens in a caption are ordinary text
SILENCE = "\n"  # what the visual tokens after a caption's end say


@dataclass(frozen=True)
class ReadSettings:
    """How the connector learns to read."""

    epochs: int = 12  # beyond that it learns these pictures by heart
    fewest_steps: int = 0  # or as many epochs as make these: a few hundred pictures are not read in twelve
    learning_rate: float = 1e-3  # the peak
    warmup_share: float = 0.05  # of the steps; before that Adam's moments are noise
    batch_size: int = 256  # pictures a step
    cell_dropout: float = 0.2  # of cells' numbers: the perceptron has more weights than there are pictures
    dropout: float = 0.2  # of hidden units and of a glance
    weight_decay: float = 0.05
    held_out: int = 2000  # pictures, the first ones, that only measure
    seed: int = 0  # order of the pictures


@torch.inference_mode()
def look(vlm: VLM, pictures: Iterable, file: Path, count: int | None = None, fresh: bool = False) -> np.ndarray:
    """What the connector sees of every picture: float16 (pictures, numbers), memory-mapped from `file`.

    A `fresh` connector is first told how to describe what the tower reports: see `settle`. `count`, where it is known,
    is for the progress bar.
    """
    connector, aside = vlm.model.model.connector, file.with_suffix(".part")
    coming = (_view(vlm, part) for part in _parts(tqdm(pictures, total=count, desc="looking", unit="picture")))
    first: list[View] = []
    if fresh:
        while sum(len(cells) for cells, _ in first) < BASIS and (view := next(coming, None)):
            first.append(view)
        settle(connector, first)
    with open(aside, "wb") as kept:
        for cells, glance in chain(first, coming):
            cells, glance = (part if part is None else part.to(connector.describe.weight) for part in (cells, glance))
            kept.write(connector.seen(cells, glance).half().cpu().numpy().tobytes())
    aside.replace(file)
    return np.memmap(file, np.float16, "r").reshape(-1, connector.seen_size)


def _parts(pictures: Iterable, size: int = 16) -> Iterator[list]:
    rest = iter(pictures)
    while part := list(islice(rest, size)):
        yield part


def _view(vlm: VLM, pictures: list) -> View:
    """Cells, in half precision to keep many, and the glance."""
    pixels = vlm.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    cells, glance, _ = vlm.model.model.get_image_view(pixels.to(vlm.model.device, vlm.model.dtype))
    return cells.half(), glance


def settle(connector: Connector, views: list[View]) -> None:
    """Decide how pictures are described: cells by their principal components, all numbers at equal size.

    Most of what the tower reports is the same in all pictures, and plain training would not see past it.
    """
    whiten(connector, torch.cat([cells for cells, _ in views]))
    if views[0][1] is not None:
        glances = torch.cat([glance for _, glance in views if glance is not None])
        connector.usual.copy_(glances.mean(0))
        connector.spread.copy_(glances.std(0).clamp(min=1e-4))


def whiten(connector: Connector, cells: torch.Tensor) -> None:
    """Set `describe` to the principal components of `cells` (pictures, cells, cell_size), each of variance one.

    A hundredth of the mean variance is added, so that what hardly varies is not blown up to noise.
    """
    normed = torch.cat([connector.norm_in(part.float()).flatten(0, 1) for part in cells.split(64)])
    mean = normed.mean(0)
    covariance = (normed - mean).T @ (normed - mean) / len(normed)
    variance, directions = (t.flip(-1)[..., : connector.describe.out_features] for t in torch.linalg.eigh(covariance))
    connector.describe.weight.copy_((directions / (variance + 0.01 * covariance.diagonal().mean()).sqrt()).T)
    connector.describe.bias.copy_(-connector.describe.weight @ mean)


def spell(tokenizer: Any, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The dictionary, int64 (words,): the decoder's tokens that occur in `captions`; and the captions spelled with it.

    A spelled caption is a row of int64 (captions, longest) of places in the dictionary, silence at its end.
    """
    rows = [tokenizer(text, **AS_TEXT)["input_ids"] for text in captions]
    silence, longest = tokenizer(SILENCE, add_special_tokens=False)["input_ids"], max(map(len, rows))
    full = torch.tensor([row + silence * (longest - len(row)) for row in rows])
    return full.unique(return_inverse=True)


def learned(connector: Connector) -> list[nn.Module]:
    """All of a connector that learns to read; how pictures are described is settled before."""
    glimpse = [] if connector.glimpse is None else [connector.glimpse]
    return [connector.recognise, connector.read, *glimpse, connector.write, connector.spell]


def read(connector: Connector, seen: np.ndarray, spelled: torch.Tensor, settings: ReadSettings) -> list[dict]:
    """Train all after `describe` so that every visual token says its word; returns a record for each epoch.

    `loss` and `held_out_loss` are nats a word, `words_right` the share of held-out words whose likeliest is right, the
    silence after a caption's end included; both are left out where nothing is held out.
    """
    held, rows = settings.held_out, len(seen)
    learning = nn.ModuleList(learned(connector)).requires_grad_(True)
    optimizer = torch.optim.AdamW(learning.parameters(), betas=(0.9, 0.98), weight_decay=settings.weight_decay)
    rng, records = np.random.default_rng(settings.seed), []
    batch_size = min(settings.batch_size, rows - held)
    per_epoch = (rows - held) // batch_size
    epochs = max(settings.epochs, -(-settings.fewest_steps // per_epoch))
    for epoch in range(epochs):
        losses, order = [], held + rng.permutation(rows - held)
        for at in (bar := tqdm(range(per_epoch), desc=f"reading, epoch {epoch + 1} of {epochs}", leave=False)):
            share = (epoch * per_epoch + at + 0.5) / (epochs * per_epoch)
            optimizer.param_groups[0]["lr"] = settings.learning_rate * schedule(share, settings.warmup_share)
            batch = np.sort(order[at * batch_size : (at + 1) * batch_size])
            with mixed(torch.device("cpu")):
                scores = connector.words(_numbers(seen[batch]), settings.cell_dropout, settings.dropout)
            loss = nn.functional.cross_entropy(scores.float().flatten(0, 1), spelled[batch].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
        records.append({"epoch": epoch + 1, "loss": round(float(np.mean(losses)), 4)})
        if held:
            scores = say(connector, seen[:held])
            held_out = nn.functional.cross_entropy(scores.flatten(0, 1), spelled[:held].flatten()).item()
            right = (scores.argmax(-1) == spelled[:held]).float().mean().item()
            records[-1] |= {"held_out_loss": round(held_out, 4), "words_right": round(right, 4)}
        if epochs == settings.epochs or epoch + 1 == epochs:
            print(", ".join(f"{name.replace('_', ' ')} {number}" for name, number in records[-1].items()), flush=True)
    learning.requires_grad_(False)
    return records


@torch.inference_mode()
def say(connector: Connector, seen: np.ndarray) -> torch.Tensor:
    """Scores (pictures, said, dictionary) of the words for pictures as the connector sees them."""
    return torch.cat([connector.words(_numbers(part)) for part in np.array_split(seen, 1 + len(seen) // 256)])


def _numbers(seen: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(seen.astype(np.float32))


def fitting(model: Any, words: torch.Tensor, said: int, names: torch.Tensor | None = None, seed: int = 0) -> Connector:
    """A fresh connector for this dictionary and this many tokens of a caption that describes pictures as `model`'s does.

    `names`, places in the dictionary (1000, naming_tokens), adds the visual tokens that say ImageNet's name.
    """
    config, core = copy.copy(model.config), model.model
    config.naming_tokens = 0 if names is None else names.shape[1]
    config.dictionary, config.visual_tokens = len(words), said + config.naming_tokens
    torch.manual_seed(seed)
    connector = Connector(config, core.vision_tower.feature_info.channels())
    connector.describe.load_state_dict(core.connector.describe.state_dict())
    connector.word_ids.copy_(words)
    if config.glance_width:
        connector.usual.copy_(core.connector.usual)
        connector.spread.copy_(core.connector.spread)
    if names is not None:
        connector.names.copy_(names)
    return connector
