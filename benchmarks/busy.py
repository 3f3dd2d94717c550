"""Runs of five minutes on machines as people have them: quiet, beside a busy program, on one core, with little memory.

    python benchmarks/busy.py                 # all of them, one after the other, about 40 minutes; writes results/speed/busy.json and .jsonl
    python benchmarks/busy.py quiet neighbour # only these; what the record holds of others stays

- quiet: `mmlora run --minutes 5`, nothing beside it.
- neighbour: beside one process that keeps a core busy from beginning to end.
- neighbour_spinning: the same with threads that spin while they wait, as OpenMP's do unless they are told otherwise.
- neighbour_one_thread: the same on one thread.
- one_core: the run may use one core only.
- six_gigabytes: the run and its kernel may each map 6 GB of writable memory (RLIMIT_DATA, which counts address space, not pages in use).

Each is a whole run in processes of its own; `wall_minutes` counts from the command to its end, start included. The model, data,
seed and problems are the same for all.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from mmlora.paths import PACKAGE, RESULTS
from mmlora.reporting.machine import circumstances
from mmlora.reporting.record import Metrics

MINUTES = 5
SPINS = "300000"  # libgomp's default (its manual, 4.24)
SIX_GB = 6 * 10**9
BUSY = "while True: pass"


def one_core() -> None:
    """Called in the new process."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def six_gigabytes() -> None:
    """Called in the new process; its children inherit it."""
    resource.setrlimit(resource.RLIMIT_DATA, (SIX_GB, SIX_GB))


WAYS: dict[str, tuple[bool, dict[str, str], Callable[[], None] | None]] = {  # neighbour, environment, limits
    "quiet": (False, {}, None),
    "neighbour": (True, {}, None),
    "neighbour_spinning": (True, {"GOMP_SPINCOUNT": SPINS}, None),
    "neighbour_one_thread": (True, {"OMP_NUM_THREADS": "1"}, None),
    "one_core": (False, {}, one_core),
    "six_gigabytes": (False, {}, six_gigabytes),
}


def measured(way: str, folder: Path) -> tuple[dict, list[dict]]:
    """One run in this way: its figures, and its answers."""
    beside, environment, limit = WAYS[way]
    out = folder / way
    command = [sys.executable, "-m", "mmlora", "run", "--minutes", str(MINUTES), "--out", str(out)]
    neighbour = subprocess.Popen([sys.executable, "-c", BUSY]) if beside else None
    began = perf_counter()
    try:
        done = subprocess.run(
            command, env=os.environ | environment, preexec_fn=limit, cwd=PACKAGE.parent, capture_output=True, text=True
        )
    finally:
        if neighbour:
            neighbour.kill()
            neighbour.wait()
    found: dict = {"wall_minutes": round((perf_counter() - began) / 60, 2), "exit_code": done.returncode}
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode:
        return found | {"said": said[-1]}, []
    run = Metrics.load(out / "metrics.json")
    answers = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    solved = [{"way": way, "id": each["id"], "correct": each["correct"]} for each in map(json.loads, answers)]
    figures = {
        name: getattr(run, name)
        for name in ("n_test", "minutes", "samples_seen", "samples_per_second", "peak_memory_gb")
    }
    scored = {name: {key: getattr(run, name)[key] for key in ("avg", "ci95")} for name in ("accuracy", "base")}
    return found | figures | scored, solved


def table(ways: dict[str, dict]) -> str:
    """Each way beside the quiet one."""
    quiet = ways.get("quiet", {}).get("samples_seen") or float("nan")
    lines = [f"{'way':<22}{'wall':>6}{'n':>5}{'samples':>9}{'ratio':>7}{'right':>7}  interval"]
    for name, way in ways.items():
        if way["exit_code"]:
            lines.append(f"{name:<22}{way['wall_minutes']:>6}  {way['said']}")
            continue
        share, right = way["samples_seen"] / quiet, way["accuracy"]
        lines.append(
            f"{name:<22}{way['wall_minutes']:>6}{way['n_test']:>5}{way['samples_seen']:>9}{share:>7.2f}{right['avg']:>7}  {right['ci95']}"
        )
    return "\n".join(lines)


def main(chosen: Annotated[list[str] | None, typer.Argument(help="which of them, in this order")] = None):
    """Run them one after the other and write the record."""
    now, target = circumstances(), RESULTS / "speed" / "busy.json"
    record = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {"ways": {}}
    kept = target.with_suffix(".jsonl")
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.is_file() else []
    with tempfile.TemporaryDirectory(prefix="busy-") as folder:
        for way in chosen or WAYS:
            found, solved = measured(way, Path(folder))
            record = {**record, **now, "minutes": MINUTES, "ways": {**record["ways"], way: {**found, **now}}}
            lines = [line for line in lines if line["way"] != way] + solved
            target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            kept.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            print(table(record["ways"]), flush=True)


if __name__ == "__main__":
    typer.run(main)
