"""tools.notebooks: a lesson and its solutions run in one kernel, and what comes out is stored whole and tied to the code."""

from __future__ import annotations

import json

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import figures
from tools import notebooks as tool


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two lessons: one with a solution and a figure in its prose, one that fails."""
    monkeypatch.setattr(tool, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(tool, "SOLUTIONS", tmp_path / "solutions")
    monkeypatch.setattr(tool, "RECORDS", tmp_path / "results" / "notebooks")
    monkeypatch.setattr(tool, "FIGURES", {"00_good": "{'sum': total}"})
    monkeypatch.setattr(figures, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(figures, "files", lambda: [tmp_path / "00_good.ipynb"])
    parameters = new_code_cell("N = 3", metadata={"tags": ["parameters"]})
    prose = new_markdown_cell("The sum was <!--=figures.sum-->?<!--/-->.")
    good = [prose, parameters, new_code_cell("total = sum(range(N))\nprint(total)")]
    bad = [parameters, new_code_cell("1 / 0")]
    solution = [new_code_cell("%run ../00_good.ipynb"), new_code_cell("print(total + 1)")]
    (tmp_path / "solutions").mkdir()
    for name, cells in {"00_good": good, "01_bad": bad, "solutions/00_good": solution}.items():
        nbformat.write(new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    return tmp_path


def printed(path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return ["".join(o.get("text", "") for o in cell.get("outputs", [])).strip() for cell in cells]


@pytest.mark.filterwarnings("ignore")
def test_outputs_record_and_figures_come_from_one_run_and_are_kept_when_a_later_one_fails(folder):
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        tool.main(["00_good=N = 5", "01_bad"])
    lesson = nbformat.read(folder / "00_good.ipynb", as_version=4)
    assert printed(folder / "00_good.ipynb") == ["", "", "10"] and lesson.cells[1].source == "N = 3"
    assert printed(folder / "solutions" / "00_good.ipynb") == ["", "11"]
    assert figures.shown(lesson.cells[0].source) == "The sum was 10."
    record = json.loads((folder / "results" / "notebooks" / "00_good.json").read_text())
    assert record["figures"] == {"sum": 10} and record["parameters"] == "N = 5" == tool.recorded_parameters("00_good")
    assert tool.parted("00_good") == [] and tool.parted("01_bad") == ["outputs", "record"]
    lesson.cells[2].source += "  # more"
    nbformat.write(lesson, folder / "00_good.ipynb")
    assert tool.parted("00_good") == ["outputs", "record", "solutions"]
