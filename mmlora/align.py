"""The alignment run: teach SmolBridge's bridge to read, once, from pictures with captions.

    python -m mmlora.align --pictures 48000

A caption says what a picture shows. Each visual token should say one of its words, the first token the first word, and
the bridge learns it by plain classification (AlignVLM's connector, arXiv 2502.01341, trained without the decoder, so
that it sees a thousand pictures a second). No question and no answer is ever seen, and the pictures are drawn with
another seed than any MiniSQA split. Writes `weights/smolbridge/bridge.safetensors`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from mmlora import minisqa
from mmlora.models import load_vlm, smolbridge
from mmlora.paths import RUNS, WEIGHTS
from mmlora.precision import mixed
from mmlora.smolbridge import Bridge
from mmlora.trainplan import schedule

SEED = 1_000_003  # far from the seeds that people use for MiniSQA
BASIS = 1000  # pictures that settle the cells' principal components: 64,000 cells
SILENCE = "\n"  # what the visual tokens after a caption's end say


@dataclass(frozen=True)
class ReadSettings:
    """How the bridge learns to read."""

    epochs: int = 12  # beyond that it learns these pictures by heart
    learning_rate: float = 1e-3  # the peak
    warmup_share: float = 0.05  # of the steps; before that Adam's moments are noise
    batch_size: int = 256  # pictures a step
    dropout: float = 0.2  # of cells' numbers and hidden units: the perceptron has more weights than there are pictures
    weight_decay: float = 0.05
    held_out: int = 2000  # pictures, the first ones, that only measure


@torch.inference_mode()
def look(vlm, pictures: Iterable, count: int, file: Path) -> np.ndarray:
    """What the bridge sees of every picture: float16 (count, cells, cell_width), memory-mapped.

    The first `BASIS` pictures settle `describe`: the cells' principal components at equal size, for most of what the
    tower reports is the same in all pictures, and plain training would not see past it.
    """
    connector, basis, at = vlm.model.model.connector, min(BASIS, count), 0
    pictures = iter(tqdm(pictures, total=count, desc="looking", unit="picture"))
    first = torch.empty(basis, connector.side**2, connector.describe.in_features, dtype=torch.half)
    shape = (count, connector.side**2, connector.describe.out_features)
    aside = np.memmap(file.with_suffix(".part"), np.float16, "w+", shape=shape)
    for part in _parts(islice(pictures, basis)):
        first[at : at + len(part)], at = _cells(vlm, part), at + len(part)
    whiten(connector, first)
    aside[:basis] = torch.cat([connector.seen(part.float()) for part in first.split(64)]).numpy()
    for part in _parts(pictures):
        aside[at : at + len(part)], at = connector.seen(_cells(vlm, part)).numpy(), at + len(part)
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


def spell(tokenizer, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The dictionary, int64 (words,): the decoder's tokens that occur in `captions`; and the captions spelled with it.

    A spelled caption is a row of int64 (captions, longest) of places in the dictionary, silence at its end.
    """
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in captions]
    silence, longest = tokenizer(SILENCE, add_special_tokens=False)["input_ids"], max(map(len, rows))
    full = torch.tensor([row + silence * (longest - len(row)) for row in rows])
    return full.unique(return_inverse=True)


def read(bridge: Bridge, seen: np.ndarray, spelled: torch.Tensor, settings: ReadSettings) -> list[dict]:
    """Train all after `describe` so that every visual token says its word; returns a record for each epoch.

    `loss` and `held_out_loss` are nats a word, `words_right` the share of held-out words whose likeliest is right.
    """
    held, rows = settings.held_out, len(seen)
    learning = nn.ModuleList([bridge.recognise, bridge.read, bridge.write]).requires_grad_(True)
    optimizer = torch.optim.AdamW(learning.parameters(), betas=(0.9, 0.98), weight_decay=settings.weight_decay)
    rng, records = np.random.default_rng(0), []
    per_epoch = (rows - held) // settings.batch_size
    for epoch in range(settings.epochs):
        losses, order = [], held + rng.permutation(rows - held)
        for at in (bar := tqdm(range(per_epoch), desc=f"reading, epoch {epoch + 1} of {settings.epochs}")):
            share = (epoch * per_epoch + at + 0.5) / (settings.epochs * per_epoch)
            optimizer.param_groups[0]["lr"] = settings.learning_rate * schedule(share, settings.warmup_share)
            batch = np.sort(order[at * settings.batch_size : (at + 1) * settings.batch_size])
            with mixed(torch.device("cpu")):
                scores = bridge.words(_numbers(seen[batch]), settings.dropout)
            loss = nn.functional.cross_entropy(scores.float().view(-1, bridge.said[1]), spelled[batch].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
        scores = say(bridge, seen[:held])
        held_out = nn.functional.cross_entropy(scores.flatten(0, 1), spelled[:held].flatten()).item()
        right = (scores.argmax(-1) == spelled[:held]).float().mean().item()
        records.append({"epoch": epoch + 1, "loss": round(float(np.mean(losses)), 4), "held_out_loss": round(held_out, 4),
                        "words_right": round(right, 4)})
        print(records[-1], flush=True)
    learning.requires_grad_(False)
    return records


@torch.inference_mode()
def say(bridge: Bridge, seen: np.ndarray) -> torch.Tensor:
    """Scores (pictures, visual_tokens, dictionary) of the words for pictures as the bridge sees them."""
    return torch.cat([bridge.words(_numbers(part)) for part in np.array_split(seen, 1 + len(seen) // 256)])


def _numbers(seen: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(seen.astype(np.float32))


def read_right(scores: torch.Tensor, spelled: torch.Tensor, skills: list[str]) -> dict[str, list[int]]:
    """For each skill, how many captions come out right word for word, and of how many."""
    right = (scores.argmax(-1) == spelled).all(-1).tolist()
    return {s: [sum(r for r, t in zip(right, skills) if t == s), skills.count(s)] for s in sorted(set(skills))}


def drawn(vlm, count: int, seed: int, folder: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Draw `count` pictures of MiniSQA's image skills: what the bridge sees of each, their captions and their skills.

    Kept in `folder` and used again.
    """
    connector, texts, file = vlm.model.model.connector, [], folder / "captions.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)

        def pictures():
            skills = [s for s in minisqa.SKILLS if next(minisqa.generate("train", 1, skills=[s])).image]
            for problem in minisqa.generate("train", count, seed=seed, skills=skills):
                texts.append((problem.caption, problem.skill))
                yield problem.image

        look(vlm, pictures(), count, folder / "seen.f16")
        save_file(connector.describe.state_dict(), folder / "describe.safetensors")
        file.write_text(json.dumps(texts))
    connector.describe.load_state_dict(load_file(folder / "describe.safetensors"))
    captions, skills = zip(*json.loads(file.read_text()))
    shape = (count, connector.side**2, connector.describe.out_features)
    seen = np.memmap(folder / "seen.f16", np.float16, "r", shape=shape)
    return seen, list(captions), list(skills)


def fitting(model, words: torch.Tensor, visual_tokens: int) -> Bridge:
    """A fresh bridge for this dictionary and this many visual tokens that describes cells as `model`'s does."""
    config, core = copy.copy(model.config), model.model
    config.dictionary, config.visual_tokens = len(words), visual_tokens
    torch.manual_seed(0)
    bridge = Bridge(config, core.vision_tower.feature_info.channels())
    bridge.describe.load_state_dict(core.connector.describe.state_dict())
    bridge.word_ids.copy_(words)
    return bridge


def align(
    pictures: Annotated[int, typer.Option(help="that the bridge learns to read from, 60 to 100 a second")] = 48_000,
    seed: Annotated[int, typer.Option(help="of the pictures")] = SEED,
    out: Path = WEIGHTS / "smolbridge", work: Path = RUNS / "align",
):
    """Align the bridge on captions of drawn pictures; bridge.safetensors and align.json go to `out`."""
    settings = ReadSettings()
    vlm = load_vlm(str(smolbridge(bridge=None)))
    seen, captions, skills = drawn(vlm, pictures, seed, work / f"pictures-{seed}-{pictures}")
    words, spelled = spell(vlm.processor.tokenizer, captions)
    connector = fitting(vlm.model, words, spelled.shape[1])
    log = read(connector, seen, spelled, settings)
    right = read_right(say(connector, seen[: settings.held_out]), spelled[: settings.held_out], skills[: settings.held_out])
    out.mkdir(parents=True, exist_ok=True)
    halves = {n: t if n == "word_ids" else t.half() for n, t in connector.state_dict().items()}
    save_file({f"connector.{name}": t.contiguous() for name, t in halves.items()}, out / "bridge.safetensors")
    facts = {"pictures": pictures, "seed": seed, "visual_tokens": spelled.shape[1], "dictionary": len(words), **asdict(settings)}
    (out / "align.json").write_text(json.dumps({**facts, "log": log, "captions_read_right": right}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(align)
