"""What bfloat16 products are worth on this machine: training steps with and without them, by turns, in one process.

    python benchmarks/precision.py

Writes results/precision/MACHINE.json: samples a second either way, and the ratio with its spread over the turns.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from statistics import median
from time import perf_counter

import torch

from mmlora import metrics
from mmlora.cache import base_model
from mmlora.lora import attach
from mmlora.loss import supervised_loss
from mmlora.models import load_vlm
from mmlora.paths import RESULTS

BATCH, LENGTH, SUPERVISED, FIRST_LAYER = 8, 100, 32, 15  # a batch of the one-hour run
TURNS, STEPS = 7, 4


def main():
    model = attach(load_vlm("smolbridge").model, layers=range(FIRST_LAYER, 30)).train()
    core, head = base_model(model).model, base_model(model).lm_head
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    hidden = torch.randn(BATCH, LENGTH, core.config.text_config.hidden_size)
    slots, mask = torch.zeros(BATCH, LENGTH, dtype=torch.long), torch.ones(BATCH, LENGTH, dtype=torch.long)
    labels = torch.full((BATCH, LENGTH), -100)
    labels[:, -SUPERVISED:] = torch.randint(0, 40_000, (BATCH, SUPERVISED))

    def samples_per_second(half: bool) -> float:
        began = perf_counter()
        for _ in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss, _ = supervised_loss(core.decode(hidden, slots, mask, first=FIRST_LAYER), head, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return BATCH * STEPS / (perf_counter() - began)

    pairs = [(samples_per_second(True), samples_per_second(False)) for _ in range(TURNS + 1)][1:]  # the first one warms up
    ratios = [half / full for half, full in pairs]
    machine = metrics.machine()
    record = {
        "bfloat16": round(median(h for h, _ in pairs), 2), "float32": round(median(f for _, f in pairs), 2),
        "ratio": round(median(ratios), 2), "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "settings": {"batch": BATCH, "length": LENGTH, "supervised": SUPERVISED, "first_layer": FIRST_LAYER, "turns": TURNS,
                     "steps": STEPS},
        "machine": machine, "versions": metrics.versions(), "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    target = RESULTS / "precision" / f"{machine['cpu'].replace(' ', '_')}-{machine['cores']}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
