"""Figures that prose speaks of stand in a file under results/: those of README, docs and the notebooks' words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

from mmlora.paths import PACKAGE, RESULTS
from tools import figures, readme, recipe_table

ROOT = PACKAGE.parent
HOUR = json.loads((RESULTS / "one_hour_smolbridge.json").read_text(encoding="utf-8"))

#: What prose says of the recorded hour, and what the record says.
SAID = {
    r"(\d+\.\d) % of (?:MiniSQA's )?1,000 test problems(?: are)? right": HOUR["accuracy"]["avg"],
}


def prose() -> dict[str, str]:
    """The words of README and docs, line breaks gone; those of notebooks take every figure from a record by a mark."""
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    return {path.name: " ".join(figures.shown(path.read_text(encoding="utf-8")).split()) for path in files}


@pytest.mark.parametrize("pattern", SAID)
def test_the_recorded_hour_is_told_as_it_was(pattern):
    told = {(name, float(next(filter(None, match.groups())))) for name, text in prose().items()
            for match in re.finditer(pattern, text)}  # fmt: skip
    assert told, "nobody speaks of it any more: take the pattern out"
    assert {(name, value) for name, value in told if value != round(SAID[pattern], 1)} == set()


def test_the_readmes_tables_are_those_of_the_records():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.render_readme(text, readme.readme_tables()) == text, "run python -m tools.readme"


def test_the_recipes_tables_are_those_of_the_records():
    path = ROOT / "docs" / "recipe.md"
    text = path.read_text(encoding="utf-8")
    assert readme.render_readme(text, recipe_table.tables()) == text, "run python -m tools.recipe_table"


def markdown(path: Path) -> list[str]:
    """The pieces of a file that a reader sees as prose."""
    if path.suffix != ".ipynb":
        return [path.read_text(encoding="utf-8")]
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]


@pytest.mark.parametrize("path", figures.files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_figures_in_prose_are_rendered_from_records(path: Path):
    for text in markdown(path):
        assert figures.rendered(text, f"notebooks/{path.stem}") == text, "run python -m tools.figures"
        assert not re.search(r"^\s*<!--=", text, re.MULTILINE), (
            "a line that begins with a mark is no paragraph any more"
        )
        assert "-->?<!--" not in text


def test_a_figure_comes_from_its_record():
    asked = "<!--=one_hour_smolbridge#accuracy.ci95.0:.1f-->?<!--/--> %"
    filled = figures.rendered(asked)
    assert figures.shown(filled) == f"{HOUR['accuracy']['ci95'][0]:.1f} %"
    assert figures.rendered(filled) == filled
    assert figures.shown(figures.rendered("<!--=no_such_run#accuracy.avg-->?<!--/-->")) == "not measured yet"
    with pytest.raises(figures.FigureError, match="one_hour_smolbridge.json has nothing at 'accuracy.mean'"):
        figures.rendered("<!--=one_hour_smolbridge#accuracy.mean-->?<!--/-->")


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: str(path.relative_to(RESULTS)))
def test_a_record_says_when_and_where_it_was_made(path: Path):
    record = json.loads(path.read_text(encoding="utf-8"))
    if path.name == "adapter_config.json" or path.parent.name == "adapter":
        pytest.skip("an adapter's file, no record")
    if path.name == "align.json" and (beside := path.with_name("metrics.json")).is_file():
        record = json.loads(
            beside.read_text(encoding="utf-8")
        )  # what a run's connector learned: the run says when and where
    parts = [
        record[numbers] for numbers in ("bfloat16", "float32") if numbers in record
    ]  # benchmarks/speed.py: one each
    told = [record] if "date" in record else parts
    assert told and all({"date", "machine", "versions"} <= part.keys() for part in told)
