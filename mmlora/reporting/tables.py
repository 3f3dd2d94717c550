"""Tables from recorded figures: a run's headline, and its rows beside the published ones.

Everything printed here comes from `metrics.json` files (`reporting.record`); what no file holds reads "not measured yet".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mmlora.errors import MMLoraError
from mmlora.paths import DATA
from mmlora.problems.record import CATEGORIES
from mmlora.reporting.record import Metrics

UNMEASURED = "not measured yet"
#: What a record's controls are called beside the figure; the grey picture, a curiosity, comes last.
CONTROLS = {
    "text_only": "trained without pictures",
    "swapped": "trained, another problem's picture",
    "reading": "what is read, no adapter",
    "captions_as_text": "trained, true caption as text",
}
HELD_OUT = {
    "seen_wording": "trained, wording seen in training",
    "unseen_wording": "trained, wording never seen",
    "untrained_skills": "trained, skills never trained on",
}
NOTE = (
    "Compare rows of the same data only. MiniSQA's problems are generated, ScienceQA's come from school curricula: an "
    "accuracy on one says nothing about an accuracy on the other. The published rows show what the columns are for. "
)


class ReportError(MMLoraError):
    """A report that cannot be written; the message names the file and what it lacks."""


def percent(value: float | None) -> str:
    """With two decimals; a dash where there is none."""
    return "–" if value is None else f"{value:.2f}"


def pictured(scores: dict | None) -> str:
    """The accuracy on problems with a picture, or that nobody measured it."""
    return percent(scores["IMG"]) if scores else UNMEASURED


def interval(scores: dict | None) -> str:
    """`85.3 (83.0 to 87.4)`, a dash where there was no such problem, or that nobody measured it."""
    if not scores:
        return UNMEASURED
    if scores["avg"] is None:
        return "–"
    low, high = scores["ci95"]
    return f"{scores['avg']:.1f} ({low:.1f} to {high:.1f})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same in HTML, escaped."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table><thead>{line(header, "th")}</thead><tbody>{body}</tbody></table></div>'


def category_table(metrics: Metrics | Sequence[Metrics], form: str = "markdown") -> str:
    """Runs and their yardsticks in ScienceQA's nine columns, above the published rows; `form`: markdown or html."""
    if form not in ("markdown", "html"):
        raise ReportError(f"no table form is called {form!r}; there are markdown and html")
    rows = []
    for m in [metrics] if isinstance(metrics, Metrics) else metrics:
        minutes = m.minutes["train"] + m.minutes.get("align", 0)  # the first runs had no such part
        lasted = f"{minutes:.0f} min" if minutes < 30 else f"{minutes / 60:.1f} h"
        training = f"{lasted}, {processor(m)}"
        for label, trainable, hours, scores in (
            (f"{m.model}, trained", _count(m.trainable_parameters), training, m.accuracy),
            (f"{m.model}, base", "0", "–", m.base),
            ("best fixed guess", "–", "–", m.majority),
            *((f"{m.model}, {CONTROLS[name]}", "", "", way) for name, way in _ordered(m.controls)),
            (f"{m.model}, trained, grey picture", "", "", m.blank_image),
        ):
            data = f"{m.data} (n={scores['n']['Avg']})"
            rows.append([label, trainable, hours, data, *(percent(scores[c]) for c in CATEGORIES)])
    published = json.loads((DATA / "published_scienceqa.json").read_text(encoding="utf-8"))
    for row in published["rows"]:
        label = f"{row['model']} ({row['paper']})"
        training = row.get("training", "–")
        rows.append([label, row["trainable"], training, "ScienceQA", *(percent(row[c]) for c in CATEGORIES)])
    header = ["model", "trainable", "training", "data", *CATEGORIES]
    note = f"{NOTE}Published: {published['data']}; {published['source']}."
    if form == "html":
        return f"{html(header, rows)}<p class='note'>{escape(note)}</p>"
    return f"{markdown(header, rows)}\n\n{note}"


def processor(m: Metrics) -> str:
    """What multiplied: the card's name, or how many CPU cores."""
    return m.machine["gpu"] or f"{m.machine['cores']} CPU cores"


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f}M" if parameters >= 1e5 else str(parameters)


def _ordered(controls: dict) -> list[tuple[str, dict]]:
    return [(name, controls[name]) for name in CONTROLS if name in controls]


def control_rows(m: Metrics) -> list[tuple[str, dict | None]]:
    """The figure, what was held out, and everything that it is compared with: (label, scores or None) each.

    Without what this data has no problem of, as own pictures have no second wording.
    """
    rows = [
        ("trained", m.accuracy),
        *((label, getattr(m, name)) for name, label in HELD_OUT.items()),
        ("base model", m.base),
        ("best fixed guess", m.majority),
        ("best fixed guess of each skill", m.best_guess),
        *((label, m.controls.get(name)) for name, label in CONTROLS.items()),
        ("trained, grey picture", m.blank_image),
    ]
    return [(label, scores) for label, scores in rows if scores is None or scores["n"]["Avg"]]


def headline(metrics: Metrics | str | Path) -> str:
    """A run (or its folder) in one markdown table: model, held out, controls; all problems and those with a picture."""
    metrics = metrics if isinstance(metrics, Metrics) else Metrics.load(Path(metrics) / "metrics.json")
    by = {"trained": metrics.scored_by["accuracy"], "base model": metrics.scored_by["base"]}
    rows = [
        [f"{label}, by {by[label]}" if label in by else label, _asked(scores), interval(scores), pictured(scores)]
        for label, scores in control_rows(metrics)
    ]
    return markdown([f"{metrics.model} on {metrics.data}", "problems", "accuracy in % (95 % interval)", "IMG"], rows)


def _asked(scores: dict | None) -> str:
    return f"{scores['n']['Avg']:,}" if scores else "–"
