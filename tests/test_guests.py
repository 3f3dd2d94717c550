"""Models and data sets that come as packages of their own are found by name, whoever wrote them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmlora import guests
from mmlora.models.catalog import entries, find, nearest
from mmlora.needs import needs
from mmlora.problems.load import licence, load_problems
from mmlora.problems.rows import DataError

PROBLEMS = """
from mmlora.problems.record import Problem

LICENCE = "mit"

def load(split, limit):
    for number in range(3 if limit is None else limit):
        yield Problem(f"{split}-{number}", "Is it?", ("yes", "no"), number % 2)
"""
MODEL = """
from mmlora.models.catalog import Entry

ENTRY = Entry("toynet", None, "Toy", "MIT", 1_000_000, None, 4, "Any machine.")

def download():
    return 5_000_000_000, 2_000_000_000
"""


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Another distribution, as pip leaves one behind, with a data set and a model."""
    (tmp_path / "toyset.py").write_text(PROBLEMS)
    (tmp_path / "toynet.py").write_text(MODEL)
    info = tmp_path / "toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmlora.problems]\ntoyset = toyset\n[mmlora.models]\ntoynet = toynet\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("toyset", "toynet"):
        sys.modules.pop(name, None)


def test_ours_are_found_and_nothing_heavy_is_imported():
    program = (
        "import sys; from mmlora import guests; print(guests.names('models'), guests.names('problems'), "
        "guests.guest('models', 'smolbridge').ENTRY.name, guests.guest('models', 'minisqa'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['smolbridge', 'smolbridge-world'] ['minisqa'] smolbridge None False"


def test_a_data_set_of_another_package_is_loaded_by_its_name(toys):
    assert guests.names("problems") == ["minisqa", "toyset"]
    assert [problem.id for problem in load_problems("toyset", "dev")] == ["dev-0", "dev-1", "dev-2"]
    assert len(load_problems("toyset", limit=2)) == 2 and licence("toyset", []) == "mit"
    with pytest.raises(DataError, match='give "minisqa", "toyset", a data set of the hub'):
        load_problems("toysett")


def test_a_model_of_another_package_is_in_the_catalogue(toys):
    assert [entry.name for entry in entries()][:3] == ["smolbridge", "smolbridge-world", "toynet"]
    assert find("ToyNet").licence == "MIT" and nearest("toy-net") == ["toynet"]
    found = needs("toynet")
    assert (found.download, found.parameters) == (2_000_000_000, 1_000_000) and "Any machine." in str(found)


def test_without_the_package_the_name_is_unknown():
    assert guests.guest("problems", "toyset") is None and find("toynet") is None
