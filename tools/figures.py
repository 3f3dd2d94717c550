"""Figures in prose come from records: `python -m tools.figures` puts them where notebooks, README and docs ask for them.

    accuracy <!--=one_hour_smolbridge#accuracy.avg:.1f-->90.0<!--/--> %

shows what results/one_hour_smolbridge.json says, rounded to one digit; readers see the number only. In a notebook a path
without a file is looked up in the notebook's own record. Rendering twice changes nothing.
"""

from __future__ import annotations

import json
import re
from functools import cache, reduce
from pathlib import Path
from typing import Any

import nbformat

from mmlora.errors import MMLoraError
from mmlora.paths import NOTEBOOKS, PACKAGE, RESULTS

MARK = re.compile(
    r"<!--=(?:(?P<file>[\w/-]+)#)?(?P<path>[\w .?&,'()%-]+?)(?::(?P<format>[^:>]*?))?-->.*?<!--/-->", re.DOTALL
)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
OPEN = "not measured yet"
ROOT = PACKAGE.parent


class FigureError(MMLoraError):
    """A figure that no record holds; the message names the record and the path in it."""


@cache
def _record(name: str) -> Any:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def figure(record: str, path: str, format: str = "") -> str:
    """What results/RECORD.json holds at the dotted path, formatted; "not measured yet" without such a file.

    Raises `FigureError` for a path that the record lacks.
    """
    found = _record(record)
    if found is None:
        return OPEN
    try:
        value = reduce(lambda at, key: at[int(key)] if isinstance(at, list) else at[key], path.split("."), found)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise FigureError(
            f"results/{record}.json has nothing at {path!r} ({error}); mend the path in the prose"
        ) from error
    return f"{value:{format}}"


def rendered(text: str, own: str | None = None) -> str:
    """The text with all its figures filled in; `own` is the record of a path without a file."""

    def fill(mark: re.Match) -> str:
        record = mark["file"] or own
        if record is None:
            raise FigureError(f"{mark[0]} names no record; write FILE#{mark['path']}")
        opening = mark[0][: mark[0].index("-->") + 3]
        return f"{opening}{figure(record, mark['path'], mark['format'] or '')}<!--/-->"

    return MARK.sub(fill, text)


def shown(text: str) -> str:
    """What a reader sees of it: without the marks."""
    return COMMENT.sub("", text)


def render_file(path: Path) -> bool:
    """Fill in the figures of a notebook's prose or of a markdown file; whether anything changed."""
    _record.cache_clear()
    before = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        notebook = nbformat.reads(before, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = rendered(cell.source, f"notebooks/{path.stem}")
        if nbformat.reads(before, as_version=4) == notebook:
            return False
        nbformat.write(notebook, path)
        return True
    after = rendered(before)
    if after != before:
        path.write_text(after, encoding="utf-8")
    return after != before


def files() -> list[Path]:
    """Everything whose prose may hold figures."""
    return [*sorted(NOTEBOOKS.rglob("*.ipynb")), ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


if __name__ == "__main__":
    for file in files():
        if render_file(file):
            print(file.relative_to(ROOT))
