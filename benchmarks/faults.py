"""Inject one fault at a time into mmlora and into transformers' Trainer with peft: what is lost, silently wrong, or crashes?

    python benchmarks/faults.py                               # writes results/faults.json, within 20 minutes on two cores
    python benchmarks/faults.py --only kill --share 0.1 --out /tmp/faults.json

The models are tiny and random. The seed determines every fault; each is injected once on each side, in a process of its own, which
is forked from one that has imported everything. What is injected and what is counted: docs/faults.md. Where mounting is not
allowed (`mount -t tmpfs` needs root) a full disk is a limit on the size of files instead, and the records say so.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Annotated

# One thread, float32: the same bits in every process. All of it before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MMLORA_PRECISION"] = "float32"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import typer
from faulty import children, disks, kinds, ours, references, tables, theirs, together, verdict
from faulty.kinds import Case
from faulty.world import make

from mmlora.paths import RESULTS
from mmlora.reporting import machine

SIDES = (ours, theirs)
#: How many of each kind, and what makes one.
KINDS: dict[str, tuple[int, Callable[[Case], children.Fault]]] = {
    "kill": (50, kinds.killed),
    "term": (20, kinds.killed),
    "disk": (30, disks.full),
    "damage": (100, kinds.damaged),
    "hostile": (10, kinds.hostile),
    "nan": (4, kinds.not_a_number),
    "memory": (4, kinds.no_memory),
    "process": (2, together.one_dies),
}
TABLES = 2000


@dataclass(frozen=True)
class Plan:
    """How much of the suite is run."""

    seed: int = 0
    share: float = 1.0
    only: tuple[str, ...] = (*KINDS, "tables")

    def count(self, kind: str) -> int:
        whole = TABLES if kind == "tables" else KINDS[kind][0]
        return max(1, round(self.share * whole)) if kind in self.only else 0

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if kind in self.only]


def suite(plan: Plan, folder: Path) -> list[dict]:
    """All records, by kind; prints a line for each kind."""
    records: list[dict] = []
    if plan.kinds:
        began = perf_counter()
        world = make(folder / "world")
        needs = set().union(*(references.needed(kind, plan.count(kind)) for kind in plan.kinds))
        known = references.made(SIDES, world, folder / "references", needs)
        print(f"references: {perf_counter() - began:.0f} s", flush=True)
        for kind in plan.kinds:
            began, do = perf_counter(), KINDS[kind][1]
            cases = (
                do(
                    Case(
                        world, side, known[side.NAME], kind, number, plan.seed, folder / f"{kind}-{number}-{side.NAME}"
                    )
                )
                for number in range(plan.count(kind))
                for side in SIDES
            )
            found = sorted(children.run(cases), key=lambda record: (record["side"], record["number"]))
            say(kind, found, perf_counter() - began)
            records += found
    if plan.count("tables") and find_spec("fuzz_tables") is None:
        print("tables: tests/fuzz_tables.py is not there", flush=True)
    elif plan.count("tables"):
        began = perf_counter()
        found = [
            each
            for part in children.run(tables.portions(plan.count("tables"), plan.seed, folder / "tables"))
            for each in part["tables"]
        ]
        say("tables", found, perf_counter() - began)
        records += sorted(found, key=lambda record: record["number"])
    return records


def say(kind: str, records: list[dict], seconds: float) -> None:
    parts = [f"{name} {told(rows)}" for name, rows in by_side(records).items()]
    print(f"{kind}: {'; '.join(parts)} ({seconds:.0f} s)", flush=True)


def by_side(records: list[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for record in records:
        found.setdefault(record["side"], []).append(record)
    return found


def counts(records: list[dict]) -> dict[str, int]:
    """How often each of `verdict.COUNTED` occurred."""
    return {name: sum(name in record["counted"] for record in records) for name in verdict.COUNTED}


def told(records: list[dict]) -> str:
    found = [f"{count} × {name}" for name, count in counts(records).items() if count]
    return f"{len(records)}: {', '.join(found) or 'nothing to count'}"


def summary(records: list[dict]) -> dict:
    """By kind and side: how many faults there are, and how many of them count in each column."""
    kinds_of = {kind: [record for record in records if record["kind"] == kind] for kind in (*KINDS, "tables")}
    return {
        kind: {side: {"n": len(rows), **counts(rows)} for side, rows in by_side(own).items()}
        for kind, own in kinds_of.items()
        if own
    }


def main(
    seed: Annotated[int, typer.Option(help="the seed of all faults")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="a kind to inject; repeat it for several")] = None,
    share: Annotated[float, typer.Option(help="the share of each kind's faults to inject, for a trial")] = 1.0,
    out: Annotated[Path, typer.Option(help="the file for the record")] = RESULTS / "faults.json",
) -> None:
    """Inject all faults and write the record."""
    known = (*KINDS, "tables")
    if wrong := set(only or ()) - set(known):
        raise typer.BadParameter(f"there is no kind {', '.join(wrong)}, only {', '.join(known)}")
    state, began = machine.git_state(), perf_counter()
    plan = Plan(seed, share, tuple(only or known))
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        records = suite(plan, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    record = {
        "settings": {"seed": seed, "share": share, "only": plan.only},
        "minutes": round((perf_counter() - began) / 60, 1),
        "summary": summary(records),
        **machine.circumstances(state),
        "faults": records,
    }
    head = {name: value for name, value in record.items() if name != "faults"}
    lines = ",\n".join(f"  {json.dumps(each, ensure_ascii=False)}" for each in records)  # one fault a line
    text = json.dumps(head, indent=1, ensure_ascii=False)[:-2] + f',\n "faults": [\n{lines}\n ]\n}}\n'
    out.write_text(text, encoding="utf-8")
    print(f"{record['minutes']} minutes -> {out}")


if __name__ == "__main__":
    typer.run(main)
