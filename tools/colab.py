"""Notebooks that open on Colab and Kaggle: a badge above, and one cell that installs mmlora where it is missing.

Both follow from one setting, `Repository` in pyproject.toml. `python -m tools.colab` renders them into the notebooks
and the README; rendering twice changes nothing.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import nbformat

from mmlora.paths import NOTEBOOKS, PACKAGE

ID = "install"  # of the cell
#: torch, torchvision and numpy stay as they are: the others there were built for them, and a second torch takes minutes.
INSTALL = """\
# On Colab and Kaggle this installs mmlora; elsewhere it only looks whether it is there.
import importlib, os, subprocess, sys
from importlib.metadata import version
from pathlib import Path

if not importlib.util.find_spec("mmlora"):
    if not {"COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "MMLORA_SOURCE"} & set(os.environ):
        raise ImportError("this kernel has no mmlora: choose that of mmlora's environment (docs/install.md)")
    Path("kept.txt").write_text("\\n".join(f"{name}=={version(name)}" for name in ("torch", "torchvision", "numpy")))
    source = os.environ.get("MMLORA_SOURCE", "git+$repository")
    install = "pip install -q -c kept.txt".split()
    subprocess.run([sys.executable, "-m", *install, source], check=True)
    importlib.invalidate_caches()
import mmlora  # before torch, whose threads then share the cores with other programs"""
BADGES = re.compile(r"^\[!\[Open in Colab\].*\n\n?", re.MULTILINE)


def repository() -> str:
    """The project's address, such as https://github.com/owner/name."""
    urls = dict(url.split(", ") for url in metadata.metadata("mmlora").get_all("Project-URL"))
    return urls["Repository"]


def badges(notebook: str) -> str:
    """One line of markdown that opens the notebook on Colab or Kaggle."""
    page = f"{repository().partition('github.com/')[2]}/blob/main/notebooks/{notebook}"
    colab = f"https://colab.research.google.com/github/{page}"
    kaggle = f"https://kaggle.com/kernels/welcome?src=https://github.com/{page}"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})"
    )


def render(path: Path) -> None:
    """Put the badges into the first cell of a notebook, and the installing cell below it."""
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0]
    title, _, rest = BADGES.sub("", first.source).partition("\n\n")
    first.source = f"{title}\n\n{badges(path.name)}\n\n{rest}"
    found = next((cell for cell in notebook.cells if cell.get("id") == ID), None)
    if found is None:
        found = nbformat.v4.new_code_cell(id=ID)
        notebook.cells.insert(1, found)
    found.source = INSTALL.replace("$repository", repository())
    nbformat.write(notebook, path)


def render_readme(text: str) -> str:
    """The README's table with badges behind the link to each notebook."""
    linked = re.compile(r"^(\| \[[^\]]+\]\(notebooks/([\w-]+\.ipynb)\)).*?(?= \|)", re.MULTILINE)
    return linked.sub(lambda row: f"{row[1]} {badges(row[2])}", text)


if __name__ == "__main__":
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        render(file)
    readme = PACKAGE.parent / "README.md"
    readme.write_text(render_readme(readme.read_text(encoding="utf-8")), encoding="utf-8")
