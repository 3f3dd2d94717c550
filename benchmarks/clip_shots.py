"""Is LoRA behind a linear probe at eight pictures of each kind for want of steps? Lesson 09's few shots with more of them.

    python benchmarks/clip_shots.py     # some ten minutes on two cores; writes results/openclip/shots.json

The lesson gives LoRA six steps, so that it stays short, where the probe is trained to the end. Here the same draws get up to eight
times as many, in one training that stops for its answers (its optimizer begins anew there), the learning rate as in the lesson.
"""

from __future__ import annotations

import mmlora  # noqa: F401 - before torch, so that its threads share the cores

# isort: split
import dataclasses
import json
from typing import NamedTuple

import torch
from tqdm import tqdm

from mmlora import detach
from mmlora.openclip import adapters, scores, train
from mmlora.openclip.assemble import Clip
from mmlora.openclip.drawings import TEST, TRAIN, Drawing, drawings, shots
from mmlora.paths import DATA, RESULTS
from mmlora.reporting import machine

GROUPS = ("mammal", "bird", "plant", "food", "object", "vehicle", "weather", "place")
SHOTS, SEEDS, RANK = 8, 3, 4
STEPS = (6, 6, 12, 24)  # taken one after the other: answers after 6, 12, 24 and 48 steps
WAYS = {"LoRA, vision": ("vision",), "LoRA, text": ("text",), "LoRA, both": ("vision", "text")}


def probe(clip, pixels, right, asked) -> torch.Tensor:
    """The lesson's linear probe: the kind that it says for each asked picture."""
    with torch.no_grad():
        x, y = (
            torch.cat([clip.model.encode_image(p, normalize=True) for p in part.split(64)]) for part in (pixels, asked)
        )
    torch.manual_seed(0)
    layer = torch.nn.Linear(x.shape[1], len(GROUPS))
    optimizer = torch.optim.AdamW(layer.parameters(), 0.02, weight_decay=0.01)
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(layer(10 * x), right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return layer(10 * y).argmax(1)


@torch.inference_mode()
def said(model, tokens, asked) -> torch.Tensor:
    texts = model.encode_text(tokens, normalize=True)
    return torch.cat([(model.encode_image(p, normalize=True) @ texts.T).argmax(1) for p in asked.split(64)]).clone()


def percents(found: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Mean and 95 % interval of each (draws, pictures)."""
    return {way: [round(100 * each.mean().item(), 2), *scores.interval(each)] for way, each in found.items()}


class Kinds(NamedTuple):
    """Eight kinds of things: the known hands' drawings to learn from, and another hand's to be asked."""

    known: list[Drawing]
    names: list[str]
    tokens: torch.Tensor  # of their sentences
    asked: torch.Tensor  # pixels
    truth: torch.Tensor  # places in `names`

    def shots(self, clip: Clip, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels and kinds of `count` drawings of each kind."""
        chosen = [self.known[i] for i in shots(self.known, self.names, count, seed)]
        pixels = torch.stack([clip.preprocess(d.image) for d in chosen])
        return pixels, torch.tensor([self.names.index(d.name) for d in chosen])


def kinds_of(clip: Clip, hand: str) -> Kinds:
    """Lesson 09's kinds, to be told apart in the drawings of `hand`."""
    icons = json.loads((DATA / "assets" / "icons.json").read_text())
    kind_of = {name.replace("_", " "): icon["group"] for name, icon in icons.items() if icon["group"] in GROUPS}

    def by_kind(drawn):
        return [dataclasses.replace(d, name=kind_of[d.name]) for d in drawn if d.name in kind_of]

    names = {d.name for d in drawings(TEST)}
    known = by_kind([d for hand in TRAIN for d in drawings(hand) if d.name in names])
    asked, kinds = by_kind(drawings(hand)), sorted(GROUPS)
    truth = torch.tensor([kinds.index(d.name) for d in asked])
    tokens = clip.tokenizer([f"a drawing of a {kind}" for kind in kinds])
    return Kinds(known, kinds, tokens, torch.stack([clip.preprocess(d.image) for d in asked]), truth)


def main():
    state, clip = machine.git_state(), train.joined()
    kinds = kinds_of(clip, TEST)
    tokens, seen, truth = kinds.tokens, kinds.asked, kinds.truth
    hits: dict[str, list[torch.Tensor]] = {}
    for seed in tqdm(range(SEEDS), unit="draw"):
        pixels, right = kinds.shots(clip, SHOTS, seed)
        hits.setdefault("linear probe", []).append(probe(clip, pixels, right, seen) == truth)
        for way, within in WAYS.items():
            adapted, done = adapters.attach(clip.model, rank=RANK, within=within, seed=seed), 0
            for steps in STEPS:
                train.tune(clip._replace(model=adapted), pixels, right, tokens, steps, seed=seed + 100 * done)
                done += steps
                hits.setdefault(f"{way}, {done} steps", []).append(said(adapted, tokens, seen) == truth)
            detach(adapted).requires_grad_(False)
    found = {way: torch.stack(each).float() for way, each in hits.items()}
    over = {way: each - found["linear probe"] for way, each in found.items() if way != "linear probe"}
    more = {
        way: each - found[f"{way.rpartition(', ')[0]}, {STEPS[0]} steps"] for way, each in found.items() if way in over
    }
    record = {
        "shots": SHOTS,
        "draws": SEEDS,
        "asked": len(seen),
        "accuracy": percents(found),
        "over_first": percents(more),
        "over_probe": percents(over),
        **machine.circumstances(state),
    }
    target = RESULTS / "openclip" / "shots.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: record[key] for key in ("accuracy", "over_first", "over_probe")}, indent=1))


if __name__ == "__main__":
    main()
