"""Lessons run: once, from a wheel in an empty folder (see `colab_run` in conftest.py), each with its solutions behind it:
04 as `make run` runs it, for half a minute on the real model; 05 then reads that run.
"""

from __future__ import annotations

import re
import subprocess

import nbformat
import pytest
from colabvenv import run_cell
from test_notebooks import code, outputs, pictures

from mmlora.lessons.exercises import exercises
from mmlora.reporting.record import Metrics
from mmlora.reporting.tables import headline
from tools import notebooks as tool


def read(file) -> nbformat.NotebookNode:
    return nbformat.read(file, as_version=4)


def said(file) -> str:
    return "".join(output.get("text", "") for output in outputs(read(file)))


@pytest.mark.parametrize("lesson", ["00", "01", "02", "03", "05", "08", "09"])
def test_a_lesson_runs_and_its_solutions_are_right(colab_run, lesson):
    executed = read(colab_run.notebooks[lesson])
    assert pictures(executed) >= 4
    shown = "".join(output.get("text", "") for output in outputs(executed))
    assert [name for name in exercises(lesson) if f"{name} ✔ right" not in shown] == []
    assert [name for name in exercises(lesson) if f"{name} ○ open" not in shown] == [], "unanswered, it says so"


def test_the_runs_solutions_are_right(capsys):
    """They need no trained model."""
    names = {}
    for cell in code(tool.solutions_of("04_one_hour_run")):
        exec(cell.source, names)
    printed = capsys.readouterr().out
    assert [name for name in exercises("04") if f"{name} ✔ right" not in printed] == []


def test_the_run_leaves_a_complete_record(colab_run):
    folder, printed = colab_run.folder, colab_run.printed
    metrics = Metrics.load(folder / "metrics.json")
    assert all(metrics.minutes[part] > 0 for part in ("cache", "train", "score"))  # the data may be built already
    parts = sum(minutes for part, minutes in metrics.minutes.items() if part != "total")
    assert metrics.minutes["total"] == pytest.approx(parts, abs=0.05)
    assert metrics.minutes["align"] > 0 and (folder / "align.json").is_file(), "it learns to see by itself"
    assert metrics.samples_seen > 0 and metrics.peak_memory_gb > 0 and metrics.trainable_parameters > 1e5
    assert metrics.n_test == metrics.accuracy["n"]["Avg"] == metrics.base["n"]["Avg"] == metrics.majority["n"]["Avg"]
    assert (
        metrics.accuracy["n"]["IMG"] >= metrics.blank_image["n"]["Avg"] == metrics.controls["reading"]["n"]["Avg"] > 0
    )
    assert not (folder / "cache").exists()  # it is large, and nothing in the folder needs it any more
    assert metrics.machine["cores"] and metrics.versions["torch"] and metrics.model == "smolbridge-world"
    assert headline(metrics) in printed
    assert all(str(folder / name) in printed for name in ("report.html", "metrics.json", "adapter"))


def test_the_run_leaves_an_adapter_with_its_card(colab_run):
    adapter = colab_run.folder / "adapter"
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= {
        file.name for file in adapter.iterdir()
    }
    accuracy = Metrics.load(colab_run.folder / "metrics.json").accuracy["avg"]
    assert f"{accuracy} %" in (adapter / "README.md").read_text(encoding="utf-8")


def test_the_run_leaves_an_executed_notebook_with_pictures(colab_run):
    executed = read(colab_run.notebooks["04"])
    assert all(cell.execution_count for cell in code(executed))
    assert pictures(executed) >= 4
    assert not any("\r" in output.get("text", "") for output in outputs(executed))


def test_the_report_needs_nothing_but_itself(colab_run):
    page = (colab_run.folder / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page) + re.findall(r"url\(([^)]*)\)", page)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert "<script src" not in page and "@import" not in page


def test_reading_the_results(colab_run):
    executed = colab_run.notebooks["05"]
    assert pictures(read(executed)) >= 4
    assert f"{colab_run.folder.name}: " in said(executed), "notebook 05 looks where notebook 04 wrote"
    assert "of 1 texts are the same" in said(executed)


# -- on Colab ------------------------------------------------------------------------------------------------------------


def test_what_was_there_before_is_untouched(colab_run):
    """The real packages: mmlora comes as a wheel and changes no version; run again, the cell does nothing."""
    if colab_run.before is None:
        pytest.skip("no package index to install from")
    asked = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    command = [colab_run.python, "-c", asked, *colab_run.before]
    after = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert after == list(colab_run.before.values())
    assert run_cell(colab_run.python, colab_run.work, colab_run.work / "nowhere").returncode == 0
    assert Metrics.load(colab_run.folder / "metrics.json").versions["torch"] == colab_run.before["torch"]


def test_a_wheel_has_the_recorded_hour_and_no_program_of_the_maintainers(colab_run):
    if colab_run.before is None:
        pytest.skip("no package index to install from")
    package = next((colab_run.python.parent.parent / "lib").glob("python*/site-packages/mmlora"))
    assert Metrics.load(package / "_results" / "one_hour_smolbridge" / "metrics.json").n_test == 1000
    assert {"_data", "_weights", "_notebooks", "_results", "py.typed"} <= {path.name for path in package.iterdir()}
    assert not list(package.rglob("build_assets.py")) and not list(package.parent.glob("tools"))


def test_nothing_is_built_in_a_runs_folder(colab_run):
    assert not list(colab_run.work.rglob("*.parquet")), "MiniSQA belongs into the user's cache"
    assert not (colab_run.folder / "runs").exists()
