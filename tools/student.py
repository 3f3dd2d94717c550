"""Copies of the lessons for a room of learners: `make student` writes student/, without outputs and without solutions.

With the helper package's folders beside them they would be a second checkout, so they hold notebooks only: each learner
has mmlora installed (docs/workshop.md). The folder is made anew each time and never edited by hand.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor

from mmlora.paths import NOTEBOOKS, PACKAGE

STUDENT = PACKAGE.parent / "student"
LAST_RUN = "**What came out last time.**"
YOURS = "**What came out when you ran it?** Note it here: what you expected, and what you saw."


def copies(folder: Path = STUDENT) -> list[Path]:
    """Write the copy of every lesson into `folder`, which is made anew, and return them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    written = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(path, as_version=4), {})
        notebook.metadata.pop("stamp", None)
        for cell in notebook.cells:
            cell.source = cell.source.replace("](solutions/", "](../notebooks/solutions/")
        first = notebook.cells[0]
        first.source = "\n\n".join(YOURS if part.startswith(LAST_RUN) else part for part in first.source.split("\n\n"))
        written.append(folder / path.name)
        nbformat.write(notebook, written[-1])
    return written


if __name__ == "__main__":
    for copy in copies():
        print(copy.relative_to(PACKAGE.parent))
