"""Notebooks open on Colab: badges from one setting, and a first cell that installs without touching what is there."""

import sys
from pathlib import Path

import nbformat
import pytest
from colabvenv import FILES, fresh_venv, run_cell

from mmlora.paths import PACKAGE
from tools import colab


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_notebook_is_rendered_from_the_one_setting(file, tmp_path):
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    colab.render(copy)
    assert nbformat.read(copy, as_version=4) == nbformat.read(file, as_version=4), "run python -m tools.colab"
    first, install = nbformat.read(file, as_version=4).cells[:2]
    owner = colab.repository().removeprefix("https://github.com/")
    assert f"https://colab.research.google.com/github/{owner}/blob/main/notebooks/{file.name}" in first.source
    assert install.source.count(colab.repository()) == 1


def test_the_readme_has_a_badge_for_each_notebook():
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    assert colab.render_readme(readme) == readme, "run python -m tools.colab"
    assert all(colab.badges(file.name) in readme for file in FILES)


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
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
    )
    return folder


def test_the_first_cell_installs_and_leaves_torch_alone(colab_like, tmp_path):
    python, site = colab_like
    source = project(tmp_path / "project", "numpy>=2.0")
    done = run_cell(python, tmp_path, source)
    assert done.returncode == 0, done.stderr
    assert (site / "mmlora-0.dist-info").is_dir()
    assert {p.name for p in site.glob("*.dist-info") if p.name.startswith(("torch", "numpy"))} == {
        "torch-2.9.1+cu126.dist-info",
        "torchvision-0.24.1+cu126.dist-info",
        "numpy-2.0.2.dist-info",
    }
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


def test_a_kernel_of_ones_own_without_mmlora_is_named_and_left_alone(colab_like, tmp_path):
    python, site = colab_like
    done = run_cell(python, tmp_path, project(tmp_path / "project", "numpy>=2.0"), "COLAB_RELEASE_TAG", "MMLORA_SOURCE")
    assert done.returncode != 0 and "this kernel has no mmlora" in done.stderr
    assert not (site / "mmlora-0.dist-info").exists()
