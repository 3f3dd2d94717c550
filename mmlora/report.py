"""Tables from recorded figures: the category table, the README's tables, and one HTML page per run.

Everything printed here comes from `metrics.json` files (`mmlora.metrics`); what no file holds reads "not measured yet".
`python -m mmlora.report README.md` renders the README from `results/`.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from mmlora import plots
from mmlora.catalog import CATALOG
from mmlora.errors import MMLoraError
from mmlora.examples import Example, keep_examples, load_examples, png
from mmlora.metrics import Metrics, MetricsError, git_state, machine, peak_memory_gb, versions
from mmlora.paths import DATA, RESULTS
from mmlora.scienceqa import CATEGORIES, LETTERS, Problem
from mmlora.scores import Prediction, Scores

__all__ = ["Metrics", "MetricsError", "ReportError", "category_table", "git_state", "headline", "html_report",
           "keep_examples", "machine", "peak_memory_gb", "readme_tables", "render_readme", "versions"]

UNMEASURED = "not measured yet"
#: The runs that the README speaks of, whether they are recorded or not: file name in results/ → what it is.
EXPECTED = {"one_hour_smolbridge.json": ("SmolBridge", "MiniSQA")}
NOTE = (
    "Compare rows of the same data only. MiniSQA's problems are generated, ScienceQA's come from school curricula: an "
    "accuracy on one says nothing about an accuracy on the other. The published rows show what the columns are for. "
)


class ReportError(MMLoraError):
    """A report that cannot be written; the message names the file and what it lacks."""


# -- tables ------------------------------------------------------------------------------------------------------------

def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def interval(scores: dict | None) -> str:
    """`85.3 (83.0 to 87.4)`, or that nobody measured it."""
    if not scores or scores["avg"] is None:
        return UNMEASURED
    low, high = scores["ci95"]
    return f"{scores['avg']:.1f} ({low:.1f} to {high:.1f})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
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
        minutes = m.minutes["train"]
        lasted = f"{minutes:.0f} min" if minutes < 30 else f"{minutes / 60:.1f} h"
        training = f"{lasted}, {_processor(m)}"
        for label, trainable, hours, scores in (
            (f"{m.model}, trained", _count(m.trainable_parameters), training, m.accuracy),
            (f"{m.model}, base", "0", "–", m.base),
            ("majority class", "–", "–", m.majority),
            (f"{m.model}, trained, blank image", "", "", m.blank_image),
        ):
            data = f"{m.data} (n={scores['n']['Avg']})"
            rows.append([label, trainable, hours, data, *(_percent(scores[c]) for c in CATEGORIES)])
    published = json.loads((DATA / "published_scienceqa.json").read_text(encoding="utf-8"))
    for row in published["rows"]:
        label = f"{row['model']} ({row['paper']})"
        training = row.get("training", "–")
        rows.append([label, row["trainable"], training, "ScienceQA", *(_percent(row[c]) for c in CATEGORIES)])
    header = ["model", "trainable", "training", "data", *CATEGORIES]
    note = f"{NOTE}Published: {published['data']}; {published['source']}."
    if form == "html":
        return f"{_html(header, rows)}<p class='note'>{escape(note)}</p>"
    return f"{markdown(header, rows)}\n\n{note}"


def _processor(m: Metrics) -> str:
    return m.machine["gpu"] or f"{m.machine['cores']} CPU cores"


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f}M" if parameters >= 1e5 else str(parameters)


def headline(metrics: Metrics | str | Path) -> str:
    """A run (or its folder) in one markdown table: model and yardsticks, all problems and those with a picture."""
    metrics = metrics if isinstance(metrics, Metrics) else Metrics.load(Path(metrics) / "metrics.json")
    rows = [[label, interval(scores), _percent(scores["IMG"])] for label, scores in (
        ("trained", metrics.accuracy), ("base model", metrics.base), ("majority class", metrics.majority),
        ("trained, blank image", metrics.blank_image))]
    return markdown([f"{metrics.model} on {metrics.data}", "accuracy in % (95 % interval)", "IMG"], rows)


# -- README ------------------------------------------------------------------------------------------------------------

def readme_tables(results: str | Path = RESULTS) -> dict[str, str]:
    """The README's tables by marker name, `results`, `machines` and `models`, from every JSON file in the folder.

    An expected run without a file has a row that says so. Raises `MetricsError` for a file that is incomplete.
    """
    found = {path.name: Metrics.load(path) for path in sorted(Path(results).glob("*.json"))}
    rows = []
    for name in sorted({*EXPECTED, *found}, key=lambda name: (name not in EXPECTED, name)):
        if name in found:
            m = found[name]
            figures = [f"{m.minutes['total']:.0f}", interval(m.accuracy), _percent(m.accuracy["IMG"]),
                       interval(m.base), interval(m.majority), interval(m.blank_image)]
            rows.append([f"[{Path(name).stem}](results/{name})", m.model, f"{m.data}, {m.n_test} problems", *figures])
        else:
            rows.append([Path(name).stem, *EXPECTED[name], *[UNMEASURED] * 6])
    header = ["run", "model", "data", "minutes", "accuracy in % (95 % interval)", "with image", "base model",
              "majority class", "blank image"]
    runs = _longest(list(found.values()))
    return {"results": markdown(header, rows), "machines": _machine_table(runs), "models": _model_table(runs)}


def _longest(runs: Sequence[Metrics]) -> list[Metrics]:
    """The longest run of each model on each machine."""
    longest: dict[tuple, Metrics] = {}
    for m in sorted(runs, key=lambda m: (m.minutes["total"], m.date)):
        longest[m.machine["cpu"], m.machine["cores"], m.machine["gpu"], m.model] = m
    return list(longest.values())


def _machine_table(runs: Sequence[Metrics]) -> str:
    rows = [
        [m.machine["gpu"] or f"{m.machine['cpu']}, {m.machine['cores']} cores, {m.machine['precision']}",
         f"{m.machine['memory_gb']:.0f} GB",
         m.model, f"{m.samples_per_second:.1f}", f"{m.peak_memory_gb:.1f} GB", f"{m.minutes['total']:.0f}",
         f"{m.accuracy['avg']:.1f}"]
        for m in runs
    ]
    header = ["machine", "memory", "model", "training samples/s", "peak memory", "minutes", "accuracy in %"]
    return markdown(header, rows or [[UNMEASURED] * len(header)])


def _model_table(runs: Sequence[Metrics]) -> str:
    """The catalogue: which model on which machine, and what was measured of each."""
    rows = []
    for entry in CATALOG:
        mine = [f"{m.samples_per_second:.1f} on {_processor(m)}" for m in runs if m.model in (entry.name, entry.repo)]
        seen = str(entry.visual_tokens) if entry.visual_tokens else "none"
        size = f"{entry.parameters / 1e9:.0f}B" if entry.parameters >= 1e9 else f"{entry.parameters / 1e6:.0f}M"
        rows.append([f"`{entry.name}`", size, f"{entry.size_gb:.1f} GB", seen, entry.licence + ", gated" * entry.gated, entry.advice,
                     "; ".join(mine) or UNMEASURED])
    return markdown(["model", "parameters", "weights in 16 bits", "visual tokens", "licence", "machine", "training samples/s"], rows)


def render_readme(text: str, tables: Mapping[str, str]) -> str:
    """`text` with each table between `<!-- name -->` and `<!-- /name -->`; rendering twice changes nothing."""
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
            raise ReportError(f"the README needs {start} once and {end} once after it; add the two lines")
        text = f"{text[: text.index(start)]}{start}\n{table}\n{text[text.index(end) :]}"
    return text


# -- HTML --------------------------------------------------------------------------------------------------------------

def html_report(folder: str | Path) -> Path:
    """Write `report.html` in a run's folder: one file that needs nothing else, and return its path.

    Reads `metrics.json`, and where they are there `log.jsonl` and what `examples.keep_examples` kept. Raises
    `MetricsError` without complete metrics.
    """
    folder = Path(folder)
    m = Metrics.load(folder / "metrics.json")
    by_name = {"trained": m.accuracy, "base": m.base, "majority class": m.majority, "blank image": m.blank_image}
    scores = {name: Scores.from_dict(record) for name, record in by_name.items()}
    trained, base = scores["trained"], scores["base"]
    log, kept = folder / "log.jsonl", load_examples(folder)
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    sections = {"Result": _result(by_name)}
    if records:
        sections["Learning curve"] = _figure(plots.learning_curve(records))
    sections["By category"] = _figure(plots.category_bars(scores)) + category_table(m, "html")
    sections["Does it look at the picture?"] = _looking(m)
    if trained.by_skill:
        sections["By skill"] = _figure(plots.skill_bars(trained.by_skill, base.by_skill))
    if wrong := [example for example in kept if not example.prediction.correct]:
        sections["What it got wrong"] = _gallery(wrong, trained)
    if mapped := [example for example in kept if example.occlusion is not None]:
        sections["What the answer depends on"] = "".join(
            _figure(plots.occlusion_map(e.problem, e.prediction, e.occlusion), e.problem.id) for e in mapped)
    sections["How it was made"] = _made(m)
    page = Template((Path(__file__).parent / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{m.model} on {m.data}"), accuracy=f"{m.accuracy['avg']:.1f}",
        interval="{:.1f} to {:.1f}".format(*m.accuracy["ci95"]), base=f"{m.base['avg']:.1f}",
        minutes=f"{m.minutes['total']:.0f}", date=escape(m.date[:10]),
        body="".join(f"<section><h2>{escape(head)}</h2>{body}</section>" for head, body in sections.items()),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _result(by_name: Mapping[str, dict]) -> str:
    rows = [[name, interval(record), _percent(record["IMG"])] for name, record in by_name.items()]
    table = _html(["", "accuracy in % (95 % interval)", "problems with a picture"], rows)
    silent, n = by_name["trained"]["unanswered"], by_name["trained"]["n"]["Avg"]
    return f"{table}<p class='note'>{silent} of {n} problems got no answer; they count as wrong.</p>"


def _looking(m: Metrics) -> str:
    seen, blank, majority = m.accuracy["IMG"], m.blank_image["IMG"], m.majority["IMG"]
    if None in (seen, blank, majority):
        return "<p>No problem of this data has a picture.</p>"
    return (
        f"<p>On the {m.blank_image['n']['IMG']} problems with a picture the model is right in <b>{seen:.1f} %</b>. "
        f"With plain grey in the picture's place it is right in <b>{blank:.1f} %</b>; always choosing the most "
        f"frequent position gives {majority:.1f} %. What the grey picture leaves is what the text alone gives away.</p>"
    )


def _gallery(wrong: Sequence[Example], scores: Scores) -> str:
    count = f"{scores.n - scores.columns['Avg'].correct} of {scores.n} answers are wrong; {len(wrong)} of them:"
    return f"<p>{count}</p><div class='cards'>{''.join(_card(e.problem, e.prediction) for e in wrong)}</div>"


def _card(problem: Problem, prediction: Prediction) -> str:
    def choice(i: int, text: str) -> str:
        marks = ["right"] * (i == problem.answer) + ["chosen"] * (i == prediction.choice)
        note = " ✓" * (i == problem.answer) + " ✗ the model's answer" * (i == prediction.choice != problem.answer)
        return f"<li class='{' '.join(marks)}'>{LETTERS[i]}. {escape(text)}{note}</li>"

    picture = _inline(png(problem.image), problem.caption or "the problem's picture") if problem.image else ""
    hint = f"<p class='hint'>{escape(problem.hint)}</p>" if problem.hint else ""
    choices = "".join(choice(i, text) for i, text in enumerate(problem.choices))
    return (
        f"<article>{picture}{hint}<p><b>{escape(problem.question)}</b></p><ul>{choices}</ul>"
        f"<blockquote>{escape(prediction.text)}</blockquote>"
        f"<p class='note'>{escape(problem.skill)} · {escape(problem.id)}</p></article>"
    )


def _made(m: Metrics) -> str:
    plain = {name: getattr(m, name) for name in ("date", "seed", "n_test", "samples_seen", "samples_per_second",
                                                "trainable_parameters", "peak_memory_gb")}
    groups = {"run": plain, "minutes": m.minutes, "settings": m.settings, "machine": m.machine, "versions": m.versions,
              "git": m.git}
    return "".join(f"<h3>{name}</h3>{_html(['', ''], [[str(k), str(v)] for k, v in group.items()])}"
                   for name, group in groups.items())


def _figure(figure: Figure, caption: str = "") -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    image = _inline(base64.b64encode(data.getvalue()).decode(), caption or "chart")
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _inline(encoded: str, description: str) -> str:
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{encoded}">'


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """`python -m mmlora.report README.md`: render the tables of results/ into the file."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m mmlora.report README.md")
    path = Path(arguments[0])
    path.write_text(render_readme(path.read_text(encoding="utf-8"), readme_tables()), encoding="utf-8")
    print(f"{path}: tables rendered from {RESULTS}")


if __name__ == "__main__":
    main()
