"""Should few shots be learned one way (each picture among the kinds' sentences) or both ways, as CLIP itself was?

    python benchmarks/clip_losses.py     # some five minutes on two cores; writes results/openclip/losses.json

Lesson 09's few shots with both losses: same draws, same adapters, same steps. Asked is the hand that settings are chosen on.
"""

from __future__ import annotations

import mmlora  # noqa: F401 - before torch, so that its threads share the cores

# isort: split
import json

import torch
from clip_shots import RANK, SEEDS, WAYS, kinds_of, percents, said
from tqdm import tqdm

from mmlora import detach
from mmlora.openclip import adapters, train
from mmlora.openclip.drawings import VALIDATION
from mmlora.paths import RESULTS
from mmlora.reporting import machine

COUNTS, STEPS, RATE = (1, 4, 16), 6, 2e-3  # pictures of each kind; the lesson's steps and `train.tune`'s rate


def both_ways(seen: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """CLIP's own loss: pictures look for their sentence, and sentences for their pictures."""
    return train.contrastive(seen, texts[right], scale, right)


LOSSES = {"one way": train.one_way, "both ways": both_ways}


def main():
    state, clip = machine.git_state(), train.joined()
    kinds, hits = kinds_of(clip, VALIDATION), {}
    for count, seed in tqdm([(count, seed) for count in COUNTS for seed in range(SEEDS)], unit="draw"):
        pixels, right = kinds.shots(clip, count, seed)
        for way, within in WAYS.items():
            for called, loss in LOSSES.items():
                adapted = clip._replace(model=adapters.attach(clip.model, rank=RANK, within=within, seed=seed))
                train.tune(adapted, pixels, right, kinds.tokens, STEPS, RATE, seed, loss)
                found = said(adapted.model, kinds.tokens, kinds.asked) == kinds.truth
                hits.setdefault(f"{way}, {count} shots, {called}", []).append(found)
                detach(adapted.model).requires_grad_(False)
    found = {way: torch.stack(each).float() for way, each in hits.items()}
    gaps = {
        way.removesuffix(", one way"): found[way.replace("one way", "both ways")] - each
        for way, each in found.items()
        if way.endswith("one way")
    }
    record = {"draws": SEEDS, "asked": len(kinds.asked), "steps": STEPS, "rate": RATE, "hand": VALIDATION,
              "accuracy": percents(found), "both_over_one": percents(gaps), **machine.circumstances(state)}  # fmt: skip
    target = RESULTS / "openclip" / "losses.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: record[key] for key in ("accuracy", "both_over_one")}, indent=1))


if __name__ == "__main__":
    main()
