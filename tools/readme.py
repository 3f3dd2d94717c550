"""Render the README's tables from results/: `python tools/readme.py` (in the repository)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmlora.models import catalog
from mmlora.paths import PACKAGE, RESULTS
from mmlora.reporting.record import Metrics
from mmlora.reporting.tables import UNMEASURED, ReportError, interval, markdown, percent, processor

README = PACKAGE.parent / "README.md"
#: The runs that the README speaks of, whether they are recorded or not: file name in results/ → what it is.
EXPECTED = {"one_hour_smolbridge.json": ("SmolBridge", "MiniSQA")}
OTHERS = ("faults.json",)  # beside the runs: docs/faults.md shows it


def readme_tables(results: str | Path = RESULTS) -> dict[str, str]:
    """The README's tables by marker name, `results`, `machines` and `models`, from every JSON file in the folder.

    An expected run without a file has a row that says so. Raises `MetricsError` for a file that is incomplete.
    """
    found = {p.name: Metrics.load(p) for p in sorted(Path(results).glob("*.json")) if p.name not in OTHERS}
    rows = []
    for name in sorted({*EXPECTED, *found}, key=lambda name: (name not in EXPECTED, name)):
        if name in found:
            m = found[name]
            figures = [
                f"{m.minutes['total']:.0f}",
                interval(m.accuracy),
                percent(m.accuracy["IMG"]),
                interval(m.base),
                interval(m.majority),
                interval(m.controls["swapped"]) if "swapped" in m.controls else "–",
                interval(m.blank_image),
            ]
            rows.append([f"[{Path(name).stem}](results/{name})", m.model, f"{m.data}, {m.n_test} problems", *figures])
        else:
            rows.append([Path(name).stem, *EXPECTED[name], *[UNMEASURED] * 7])
    header = [
        "run",
        "model",
        "data",
        "minutes",
        "accuracy in % (95 % interval)",
        "with image",
        "base model",
        "best fixed guess",
        "another's picture",
        "grey picture",
    ]
    runs = _longest(list(found.values()))
    return {"results": markdown(header, rows), "machines": _machine_table(runs), "models": _model_table(runs)}


def _longest(runs: Sequence[Metrics]) -> list[Metrics]:
    """The longest run of each model on each data set and each machine."""
    longest: dict[tuple, Metrics] = {}
    for m in sorted(runs, key=lambda m: (m.minutes["total"], m.date)):
        longest[m.machine["cpu"], m.machine["cores"], m.machine["gpu"], m.model, m.settings["data"]] = m
    return list(longest.values())


def _machine_table(runs: Sequence[Metrics]) -> str:
    rows = [
        [
            m.machine["gpu"] or f"{m.machine['cpu']}, {m.machine['cores']} cores, {m.machine['precision']}",
            f"{m.machine['memory_gb']:.0f} GB",
            m.model,
            m.data,
            f"{m.samples_per_second:.1f}",
            f"{m.peak_memory_gb:.1f} GB",
            f"{m.minutes['total']:.0f}",
            f"{m.accuracy['avg']:.1f}",
        ]
        for m in runs
    ]
    header = ["machine", "memory", "model", "data", "training samples/s", "peak memory", "minutes", "accuracy in %"]
    return markdown(header, rows or [[UNMEASURED] * len(header)])


def _model_table(runs: Sequence[Metrics]) -> str:
    """The catalogue: which model on which machine, and what was measured of each."""
    rows = []
    for entry in catalog.entries():
        mine = [
            f"{m.samples_per_second:.1f} on {processor(m)} ({m.settings['data']})"
            for m in runs
            if m.model in (entry.name, entry.repo)
        ]
        seen = str(entry.visual_tokens) if entry.visual_tokens else "none"
        size = f"{entry.parameters / 1e9:.0f}B" if entry.parameters >= 1e9 else f"{entry.parameters / 1e6:.0f}M"
        rows.append(
            [
                f"`{entry.name}`",
                size,
                f"{entry.size_gb:.1f} GB",
                seen,
                entry.licence + ", gated" * entry.gated,
                entry.advice,
                "; ".join(mine) or UNMEASURED,
            ]
        )
    return markdown(
        ["model", "parameters", "weights in 16 bits", "visual tokens", "licence", "machine", "training samples/s"], rows
    )


def render_readme(text: str, tables: Mapping[str, str]) -> str:
    """`text` with each table between `<!-- name -->` and `<!-- /name -->`; rendering twice changes nothing."""
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
            raise ReportError(f"the README needs {start} once and {end} once after it; add the two lines")
        text = f"{text[: text.index(start)]}{start}\n{table}\n{text[text.index(end) :]}"
    return text


if __name__ == "__main__":
    README.write_text(render_readme(README.read_text(encoding="utf-8"), readme_tables()), encoding="utf-8")
    print(f"{README}: tables rendered from {RESULTS}")
