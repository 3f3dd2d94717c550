"""Notebooks are well made, which is checked without running them, and they run, which is checked by running them.

They run once, from a wheel in an empty folder (see `colab_run` in conftest.py), each with its solutions
behind it: 04 as `make run` runs it, for half a minute on the real model; 05 then reads that run.
"""

from __future__ import annotations

import ast
import builtins
import re
import statistics
import subprocess

import nbformat
import pytest

from mmlora.lessons.exercises import exercises, lessons
from mmlora.paths import NOTEBOOKS, PACKAGE
from mmlora.reporting.record import Metrics
from mmlora.reporting.tables import headline
from tools import notebooks as tool

FILES = sorted(NOTEBOOKS.glob("*.ipynb"))
LONGEST = 14  # lines of code in a cell: one idea
PROMISES = ("**What you will learn.**", "**How long it takes.**", "**What came out last time.**")


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def notebook(request):
    found = nbformat.read(request.param, as_version=4)
    nbformat.validate(found)
    return found


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook) -> list:
    return [output for cell in code(notebook) for output in cell.outputs]


def pictures(notebook) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def unbound(cells: list[str]) -> list[str]:
    """Names that a cell reads though neither it nor a cell above it binds them."""
    known, found = {*dir(builtins), "__name__"}, []
    for source in cells:
        nodes = list(ast.walk(ast.parse(source)))
        names = [node for node in nodes if isinstance(node, ast.Name)]
        known |= {node.id for node in names if not isinstance(node.ctx, ast.Load)}
        known |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler))}
        known |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        known |= {(n.asname or n.name).split(".")[0] for n in nodes if isinstance(n, ast.alias)}
        found += [node.id for node in names if node.id not in known]
    return found


# -- without running -----------------------------------------------------------------------------------------------------


def test_there_are_notebooks():
    assert [file.stem[:2] for file in FILES] == ["00", "01", "02", "03", "04", "05", "08", "09"] == lessons()


def test_outputs_belong_to_the_code(notebook):
    """The stamp that `make notebooks` leaves: change a code cell, and this says that the outputs are another code's."""
    name = next(file.stem for file in FILES if file.stem.startswith(notebook.cells[0].source[2:4]))
    assert tool.parted(name) == [], f"run python -m tools.notebooks {name} in a clean checkout"


def test_a_changed_cell_parts_outputs_and_code(notebook):
    before = tool.stamp(notebook)
    next(cell for cell in notebook.cells if cell.cell_type == "markdown").source += " More prose."
    assert tool.stamp(notebook) == before
    code(notebook)[-1].source += "  # another"
    assert tool.stamp(notebook) != before


def test_begins_with_what_one_learns_and_ends_with_what_next(notebook):
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.cell_type == last.cell_type == "markdown"
    assert [p for p in PROMISES if p not in first.source] == []
    assert "## What next" in last.source


def test_asks_two_to_four_exercises_and_ends_with_a_quiz(notebook):
    lesson = notebook.cells[0].source[2:4]
    asked = [name for cell in code(notebook) for name in re.findall(r"^check\(\"(.*?)\", answer\)", cell.source, re.M)]
    assert asked == list(exercises(lesson)) and 2 <= len(asked) <= 4
    headings = [h for cell in notebook.cells for h in re.findall(r"^### Exercise (.*)$", cell.source, re.M)]
    assert headings == asked
    assert code(notebook)[-1].source.endswith(f'quiz("{lesson}")')


def test_cells_are_short_on_the_whole(notebook):
    assert statistics.median(len(cell.source.splitlines()) for cell in code(notebook)[1:]) <= 8


def test_cells_are_short_and_parse(notebook):
    for cell in code(notebook):
        ast.parse(cell.source)
        assert 1 <= len(cell.source.splitlines()) <= LONGEST, cell.source


def test_no_name_is_unbound(notebook):
    name = next(file.stem for file in FILES if file.stem.startswith(notebook.cells[0].source[2:4]))
    behind = tool.joined(notebook, tool.solutions_of(name))  # a solution uses its lesson's names
    assert unbound([cell.source for cell in code(behind)]) == []


def test_every_exercise_has_a_solution(notebook):
    lesson = notebook.cells[0].source[2:4]
    solutions = tool.solutions_of(next(file.stem for file in FILES if file.stem.startswith(lesson)))
    solved = [name for cell in code(solutions) for name in re.findall(r"check\(\"(.*?)\", ", cell.source)]
    assert solved == list(exercises(lesson))
    shown = "".join(output.get("text", "") for output in outputs(solutions))
    assert [name for name in solved if f"{name} ✔ right" not in shown] == []


def test_an_unbound_name_would_be_found():
    assert unbound(["import a.b as c", "def f(x):\n    return [x + y for y in c]", "f(z)"]) == ["z"]
    assert unbound(["print(late)", "late = 1"]) == ["late"]


def test_parameters_are_tagged_for_papermill(notebook):
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert tags == ["parameters"]
    assert notebook.metadata.kernelspec.name == "python3"


def test_links_lead_to_files(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    local = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert [link for link in local if not (NOTEBOOKS / link).is_file()] == []


def test_outputs_are_those_of_one_clean_run(notebook):
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert [output.ename for output in outputs(notebook) if output.output_type == "error"] == []
    assert pictures(notebook) >= 4
    assert not any("\r" in output.get("text", "") for output in outputs(notebook)), "progress bars: keep the last state"


def test_a_notebook_is_under_a_megabyte(notebook):
    assert len(nbformat.writes(notebook).encode()) < 1e6


def test_the_tracked_tree_stays_small():
    """Six notebooks now, a dozen later; a clone over bad wifi must not take all morning."""
    if not (PACKAGE.parent / ".git").exists():
        pytest.skip("no history here, so nobody can tell what is tracked")
    command = ["git", "ls-files", "-z"]
    names = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [file for name in names if name and (file := PACKAGE.parent / name).is_file()]
    assert len(files) > 100 and sum(file.stat().st_size for file in files) < 64e6


# -- by running ----------------------------------------------------------------------------------------------------------


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
