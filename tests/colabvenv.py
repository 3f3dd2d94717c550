"""A Python as Colab has it: torch and Jupyter are there, mmlora is installed by the first cell of a notebook."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from importlib.util import cache_from_source
from pathlib import Path

import nbformat
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmlora.paths import NOTEBOOKS, cache_home

#: What Colab brings along, and papermill, which stands for the person who runs the cells.
THERE = (
    "torch torchvision numpy scipy matplotlib transformers accelerate datasets ipykernel papermill nbconvert".split()
)
FILES = sorted(NOTEBOOKS.glob("*.ipynb"))


def fresh_venv(folder: Path) -> tuple[Path, Path]:
    """A virtual environment with nothing but pip: its interpreter, and the folder of its packages."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return python, Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())


def on_colab(source: Path) -> dict[str, str]:
    variables = {
        "COLAB_RELEASE_TAG": "release-colab",
        "MMLORA_SOURCE": str(source),
        "MMLORA_HOME": str(cache_home()),
        "OMP_NUM_THREADS": "1",  # two of these run at a time
        "PIP_CONSTRAINT": os.devnull,
    }  # whatever this machine's own settings hold back
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables


def run_cell(python: Path, folder: Path, source: Path, *missing: str) -> subprocess.CompletedProcess:
    """The installing cell, on Colab but for the `missing` variables."""
    cell = nbformat.read(FILES[0], as_version=4).cells[1].source
    there = {name: value for name, value in on_colab(source).items() if name not in missing}
    return subprocess.run(
        [python, "-c", f"{cell}\nimport mmlora"], cwd=folder, env=there, capture_output=True, text=True
    )


def preinstall(names: list[str], site: Path) -> dict[str, str]:
    """Link packages of this Python, and all that they require, into another one's folder; their versions."""
    versions, seen, todo = {}, set(), [Requirement(name) for name in names]
    while todo:
        wanted = todo.pop()
        name, extras = canonicalize_name(wanted.name), frozenset({"", *wanted.extras})
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        needs = map(Requirement, metadata.requires(name) or [])
        todo += [n for n in needs if n.marker is None or any(n.marker.evaluate({"extra": e}) for e in extras)]
        if name in versions or name == "setuptools":  # which the environment may have brought along
            continue
        versions[name] = metadata.version(name)
        for file in metadata.files(name):
            if ".." in file.parts or "__pycache__" in file.parts:  # scripts; and what is compiled is linked below
                continue
            for source in (Path(file.locate()), Path(cache_from_source(str(file.locate())))):
                link = site / file if source.suffix != ".pyc" else site / file.parent / "__pycache__" / source.name
                if source.is_file() and not link.exists():
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(source)
    return versions
