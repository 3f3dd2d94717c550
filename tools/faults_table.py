"""Render the tables of docs/faults.md from results/faults.json; without it they read "not measured yet"."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from mmlora.paths import PACKAGE, RESULTS
from mmlora.reporting.tables import UNMEASURED, markdown
from tools.readme import render_readme

#: What each kind is called on the page, in the order of its rows.
KINDS = {
    "kill": "`kill -9` at a random moment, then resumed",
    "term": "SIGTERM at a random moment, then resumed",
    "disk": "disk full after random bytes, then room again",
    "damage": "a flipped bit or a cut file",
    "hostile": "a pickle or code in a folder",
    "nan": "NaN or infinity in a sample",
    "memory": "out of memory",
    "process": "one process of two killed",
    "tables": "tables made at random",
}
COUNTED = ("lost work", "wrong numbers", "crash", "half a file", "code executed")
SIDES = ("mmlora", "Trainer")


def summary(record: dict) -> str:
    """A row for each kind and side, and one for all kinds."""
    found, rows = record["summary"], []
    for kind, told in KINDS.items():
        rows += [[told, side, *_figures([found[kind][side]])] for side in SIDES if side in found.get(kind, {})]
    for side in SIDES:
        parts = [sides[side] for kind, sides in found.items() if side in sides and kind != "tables"]
        rows.append(["all but the tables", side, *_figures(parts)])
    return markdown(["fault", "side", "faults", *COUNTED], rows)


def _figures(parts: list[dict]) -> list[str]:
    return [str(sum(part[name] for part in parts)) for name in ("n", *COUNTED)]


def counted(record: dict) -> str:
    """What was counted: by side, kind, place and count, with the message of the first of them."""
    groups: Counter[tuple] = Counter()
    first: dict[tuple, str] = {}
    for fault in record["faults"]:
        if fault["counted"]:
            key = (fault["side"], fault["kind"], fault.get("place", ""), ", ".join(fault["counted"]))
            groups[key] += 1
            first.setdefault(key, fault.get("message", "") or fault["outcome"])
    rows = [[*key, str(count), _short(first[key])] for key, count in sorted(groups.items())]
    return markdown(["side", "kind", "place", "counted", "faults", "the first of them"], rows or [["–"] * 6])


def _short(text: str) -> str:
    line = " ".join(text.split()).replace("<", "&lt;").replace("`", "'")
    return line if len(line) <= 120 else f"{line[:119]}…"


def tables(path: Path = RESULTS / "faults.json") -> dict[str, str]:
    """By marker name."""
    if not path.is_file():
        return {"faults": UNMEASURED, "counted": UNMEASURED}
    record = json.loads(path.read_text(encoding="utf-8"))
    return {"faults": summary(record), "counted": counted(record)}


if __name__ == "__main__":
    page = PACKAGE.parent / "docs" / "faults.md"
    page.write_text(render_readme(page.read_text(encoding="utf-8"), tables()), encoding="utf-8")
