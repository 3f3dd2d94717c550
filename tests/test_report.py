"""Records are complete, tables say what is not measured, and the page needs nothing but itself."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from mmlora.evaluation.controls import majority_class
from mmlora.evaluation.scores import Prediction, score
from mmlora.models import catalog
from mmlora.paths import DATA
from mmlora.problems.record import CATEGORIES, Problem
from mmlora.reporting import examples, page, tables
from mmlora.reporting.examples import load_examples
from mmlora.reporting.record import Metrics, MetricsError
from tools.readme import readme_tables, render_readme

LATER = ("seen_wording", "unseen_wording", "untrained_skills", "controls", "best_guess", "chance", "best_probe")
KEYS = (
    "accuracy base majority blank_image scored_by n_test minutes samples_per_second samples_seen peak_memory_gb "
    "trainable_parameters model base_model data seed settings versions machine date git"
).split()


def problems() -> list[Problem]:
    """Twelve with a picture, six without, in two skills; texts that need escaping."""
    return [
        Problem(
            f"p{i}",
            "Is 3 < 5 & does $x$ cost $5?",
            ("yes, <b>it</b> is", "no", "perhaps " * 20),
            i % 3,
            Image.new("RGB", (60, 40 + 10 * i), (200, 10 * i, 90)) if i < 12 else None,
            hint="a | b\n1 | 2" * (i % 2),
            grade=f"grade{i % 12 + 1}",
            skill=("magnets", "guide words")[i % 2],
            caption="a <plain> colour",
        )
        for i in range(18)
    ]


def predictions(step: int) -> list[Prediction]:
    """Every `step`-th answer is wrong, and the first wrong one names no choice."""
    return [
        Prediction(
            p.id,
            (None if i == 0 else (p.answer + 1) % 3) if i % step == 0 else p.answer,
            i % step != 0,
            "It is <small>. " * 12,
        )
        for i, p in enumerate(problems())
    ]


@pytest.fixture
def metrics() -> Metrics:
    made = problems()
    return Metrics(
        accuracy=score(made, predictions(6)).to_dict(),
        base=score(made, predictions(2)).to_dict(),
        majority=score(made, majority_class(made, made)).to_dict(),
        blank_image=score(made[:12], predictions(2)[:12]).to_dict(),
        scored_by={"accuracy": "generate", "base": "likelihood", "majority": "fixed guess", "blank_image": "generate"},
        n_test=len(made),
        minutes={"data": 0.5, "cache": 3.0, "train": 50.25, "score": 5.0, "total": 59.1},
        samples_per_second=7.25,
        samples_seen=21_000,
        trainable_parameters=1_630_000,
        model="smolbridge",
        data="minisqa 40/18",
        seed=0,
        base_model={"name": "smolbridge", "revision": None, "licence": "apache-2.0", "weights": "0123abcd"},
        settings={"data": "minisqa", "rank": 16, "learning_rate": 1e-3},
        date="2026-11-22T05:00:00+00:00",
    )


@pytest.fixture
def run_folder(tmp_path, metrics):
    metrics.save(tmp_path / "metrics.json")
    examples.keep_examples(tmp_path, problems(), predictions(6), {"p1": np.eye(8)})
    lines = [{"seconds": i, "loss": 2 / (i + 1), "learning_rate": 1e-3} for i in range(50)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_hold_every_key_of_the_issue_and_survive_a_file(metrics, tmp_path):
    metrics.save(tmp_path / "m.json")
    record = json.loads((tmp_path / "m.json").read_text())
    assert sorted(record) == sorted((*KEYS, *LATER))
    for name in ("accuracy", "base", "majority", "blank_image"):
        assert {"avg", "ci95", *CATEGORIES} <= set(record[name])
    assert set(record["minutes"]) == {"data", "cache", "train", "score", "total"}
    assert record["blank_image"]["NO"] is None
    assert record["peak_memory_gb"] > 0.05
    assert record["versions"]["torch"] and record["machine"]["cores"] >= 1
    assert set(record["git"]) == {"commit", "dirty"}
    assert asdict(Metrics.load(tmp_path / "m.json")) == asdict(metrics)
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_an_error(key, metrics, tmp_path):
    record = asdict(metrics)
    del record[key]
    (tmp_path / "m.json").write_text(json.dumps(record))
    with pytest.raises(MetricsError, match=f"m.json lacks {key};"):
        Metrics.load(tmp_path / "m.json")


def test_a_first_record_lacks_what_came_later_and_says_so(metrics, tmp_path):
    record = {name: value for name, value in asdict(metrics).items() if name not in LATER}
    (tmp_path / "m.json").write_text(json.dumps(record))
    first = Metrics.load(tmp_path / "m.json")
    assert first.controls == {} and first.unseen_wording is None
    unmeasured = [line for line in tables.headline(first).splitlines() if line.endswith("not measured yet |")]
    assert (
        len(unmeasured) == 8 and "| trained without pictures | – | not measured yet | not measured yet |" in unmeasured
    )
    with pytest.raises(MetricsError, match=r"lack controls.swapped.n;"):
        Metrics(**record | {"controls": {"swapped": {k: v for k, v in metrics.base.items() if k != "n"}}})


@pytest.mark.parametrize("key", ["scored_by", "base_model"])
def test_a_record_says_how_each_figure_was_found_and_which_weights_it_is_of(key, metrics):
    record = asdict(metrics)
    for inner in record[key]:
        with pytest.raises(MetricsError, match=f"lack {key}.{inner};"):
            Metrics(**record | {key: {name: value for name, value in record[key].items() if name != inner}})


def test_incomplete_figures_are_errors(metrics, tmp_path):
    record = asdict(metrics)
    with pytest.raises(MetricsError, match=r"lack base.IMG, minutes.cache"):
        Metrics(
            **record
            | {
                "base": {k: v for k, v in record["base"].items() if k != "IMG"},
                "minutes": {k: v for k, v in record["minutes"].items() if k != "cache"},
            }
        )
    with pytest.raises(MetricsError, match="samples_per_second is not a finite number"):
        Metrics(**record | {"samples_per_second": float("nan")})
    (tmp_path / "half.json").write_text('{"accuracy": ')
    with pytest.raises(MetricsError, match="half.json cannot be read"):
        Metrics.load(tmp_path / "half.json")


# -- tables ------------------------------------------------------------------------------------------------------------


def test_published_rows_are_complete():
    rows = json.loads((DATA / "published_scienceqa.json").read_text())["rows"]
    by_model = {row["model"]: row for row in rows}
    assert all(isinstance(row[c], float) for row in rows for c in CATEGORIES)
    assert all(re.fullmatch(r"arXiv \d{4}\.\d{5}", row["paper"]) for row in rows)
    assert by_model["LLaMA-Adapter"]["Avg"] == 85.19
    assert by_model["MM-CoT large"]["Avg"] == 91.68


def test_category_table_sets_runs_beside_published_rows(metrics):
    table = tables.category_table(metrics)
    lines = table.splitlines()
    assert lines[0] == "| model | trainable | training | data | NAT | SOC | LAN | TXT | IMG | NO | G1-6 | G7-12 | Avg |"
    assert lines[2].startswith(
        f"| smolbridge, trained | 1.6M | 0.8 h, {metrics.machine['cores']} CPU cores | minisqa 40/18 (n=18) |"
    )
    assert lines[2].endswith("83.33 |")
    assert lines[5].startswith("| smolbridge, trained, grey picture |") and "(n=12)" in lines[5] and "| – |" in lines[5]
    assert any("LLaMA-Adapter (arXiv 2303.16199) | 1.8M | – | ScienceQA | 84.37" in line for line in lines)
    assert "Compare rows of the same data only" in lines[-1]
    assert len({line.count("|") for line in lines[:-2]}) == 1
    html = tables.category_table([metrics, metrics], "html")
    assert html.count("0.8 h, ") == 2 and html.count("<tr>") == 1 + 8 + 13


def test_headline_names_all_yardsticks(metrics, tmp_path):
    metrics.save(tmp_path / "metrics.json")
    assert tables.headline(tmp_path) == tables.headline(metrics)
    assert tables.headline(metrics).splitlines()[2].startswith("| trained, by generate | 18 | 83.3 (60.8 to 94.2) | ")
    assert any(line.startswith("| base model, by likelihood | ") for line in tables.headline(metrics).splitlines())
    assert tables.headline(metrics).splitlines()[-1].startswith("| trained, grey picture | ")
    bare = replace(metrics, unseen_wording=score([], []).to_dict(), seen_wording=metrics.accuracy)
    assert "wording seen" in tables.headline(bare) and "never seen" not in tables.headline(bare)


def test_controls_stand_beside_the_figure(metrics, tmp_path):
    made = problems()[:12]
    ways = {name: score(made, predictions(step)[:12]).to_dict() for name, step in (("reading", 3), ("swapped", 2))}
    told = replace(metrics, controls=ways, unseen_wording=score(made, predictions(4)[:12]).to_dict())
    rows = {line.split(" | ")[0]: line for line in tables.headline(told).splitlines()}
    assert rows["| trained, another problem's picture"].startswith("| trained, another problem's picture | 12 | 50.0 (")
    assert rows["| what is read, no adapter"].startswith("| what is read, no adapter | 12 | 66.7 (")
    assert rows["| trained, wording never seen"].startswith("| trained, wording never seen | 12 | 75.0 (")
    lines = tables.category_table(told).splitlines()
    assert [line.split(" | ")[0] for line in lines[5:8]] == [
        "| smolbridge, trained, another problem's picture", "| smolbridge, what is read, no adapter",
        "| smolbridge, trained, grey picture"]  # fmt: skip
    told.save(tmp_path / "metrics.json")
    text = page.html_report(tmp_path).read_text(encoding="utf-8")
    assert "<li>what is read, no adapter: <b>66.67 %</b> of 12</li>" in text and "A curiosity" in text
    assert "The base smolbridge was aligned on 64,792 other pictures" in text and "This run then" not in text
    replace(told, minutes={**told.minutes, "align": 2.0}).save(tmp_path / "metrics.json")
    assert "no question. This run then aligned it" in page.html_report(tmp_path).read_text(encoding="utf-8")


def test_readme_is_rendered_in_place_and_twice_the_same(metrics, tmp_path):
    readme = "# x\n<!-- results -->\nold\n<!-- /results -->\nbetween\n<!-- machines -->\n<!-- /machines -->\n<!-- models -->\n<!-- /models -->\nend\n"
    empty = render_readme(readme, readme_tables(tmp_path))
    assert "| one_hour_smolbridge | SmolBridge | MiniSQA | not measured yet |" in empty
    assert "old" not in empty and empty.startswith("# x\n") and empty.endswith("end\n") and "\nbetween\n" in empty
    metrics.save(tmp_path / "one_hour_smolbridge.json")
    once = render_readme(empty, readme_tables(tmp_path))
    assert "| `qwen2.5-vl-3b` |" in once and once.count("not measured yet") == len(catalog.entries()) - 1
    assert (
        "[one_hour_smolbridge](results/one_hour_smolbridge.json) | smolbridge | minisqa 40/18, 18 problems | 59 |"
        in once
    )
    assert f"{metrics.machine['cores']} cores" in once and "| 7.2 |" in once
    assert render_readme(once, readme_tables(tmp_path)) == once
    with pytest.raises(tables.ReportError, match="needs <!-- machines --> once"):
        render_readme(readme.replace("<!-- machines -->", ""), readme_tables(tmp_path))


def test_a_broken_result_file_is_named(tmp_path):
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(MetricsError, match="old.json lacks accuracy"):
        readme_tables(tmp_path)


# -- examples ----------------------------------------------------------------------------------------------------------


def test_examples_are_spread_and_come_back_whole(tmp_path):
    made, answers = problems(), predictions(2)
    examples.keep_examples(tmp_path, made, answers, {"p1": np.eye(3), "p2": np.ones((3, 3))}, n=3)
    kept = load_examples(tmp_path)
    assert [e.problem.id for e in kept] == ["p0", "p6", "p12", "p1", "p2"]
    assert [e.occlusion is None for e in kept] == [True, True, True, False, False]
    assert kept[3].occlusion.tolist() == np.eye(3).tolist()
    for example in kept:
        original = made[int(example.problem.id[1:])]
        assert replace(example.problem, image=None) == replace(original, image=None)
        assert (example.problem.image is None) == (original.image is None)
        assert original.image is None or example.problem.image.tobytes() == original.image.tobytes()
        assert example.prediction == answers[int(example.problem.id[1:])]
    assert load_examples(tmp_path / "nowhere") == []


# -- page --------------------------------------------------------------------------------------------------------------


def test_the_page_stands_alone(run_folder):
    text = page.html_report(run_folder).read_text(encoding="utf-8")
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"<(link|script|iframe)|@import|url\(", text)
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert len(sources) == 3 + 2 + 1  # curve, categories, skills; two of three errors have pictures; the map
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    for heading in (
        "Result",
        "Learning curve",
        "By category",
        "Does it look at the picture?",
        "By skill",
        "What it got wrong",
        "What the answer depends on",
        "How it was made",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert "3 of 18 answers are wrong; 3 of them:" in text and "1 of 18 problems got no answer" in text
    assert "yes, &lt;b&gt;it&lt;/b&gt; is" in text and "<b>it</b>" not in text
    assert "prefers-color-scheme: dark" in text and "learning_rate" in text


def test_the_page_needs_only_the_metrics(tmp_path, metrics):
    metrics.save(tmp_path / "metrics.json")
    text = page.html_report(tmp_path).read_text(encoding="utf-8")
    assert "What it got wrong" not in text and "Learning curve" not in text and "83.3" in text
