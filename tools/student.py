"""Copies of the lessons for a room of learners: `make student` writes student/, without outputs and without solutions.

With the helper package's folders beside them they would be a second checkout, so they hold notebooks only: each learner
has mmlora installed (docs/workshop.md). What learners write into the copies is theirs: an existing folder is left alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor

from mmlora.errors import MMLoraError
from mmlora.paths import NOTEBOOKS, PACKAGE

STUDENT = PACKAGE.parent / "student"
LAST_RUN = "**What came out last time.**"
YOURS = "**What came out when you ran it?** Note it here: what you expected, and what you saw."


class StudentError(MMLoraError):
    """Copies that would take the place of something; the message says of what."""


def copies(folder: Path = STUDENT) -> list[Path]:
    """Write the copy of every lesson into `folder`, which must be new, and return them.

    Raises `StudentError` where the folder is there: somebody may have answered in it.
    """
    if folder.exists():
        raise StudentError(f"{folder} is there already, perhaps with somebody's answers; rename it or remove it")
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
    try:
        print(*(copy.relative_to(PACKAGE.parent) for copy in copies()), sep="\n")
    except StudentError as error:
        sys.exit(str(error))
