"""Where does the time of a training step go? The cached step of `speed.py` (e), fused and through the plain layers, by kinds of work.

    python benchmarks/step_profile.py       # writes results/speed/profile.json, which tools/speed_pictures.py draws

Shares are torch's profiler's own times of each operation, scaled to the seconds that a step takes without it. `one_sample` is a
step on a single sample: what a step costs however little it computes.
"""

from __future__ import annotations

import mmlora  # noqa: F401 - before torch, so that its threads share the cores

# isort: split
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from speed import Sizes, pictured
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mmlora.adapters.files import load_vlm
from mmlora.adapters.fused import fused
from mmlora.adapters.lora import attach
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.samples import Samples
from mmlora.models.precision import attention, device, mixed
from mmlora.models.vlm import decoder_layers
from mmlora.paths import RESULTS
from mmlora.reporting import machine
from mmlora.training.order import batches
from mmlora.training.settings import TrainSettings

KINDS = {
    "matrix products": ("mm", "addmm", "addmm_", "linear"),
    "attention": ("bmm", "baddbmm", "_softmax", "_softmax_backward_data", "_scaled_dot_product*"),
    "copies and conversions": (
        "copy_",
        "cat",
        "fill_",
        "zero_",
        "index",
        "index_put_",
        "clone",
        "empty",
        "empty_strided",
    ),
    "optimizer": ("_fused_adamw_", "Optimizer*"),
}
ELEMENTWISE, CALLS = "elementwise", "calls"
ROUNDS = 4  # times that every batch is taken before the clock: a product of a new size is prepared once


def kind_of(name: str) -> str:
    """What kind of work a profiled operation is."""
    for kind, names in KINDS.items():
        if any(fnmatch(name.removeprefix("aten::"), pattern) for pattern in names):
            return kind
    return ELEMENTWISE if name.startswith("aten::") else CALLS


def stepped(
    model: nn.Module, data: PrefixCache, within: Callable[[], AbstractContextManager]
) -> Callable[[list[int]], float]:
    """A training step as `fit` takes it: seconds for the samples that it is given."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=TrainSettings(steps=1).learning_rate, weight_decay=0.0, fused=True)
    fast = within()

    def step(indices: list[int]) -> float:
        began = perf_counter()
        with fast:
            with mixed(device()), attention(device()):
                loss, tokens = data.loss(model, indices)
            (loss / tokens).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return perf_counter() - began

    return step


def measured(step: Callable[[list[int]], float], order: list[list[int]]) -> dict:
    """Seconds of a step by kind of work, medians over the batches of `order`."""
    for _ in range(ROUNDS):
        seconds = median(step(batch) for batch in order)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for batch in order:
            step(batch)
    times: dict[str, float] = dict.fromkeys((*KINDS, ELEMENTWISE, CALLS), 0.0)
    for event in profiled.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total
    single = [batch[:1] for batch in order]
    for _ in range(2):
        one = median(step(batch) for batch in single)
    whole = sum(times.values())
    return {
        "seconds": seconds,
        "by_kind": {kind: seconds * time / whole for kind, time in times.items()},
        "one_sample": one,
        "operations": sum(event.count for event in profiled.key_averages()) / len(order),
    }


def main() -> None:
    if device().type != "cpu":
        sys.exit("this profiles a processor, and the model would go to a card; hide it: CUDA_VISIBLE_DEVICES=")
    state, sizes, vlm = machine.git_state(), Sizes(), load_vlm("smolbridge")
    depth = len(decoder_layers(vlm.model))
    model = attach(vlm.model, layers=range(depth // 2, depth))
    record: dict = {"model": "smolbridge"}
    with tempfile.TemporaryDirectory() as folder:
        data = PrefixCache.build(model, Samples(vlm, pictured(sizes.problems)), Path(folder) / "cache")
        order = batches(data.lengths, sizes.batch, seed=0, epoch=0)
        padded = sum(max(data.lengths[i] for i in batch) * len(batch) for batch in order)
        record["padding"] = padded / sum(data.lengths) - 1
        model.train()
        for name, within in (("plain", nullcontext), ("fused", lambda: fused(model))):
            record[name] = measured(stepped(model, data, within), order)
    record |= machine.circumstances(state)
    (RESULTS / "speed" / "profile.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({name: record[name] for name in ("padding", "plain", "fused")}, indent=1))


if __name__ == "__main__":
    main()
