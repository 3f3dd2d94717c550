"""Notebooks are well made, which is checked without running them; test_executed_lessons.py runs them."""

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
    assert len(files) > 100 and sum(file.stat().st_size for file in files) < 65e6
