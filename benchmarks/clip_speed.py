"""How fast does a CLIP of ViT-B-32's true architecture learn with LoRA, and in how much memory? Random weights: speed, no accuracy.

    python benchmarks/clip_speed.py     # on the card where there is one, else on the processor; writes results/openclip/speed-….json

One step is CLIP's loss of a batch of pairs through both towers. LoRA in one tower, in both, and full tuning in turns, in the
precision that mmlora picks for the machine. A tower without trainable numbers keeps nothing for the way back. On a processor the
memory is the most that the process ever held, so only a card tells the ways apart.
"""

from __future__ import annotations

import mmlora  # noqa: F401 - before torch, so that its threads share the cores

# isort: split
import gc
import json
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter

import torch
from torch import nn

from mmlora.models.precision import device, mixed
from mmlora.openclip.adapters import attach
from mmlora.openclip.assemble import Clip, load
from mmlora.openclip.train import contrastive
from mmlora.paths import RESULTS
from mmlora.reporting import machine

WAYS = {"vision": ("vision",), "text": ("text",), "both": ("vision", "text"), "full tuning": ()}


@dataclass(frozen=True)
class Sizes:
    model: str = "ViT-B-32"
    batch: int = 256 if torch.cuda.is_available() else 16  # pairs that compete; a processor would take minutes a step
    warm: int = 3  # steps before the clock
    steps: int = 20 if torch.cuda.is_available() else 3
    turns: int = 3
    rank: int = 8


def learner(clip: Clip, way: str, rank: int) -> nn.Module:
    """The model with what this way trains."""
    if WAYS[way]:
        return attach(clip.model, rank, WAYS[way])
    return clip.model.requires_grad_(True)


def measure(way: str, sizes: Sizes) -> dict:
    """Pairs a second, memory in GB and the trainable numbers of one way."""
    clip, where = load(sizes.model), device()
    model = learner(clip, way, sizes.rank).to(where).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-4)
    torch.manual_seed(0)
    pixels = torch.randn(sizes.batch, 3, *clip.model.visual.image_size, device=where)
    tokens, names = (
        clip.tokenizer(["a drawing of a thing"] * sizes.batch).to(where),
        torch.arange(sizes.batch, device=where),
    )
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def step() -> float:
        with mixed(where):
            loss = contrastive(
                clip.model.encode_image(pixels), clip.model.encode_text(tokens), clip.model.logit_scale.exp(), names
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()  # waits for the card

    first = [step() for _ in range(sizes.warm)][0]
    began = perf_counter()
    last = [step() for _ in range(sizes.steps)][-1]
    seconds = perf_counter() - began
    memory = torch.cuda.max_memory_allocated() / machine.GB if where.type == "cuda" else machine.peak_memory_gb()
    return {
        "samples_per_second": round(sizes.batch * sizes.steps / seconds, 1),
        "peak_memory_gb": round(memory, 2),
        "trainable": sum(p.numel() for p in parameters),
        "loss": {"first": round(first, 4), "last": round(last, 4)},
    }


def main():
    sizes, state, found = Sizes(), machine.git_state(), {way: list[dict]() for way in WAYS}
    for _ in range(sizes.turns):
        for way, turns in found.items():
            turns.append(measure(way, sizes))
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    ways = {
        way: turns[0] | {
            "samples_per_second": {
                "median": median(speeds := [turn["samples_per_second"] for turn in turns]),
                "low": min(speeds), "high": max(speeds),
            }
        }
        for way, turns in found.items()
    }  # fmt: skip
    record = {"ways": ways, "settings": asdict(sizes), **machine.circumstances(state)}
    name = (record["machine"]["gpu"] or record["machine"]["cpu"]).replace(" ", "_").replace("/", "-")
    target = RESULTS / "openclip" / f"speed-{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
