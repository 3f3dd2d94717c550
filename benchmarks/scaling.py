"""What does a sample cost when there are more of them, more rank, tokens, layers, cores, processes?

    python benchmarks/scaling.py      # about eight minutes; writes results/speed/scaling.json

One thing is varied at a time; all else is contender (e) of `speed.py`: SmolBridge, upper half, cached up to there. Every
point is measured in a process of its own. Beyond 2,000 problems, and for machines that are not at hand, the record has
estimates; they stand under `on_paper`.
"""

from __future__ import annotations

import mmlora  # noqa: F401 - before torch, so that its threads share the cores

# isort: split
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from speed import matrix_peak, operations, pictured

from mmlora.adapters.files import load_vlm
from mmlora.adapters.lora import attach
from mmlora.encoding.conversation import Conversation
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.samples import Samples
from mmlora.models import processes
from mmlora.models.precision import products
from mmlora.models.vlm import VLM, decoder_layers
from mmlora.paths import RESULTS
from mmlora.reporting import machine
from mmlora.training.fit import fit
from mmlora.training.settings import TrainSettings

BATCH, STEPS, WARM = 8, 24, 8  # of a step; so many steps, and of them before the clock
PROBLEMS = (1000, 2000, 4000, 8000, 16000)  # the first two are measured


@dataclass(frozen=True)
class Point:
    """One training; the defaults are those that every other one departs from."""

    problems: int = 64  # enough for eight different batches
    rank: int = 16
    visual_tokens: int = 24  # all that the connector says
    layers: int = 15  # the uppermost ones
    words: str = "all"  # or the half of twice as many problems whose texts are "short" or "long"
    cores: int = 2  # of each process
    processes: int = 1


SWEEPS: dict[str, Sequence[Point]] = {
    "problems": [Point(problems=n) for n in PROBLEMS[:2]],
    "rank": [Point(rank=n) for n in (4, 16, 64)],
    "visual_tokens": [Point(visual_tokens=n) for n in (6, 12, 24)],
    "layers": [Point(layers=n) for n in (8, 15, 30)],
    "words": [Point(words=which) for which in ("short", "all", "long")],
    "cores": [Point(cores=n) for n in (1, 2)],
    "processes": [Point(cores=1, processes=n) for n in (1, 2)],
}
#: Tera-operations a second that the makers publish, dense products in 16 bits (the laptop: 32 bits).
PEAKS = {
    "T4": (65, "NVIDIA's data sheet, float16"),
    "laptop of four cores": (0.38, "4 cores × 3 GHz × two AVX2 multiply-adds of eight float32"),
    "eight A100": (8 * 312, "NVIDIA's data sheet, bfloat16, eight times"),
}


def fewer_tokens(vlm: VLM, tokens: int) -> None:
    """Let SmolBridge's connector say only its first words; they come in reading order."""
    connector = vlm.model.model.connector
    each = connector.write.out_features // connector.said
    connector.said = tokens
    for parameter in connector.write.parameters():
        parameter.data = parameter.data[: tokens * each].contiguous()
    vlm.processor.visual_tokens = tokens


def chosen(point: Point) -> list[Conversation]:
    """The problems of a point, with what is to be said."""
    if point.words == "all":
        return pictured(point.problems)
    ordered = sorted(pictured(2 * point.problems), key=lambda lesson: len(lesson.prompt) + len(lesson.reply or ""))
    return ordered[: point.problems] if point.words == "short" else ordered[point.problems :]


def measured(point: Point, folder: Path) -> dict:
    """The point's cost, in seconds a sample; memory is that of all processes."""
    torch.set_num_threads(point.cores)
    vlm, lessons = load_vlm("smolbridge"), chosen(point)
    fewer_tokens(vlm, point.visual_tokens)
    depth = len(decoder_layers(vlm.model))
    model = attach(vlm.model, rank=point.rank, layers=range(depth - point.layers, depth))
    samples = Samples(vlm, lessons)
    began = perf_counter()
    cache = PrefixCache.build(model, samples, folder / "cache")
    filled = perf_counter() - began
    records = fit(model, cache, TrainSettings(steps=STEPS, batch_size=BATCH), folder / "run").records
    seen = records[-1]["samples"] - records[WARM - 1]["samples"]
    few = [samples[i] for i in range(min(len(samples), 64))]
    return {
        "step_seconds": (records[-1]["seconds"] - records[WARM - 1]["seconds"]) / seen,
        "cache_seconds": filled / len(lessons),
        "cache_mb": cache.file.stat().st_size / 1e6 / len(lessons),
        "memory_gb": sum(processes.gathered(machine.peak_memory_gb())),
        "tokens": sum(cache.lengths) / len(cache),
        "operations": operations(vlm, few, point.layers),
        "peak": matrix_peak(),
    }


def in_its_own_process(point: Point) -> dict:
    """What `measured` finds, in as many processes as the point has."""
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(point.processes)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(many if point.processes > 1 else ()), __file__, "--folder", folder]
        command += ["--point", json.dumps(asdict(point))]
        env = {**os.environ, "OMP_NUM_THREADS": str(point.cores), "MMLORA_PRECISION": products()}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{point} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def on_paper(base: dict, whole: dict) -> dict:
    """Estimates: of more problems from the cost a sample of `whole`, of other machines from their makers' peaks.

    A step is taken to reach there the share of the peak that `base` reaches here.
    """
    share = base["operations"] / base["step_seconds"] / base["peak"]
    return {
        "problems": {str(n): {key: n * whole[key] for key in ("cache_seconds", "step_seconds")} for n in PROBLEMS[2:]},
        "share_of_peak": share,
        "machines": {
            name: {"peak_tflops": peak, "source": source, "step_seconds": base["operations"] / (share * peak * 1e12)}
            for name, (peak, source) in PEAKS.items()
        },
    }


def main(
    sweeps: Annotated[str, typer.Option(help="which, separated by commas")] = ",".join(SWEEPS),
    target: Annotated[Path, typer.Option(help="the record")] = RESULTS / "speed" / "scaling.json",
    problems: Annotated[int, typer.Option(help="of the points that do not vary them")] = Point.problems,
    point: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[Path, typer.Option(hidden=True)] = Path(),
):
    """Measure all points and write the record."""
    if point:
        found = measured(Point(**json.loads(point)), folder)
        if processes.first():
            print("\n" + json.dumps(found))
        processes.leave()
        return
    state, known = machine.git_state(), {}
    record: dict = {
        "model": "smolbridge",
        "settings": {"batch": BATCH, "steps": STEPS, "warm": WARM, "problems": problems},
        "sweeps": {},
    }
    for name in ["rank", *(n for n in sweeps.split(",") if n != "rank")]:  # the base is one of the ranks
        points = SWEEPS[name] if name == "problems" else [replace(p, problems=problems) for p in SWEEPS[name]]
        for each in points:
            known[each] = known.get(each) or in_its_own_process(each)
            print(name, getattr(each, name), {key: round(n, 4) for key, n in known[each].items()}, flush=True)
        record["sweeps"][name] = [{"value": getattr(p, name), **known[p]} for p in points]
    base = known[Point(problems=problems)]
    record["on_paper"] = on_paper(base, record["sweeps"].get("problems", [base])[-1])
    record |= machine.circumstances(state)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"-> {target}")


if __name__ == "__main__":
    typer.run(main)
