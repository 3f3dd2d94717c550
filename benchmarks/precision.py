"""What bfloat16 products are worth on this machine: training steps with and without them, by turns, in one process.

    python benchmarks/precision.py

Writes results/precision/MACHINE.json: samples a second either way, and the ratio with its spread over the turns.
"""

from __future__ import annotations

import mmlora  # noqa: F401 - before torch, so that its threads share the cores

# isort: split
import json
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from mmlora import minisqa
from mmlora.adapters.files import load_vlm
from mmlora.adapters.lora import attach
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.prompts import taught
from mmlora.encoding.samples import Samples
from mmlora.paths import RESULTS
from mmlora.reporting import machine as metrics
from mmlora.training.order import batches

BATCH, PROBLEMS, FIRST_LAYER = 8, 64, 15  # the one-hour run's steps, on a few of its problems
TURNS, STEPS = 7, 4


def main():
    state = metrics.git_state()
    vlm = load_vlm("smolbridge")
    model = attach(vlm.model, layers=range(FIRST_LAYER, 30)).train()
    samples = Samples(vlm, [taught(problem, "explanation_answer") for problem in minisqa.generate("train", PROBLEMS)])
    folder = tempfile.TemporaryDirectory()
    source = PrefixCache.build(model, samples, Path(folder.name) / "cache")
    chosen = batches(source.lengths, BATCH, seed=0, epoch=0)[:STEPS]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])

    def samples_per_second(half: bool) -> float:
        began = perf_counter()
        for indices in chosen:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss, _ = source.loss(model, indices)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return BATCH * STEPS / (perf_counter() - began)

    pairs = [(samples_per_second(True), samples_per_second(False)) for _ in range(TURNS + 1)][
        1:
    ]  # the first one warms up
    ratios = [half / full for half, full in pairs]
    circumstances = metrics.circumstances(state)
    machine = circumstances["machine"]
    record = {
        "bfloat16": round(median(h for h, _ in pairs), 2),
        "float32": round(median(f for _, f in pairs), 2),
        "ratio": round(median(ratios), 2),
        "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "settings": {"batch": BATCH, "problems": PROBLEMS, "first_layer": FIRST_LAYER, "turns": TURNS, "steps": STEPS},
        **circumstances,
    }
    target = RESULTS / "precision" / f"{machine['cpu'].replace(' ', '_')}-{machine['cores']}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
