"""A run on one HTML page that needs nothing else: figures, charts, mistakes with their pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from mmlora.evaluation.scores import Prediction, Scores
from mmlora.files import refusals, write_whole
from mmlora.models.catalog import seen_by
from mmlora.problems.record import LETTERS, Problem
from mmlora.reporting import galleries, plots
from mmlora.reporting.examples import Example, load_examples, png
from mmlora.reporting.record import Metrics
from mmlora.reporting.tables import CONTROLS, category_table, control_rows, html, interval, percent, pictured


def html_report(folder: str | Path) -> Path:
    """Write `report.html` in a run's folder: one file that needs nothing else, and return its path.

    Reads `metrics.json`, and where they are there `log.jsonl` and what `examples.keep_examples` kept. Raises
    `MetricsError` without complete metrics, and `FileError` if the page cannot be written.
    """
    folder = Path(folder)
    m = Metrics.load(folder / "metrics.json")
    by_name = {"trained": m.accuracy, "base": m.base, "best fixed guess": m.majority, "grey picture": m.blank_image}
    scores = {name: Scores.from_dict(record) for name, record in by_name.items()}
    trained, base = scores["trained"], scores["base"]
    log, kept = folder / "log.jsonl", load_examples(folder)
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    sections = {"Result": _result(m)}
    if records:
        sections["Learning curve"] = _figure(plots.learning_curve(records))
    sections["By category"] = _figure(plots.category_bars(scores)) + category_table(m, "html")
    sections["Does it look at the picture?"] = _looking(m)
    if trained.by_skill:
        sections["By skill"] = _figure(plots.skill_bars(trained.by_skill, base.by_skill))
    if wrong := [example for example in kept if not example.prediction.correct]:
        sections["What it got wrong"] = _gallery(wrong, trained)
    if maps := [(e, e.occlusion) for e in kept if e.occlusion is not None]:
        sections["What the answer depends on"] = "".join(
            _figure(galleries.occlusion_map(e.problem, e.prediction, drops), e.problem.id) for e, drops in maps
        )
    sections["How it was made"] = _made(m)
    page = Template((Path(__file__).parent / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{m.model} on {m.data}"),
        accuracy=f"{m.accuracy['avg']:.1f}",
        interval="{:.1f} to {:.1f}".format(*m.accuracy["ci95"]),
        base=f"{m.base['avg']:.1f}",
        minutes=f"{m.minutes['total']:.0f}",
        date=escape(m.date[:10]),
        body="".join(f"<section><h2>{escape(head)}</h2>{body}</section>" for head, body in sections.items()),
    )
    path = folder / "report.html"
    with refusals(path):
        write_whole(path, page)
    return path


def _result(m: Metrics) -> str:
    rows = [[name, interval(record), pictured(record)] for name, record in control_rows(m)]
    table = html(["", "accuracy in % (95 % interval)", "problems with a picture"], rows)
    silent, n = m.accuracy["unanswered"], m.accuracy["n"]["Avg"]
    seen = seen_by(m.model)
    told = f" The base {escape(m.model)} was aligned on {escape(seen)}" if seen else ""
    if seen and m.minutes.get("align"):
        told += " This run then aligned it on its training pictures."
    return f"{table}<p class='note'>{silent} of {n} problems got no answer; they count as wrong.{told}</p>"


def _looking(m: Metrics) -> str:
    seen, blank, majority = m.accuracy["IMG"], m.blank_image["IMG"], m.majority["IMG"]
    if None in (seen, blank, majority):
        return "<p>No problem of this data has a picture.</p>"
    ways = [
        f"<li>{label}: <b>{percent(way['avg'])} %</b> of {way['n']['Avg']}</li>"
        for name, label in CONTROLS.items()
        if (way := m.controls.get(name))
    ]
    return (
        f"<p>On the problems with a picture the model is right in <b>{seen:.1f} %</b>; always choosing the most "
        f"frequent position gives {majority:.1f} %.</p><ul>{''.join(ways)}</ul>"
        f"<p class='note'>A curiosity: with plain grey in the picture's place it is right in {blank:.1f} % of "
        f"{m.blank_image['n']['IMG']}. Grey is unlike all that the model has seen, so this tells that it looks, not how much "
        "the text alone gives away.</p>"
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
    plain = {
        name: getattr(m, name)
        for name in (
            "date",
            "seed",
            "n_test",
            "samples_seen",
            "samples_per_second",
            "trainable_parameters",
            "peak_memory_gb",
        )
    }
    groups = {
        "run": plain,
        "minutes": m.minutes,
        "base": m.base_model,
        "settings": m.settings,
        "machine": m.machine,
        "versions": m.versions,
        "git": m.git,
    }
    return "".join(
        f"<h3>{name}</h3>{html(['', ''], [[str(k), str(v)] for k, v in group.items()])}"
        for name, group in groups.items()
    )


def _figure(figure: Figure, caption: str = "") -> str:
    image = _inline(base64.b64encode(plots.compact_png(figure, 150)).decode(), caption or "chart")
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _inline(encoded: str, description: str) -> str:
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{encoded}">'
