"""Tables of every kind, made by tests/fuzz_tables.py: read, or refused with a sentence. Ours only."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from faulty import verdict
from faulty.children import Fault, Job
from mmlora.errors import MMLoraError
from mmlora.problems.load import load_problems
from mmlora.problems.pictures import rgb

PORTION = 100  # tables for one process


def portions(count: int, seed: int, folder: Path) -> Iterator[Fault]:
    for begin in range(0, count, PORTION):
        yield _portion(range(begin, min(count, begin + PORTION)), seed, folder / str(begin))


def _portion(numbers: range, seed: int, folder: Path) -> Fault:
    told = folder / "told"
    folder.mkdir(parents=True)
    last = yield Job(partial(_read, numbers, seed, folder, told), folder, limit=120.0)
    found = last.result["tables"] if last.result else []
    if not last.result:  # it ended at some table, and that one is named
        at = int(told.read_text()) if told.exists() else numbers[0]
        found = [_table(at, "crash", verdict.message(last))]
    return {"kind": "tables", "tables": found}


def _read(numbers: range, seed: int, folder: Path, told: Path) -> dict:
    import fuzz_tables

    found = []
    for number in numbers:
        told.write_text(str(number))
        place = folder / f"table-{number}"
        place.mkdir()
        fuzz_tables.write(place, seed * 1_000_000 + number)
        found += [_one(place, number)]
    return {"tables": found}


def _one(place: Path, number: int) -> dict:
    try:
        problems = load_problems(place, "test")
        for problem in problems:
            if problem.image is not None:
                rgb(problem.image)
    except MMLoraError as error:
        return _table(number, "refused", str(error).replace(str(place), "…"))
    except Exception as error:
        frames = "".join(traceback.format_exception(error))[-600:]
        return _table(number, "crash", f"{type(error).__name__}: {error}; {frames}")
    return _table(number, "read", f"{len(problems)} problems")


def _table(number: int, outcome: str, message: str) -> dict:
    counted = [verdict.CRASH] if outcome == "crash" else []
    return {"kind": "tables", "side": "mmlora", "number": number, "outcome": outcome, "counted": counted,
            "message": message[:700 if counted else 160]}  # fmt: skip
