"""Render the tables of docs/recipe.md from results/; what has no file reads "not measured yet"."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

from mmlora.paths import PACKAGE, RESULTS
from mmlora.reporting.record import Metrics
from mmlora.reporting.tables import UNMEASURED, interval, markdown
from tools.readme import render_readme

#: The rows that were asked for: name of the file in results/recipe/ → how it differs from the shipped recipe.
ROWS = {
    "shipped": "explanation then answer, 24 visual tokens, LoRA from layer 15, rank 16, rate 2e-3",
    "answer-only": "answer alone, scored by likelihood",
    "answer-explanation": "answer, then explanation; scored by likelihood",
    "lora-0": "LoRA from layer 0: nothing of the decoder is cached",
    "lora-10": "LoRA from layer 10",
    "lora-20": "LoRA from layer 20",
    "entry-20": "visual tokens enter at layer 20, LoRA begins there",
    "tokens-12": "the first 12 visual tokens only",
    "bridge-trained": "the connector trains too: nothing is cached, adapters of two runs no longer stack",
    "rank-4": "rank 4",
    "rank-64": "rank 64",
    "rate-1e-3": "learning rate 1e-3",
    "rate-4e-3": "learning rate 4e-3",
}
HEADER = ("recipe", "what differs", "samples seen", "minutes", "accuracy (95 % interval)", "IMG", "blank")


def row(name: str, m: Metrics | None) -> list[str]:
    told = ROWS.get(name, "")
    if m is None:
        return [name, told, *[UNMEASURED] * 5]
    minutes = " + ".join(f"{m.minutes[part]:.1f}" for part in ("cache", "train", "score"))
    return [
        name,
        told,
        f"{m.samples_seen:,}",
        minutes,
        interval(m.accuracy),
        f"{m.accuracy['IMG']:.1f}",
        f"{m.blank_image['IMG']:.1f}",
    ]


def table(folder: Path = RESULTS / "recipe") -> str:
    found = {path.stem: Metrics.load(path) for path in sorted(folder.glob("*.json"))}
    rows = [row(name, found.get(name)) for name in [*ROWS, *(name for name in found if name not in ROWS)]]
    return markdown(HEADER, rows)


def seeds(folder: Path = RESULTS) -> str:
    """The runs of fifteen minutes that differ in their seed only, and how far apart they are."""
    runs = [Metrics.load(path) for path in sorted(folder.glob("fifteen_minutes_smolbridge_seed*.json"))]
    columns = [(m.accuracy["avg"], m.accuracy["IMG"], m.blank_image["IMG"]) for m in runs]
    rows = [
        [
            str(m.seed),
            f"{m.minutes['total']:.1f}",
            f"{m.samples_seen:,}",
            interval(m.accuracy),
            f"{m.accuracy['IMG']:.1f}",
            f"{m.blank_image['IMG']:.1f}",
            f"{m.base['avg']:.1f}",
        ]
        for m in runs
    ]
    if len(runs) > 1:
        spread = [f"{mean(values):.1f} ± {stdev(values):.1f}" for values in zip(*columns)]
        rows.append(["mean ± standard deviation", "", "", *spread, ""])
    return markdown(("seed", "minutes", "samples seen", "accuracy (95 % interval)", "IMG", "blank", "base model"), rows)


def tables() -> dict[str, str]:
    """By marker name."""
    return {"recipe": table(), "seeds": seeds()}


if __name__ == "__main__":
    page = PACKAGE.parent / "docs" / "recipe.md"
    page.write_text(render_readme(page.read_text(encoding="utf-8"), tables()), encoding="utf-8")
