"""Tables of every kind, made by tests/fuzz_tables.py, which mmlora must read or refuse with a clear error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from faulty import verdict
from faulty.children import Fault, Job

PORTION = 100  # tables for one process


def portions(count: int, seed: int, folder: Path) -> Iterator[Fault]:
    for begin in range(0, count, PORTION):
        yield _portion(range(begin, min(count, begin + PORTION)), seed, folder / str(begin))


def _portion(numbers: range, seed: int, folder: Path) -> Fault:
    told = folder / "told"
    folder.mkdir(parents=True)
    last = yield Job(partial(_read, numbers, seed, folder, told), folder, limit=120.0)
    found = last.result["tables"] if last.result else []
    if not last.result:  # the process ended early: the table that it was at is named
        at = int(told.read_text()) if told.exists() else numbers[0]
        found = [_table(at, verdict.CRASH, verdict.message(last))]
    return {"kind": "tables", "tables": found}


def _read(numbers: range, seed: int, folder: Path, told: Path) -> dict:
    import fuzz_tables

    found = []
    for number in numbers:
        told.write_text(str(number))
        place, own = folder / f"table-{number}", seed * 1_000_000 + number
        fuzz_tables.write(place, own)
        try:
            found.append(_table(number, fuzz_tables.outcome(place, own)))
        except Exception as error:  # an AssertionError that says what came instead
            found.append(_table(number, verdict.CRASH, str(error).replace(str(place), "…")))
        shutil.rmtree(place)
    return {"tables": found}


def _table(number: int, outcome: str, message: str = "") -> dict:
    counted = [verdict.CRASH] if outcome == verdict.CRASH else []
    found = {"kind": "tables", "side": "mmlora", "number": number, "outcome": outcome, "counted": counted}
    return found | ({"message": message[:700]} if message else {})
