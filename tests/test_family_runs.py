"""Every architecture from a saved model and a folder of one's own problems to a scored adapter; notebooks on two of them."""

import families
import matplotlib
import nbformat
import pytest
import torch
from accelerate.state import AcceleratorState
from test_experiment import write_problems

from mmlora import Experiment, Settings, load_vlm
from mmlora.models import precision, vlm
from mmlora.paths import NOTEBOOKS
from mmlora.reporting.record import Metrics
from mmlora.training import log

pytestmark = pytest.mark.filterwarnings("ignore:.*generations were cut")


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("own"))


@pytest.fixture
def saved(tmp_path):
    """`saved(name)`: the folder of a tiny model of that family."""

    def save(name: str) -> str:
        made = families.build(name)
        made.model.save_pretrained(tmp_path / "model")
        made.processor.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    matplotlib.use("Agg")
    return save


def cells(name: str) -> list:
    return [cell for cell in nbformat.read(NOTEBOOKS / name, as_version=4).cells if cell.cell_type == "code"]


def execute(name: str, space: dict | None = None, **parameters) -> dict:
    """The notebook's cells in this process, with other parameters, in a fresh or a used namespace; what they bound."""
    space = {"display": lambda *_: None} if space is None else space
    for cell in cells(name):
        exec(cell.source, space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= parameters
    return space


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_runs(name, saved, own_folder, tmp_path):
    run = Experiment(Settings(model=saved(name), data=own_folder, steps=4), tmp_path / "out")
    metrics = run.run()
    assert metrics.samples_seen == 32 and metrics.n_test == 8 and metrics.blank_image["n"]["Avg"] == 6
    assert Metrics.load(tmp_path / "out" / "metrics.json") == metrics
    assert hasattr(run.samples, "boundary")
    again = load_vlm(tmp_path / "out" / "adapter")
    assert type(again.processor) is type(run.vlm.processor)


@pytest.mark.parametrize("name", ["smolvlm", "text-only"])
def test_every_notebook_runs_and_its_cells_run_again(name, saved, own_folder, tmp_path, capsys):
    model, out = saved(name), str(tmp_path / "out")
    small = {"MODEL": model, "MINUTES": 0.02, "TRAIN": 8, "TEST": 2}
    space = execute("00_start_here.ipynb", **small)
    execute(
        "00_start_here.ipynb", space, **small, RANK=1, SKILL="Use guide words"
    )  # its exercises; a skill without pictures
    changes = {"model": model, "data": own_folder, "minutes": 0.1}
    execute("04_one_hour_run.ipynb", CHANGES=changes, OUT=out)
    assert Metrics.load(tmp_path / "out" / "metrics.json").samples_seen > 0
    capsys.readouterr()
    execute("05_reading_the_results.ipynb", RUN=out, MAPS=1, GRID=2)
    assert "of 1 texts are the same" in capsys.readouterr().out  # how many depends on where an endless one was cut


def test_the_cells_of_the_hour_run_again(saved, own_folder, tmp_path, capsys):
    space = {"display": lambda *_: None}
    changes = {
        "model": saved("smolvlm"),
        "data": own_folder,
        "minutes": 0.1,
        "method": "likelihood",
        "format": "answer",
    }
    for cell in cells("04_one_hour_run.ipynb"):
        exec(cell.source, space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= {"CHANGES": changes, "OUT": str(tmp_path / "out")}
        elif cell.get("id") != "install":
            exec(cell.source, space)
    assert "training begins anew" in capsys.readouterr().out
    metrics = Metrics.load(tmp_path / "out" / "metrics.json")
    assert metrics.scored_by["accuracy"] == metrics.settings["method"] == "likelihood"  # as exercise 1 asks for


def test_an_interrupted_run_goes_on(saved, own_folder, tmp_path, monkeypatch, capsys):
    settings = Settings(model=saved("smolvlm"), data=own_folder, steps=6)

    def closed(journal, *_):
        if journal.records[-1]["step"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(log.Journal, "write", closed)
        Experiment(settings, tmp_path / "out").run()
    run = Experiment(settings, tmp_path / "out", resume=True)
    metrics = run.run()
    said = "".join(capsys.readouterr())
    assert "resumed from checkpoint-00000003" in said, "a step that was taken is kept"
    assert metrics.samples_seen == run.log.samples_seen > 0


@pytest.fixture
def halves(monkeypatch):
    """What a card does, done on the CPU: weights and products in bfloat16."""

    def forget():
        precision.precision.cache_clear()
        AcceleratorState._reset_state(reset_partial_state=True)

    monkeypatch.setenv("MMLORA_PRECISION", "bfloat16")
    monkeypatch.setattr(vlm, "weights_dtype", lambda: torch.bfloat16)
    forget()
    yield
    forget()


def test_every_notebook_runs_in_half_precision(saved, own_folder, tmp_path, halves):
    model, out = saved("smolvlm"), str(tmp_path / "out")
    first = execute("00_start_here.ipynb", MODEL=model, MINUTES=0.02, TRAIN=8, TEST=2)
    hour = execute("04_one_hour_run.ipynb", CHANGES={"model": model, "data": own_folder, "minutes": 0.1}, OUT=out)
    read = execute("05_reading_the_results.ipynb", RUN=out, MAPS=1, GRID=2)
    assert {made.model.dtype for made in (first["vlm"], hour["run"].vlm, read["vlm"])} == {torch.bfloat16}
