"""Notebooks open on Colab: badges from one setting, and a first cell that installs without touching what is there."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmlora.doctor import index_answers
from mmlora.paths import NOTEBOOKS, PACKAGE, cache_home
from mmlora.reporting.record import Metrics
from tools import colab

FILES = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_notebook_is_rendered_from_the_one_setting(file, tmp_path):
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    colab.render(copy)
    assert nbformat.read(copy, as_version=4) == nbformat.read(file, as_version=4), "run python -m mmlora.colab"
    first, install = nbformat.read(file, as_version=4).cells[:2]
    owner = colab.repository().removeprefix("https://github.com/")
    assert f"https://colab.research.google.com/github/{owner}/blob/main/notebooks/{file.name}" in first.source
    assert install.source.count(colab.repository()) == 1


def test_the_readme_has_a_badge_for_each_notebook():
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    assert colab.render_readme(readme) == readme, "run python -m mmlora.colab"
    assert all(colab.badges(file.name) in readme for file in FILES)


def fresh_venv(folder: Path) -> tuple[Path, Path]:
    """A virtual environment with nothing but pip: its interpreter, and the folder of its packages."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return python, Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())


@pytest.fixture
def colab_like(tmp_path):
    """A Python with other versions of torch, torchvision and numpy than this one, no mmlora, and Colab's variables: the
    packages are empty, for only what pip does with them is tested."""
    python, site = fresh_venv(tmp_path / "venv")
    for name, version in (("torch", "2.9.1+cu126"), ("torchvision", "0.24.1+cu126"), ("numpy", "2.0.2")):
        (site / f"{name}.py").write_text(f"__version__ = '{version}'\n")
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text(f"{name}.py,,\n")
        (info / "INSTALLER").write_text("pip\n")
    return python, site


def project(folder: Path, requirement: str) -> Path:
    """A package called mmlora with one requirement, as small as can be."""
    (folder / "mmlora").mkdir(parents=True)
    (folder / "mmlora" / "__init__.py").write_text("")
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "mmlora"\nversion = "0"\ndependencies = ["{requirement}"]\n'
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n')
    return folder


def on_colab(source: Path) -> dict[str, str]:
    variables = {"COLAB_RELEASE_TAG": "release-colab", "MMLORA_SOURCE": str(source), "MMLORA_HOME": str(cache_home()),
                 "PIP_CONSTRAINT": os.devnull}  # whatever this machine's own settings hold back
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables


def run_cell(python: Path, folder: Path, source: Path) -> subprocess.CompletedProcess:
    cell = nbformat.read(FILES[0], as_version=4).cells[1].source
    return subprocess.run([python, "-c", f"{cell}\nimport mmlora"], cwd=folder, env=on_colab(source), capture_output=True,
                          text=True)


def test_the_first_cell_installs_and_leaves_torch_alone(colab_like, tmp_path):
    python, site = colab_like
    source = project(tmp_path / "project", "numpy>=2.0")
    done = run_cell(python, tmp_path, source)
    assert done.returncode == 0, done.stderr
    assert (site / "mmlora-0.dist-info").is_dir()
    assert {p.name for p in site.glob("*.dist-info") if p.name.startswith(("torch", "numpy"))} == {
        "torch-2.9.1+cu126.dist-info", "torchvision-0.24.1+cu126.dist-info", "numpy-2.0.2.dist-info"}
    again = run_cell(python, tmp_path, tmp_path / "nowhere")  # installed already: the source is not asked
    assert again.returncode == 0, again.stderr


def test_a_requirement_that_would_replace_torch_is_refused(colab_like, tmp_path):
    python, site = colab_like
    done = run_cell(python, tmp_path, project(tmp_path / "project", "torch>=99"))
    assert done.returncode != 0 and "torch" in done.stderr
    assert (site / "torch-2.9.1+cu126.dist-info").is_dir() and not (site / "mmlora-0.dist-info").exists()


def test_on_a_local_install_it_does_nothing(tmp_path):
    done = run_cell(Path(sys.executable), tmp_path, tmp_path / "nowhere")
    assert done.returncode == 0 and not done.stdout and not list(tmp_path.iterdir())


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
            if ".." not in file.parts and "__pycache__" not in file.parts:  # no scripts
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                (site / file).symlink_to(file.locate())
    return versions


def test_notebook_04_runs_where_torch_was_there_before(tmp_path):
    if not index_answers():
        pytest.skip("no package index to install from")
    python, site = fresh_venv(tmp_path / "venv")
    before = preinstall(["torch", "torchvision", "numpy"], site)
    installed = run_cell(python, tmp_path, PACKAGE.parent)
    assert installed.returncode == 0, installed.stderr
    asked = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    after = subprocess.run([python, "-c", asked, *before], check=True, capture_output=True, text=True).stdout.split()
    assert after == list(before.values()) and (site / "torch" / "__init__.py").is_symlink()
    again = run_cell(python, tmp_path, tmp_path / "nowhere")
    assert again.returncode == 0, again.stderr
    done = subprocess.run(
        [python, "-m", "papermill", NOTEBOOKS / "04_one_hour_run.ipynb", "executed.ipynb", "-k", "python3", "--no-progress-bar",
         "-p", "MINUTES", "0.2", "-p", "OUT", "drive/run-1"], cwd=tmp_path, env=on_colab(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = Metrics.load(tmp_path / "drive" / "run-1" / "metrics.json")
    assert metrics.samples_seen > 0 and metrics.versions["torch"] == before["torch"]
