"""Every notebook on every architecture: from a saved model and a folder of one's own problems to a scored adapter."""

import json
import random

import families
import matplotlib
import nbformat
import pytest
import torch
from accelerate.state import AcceleratorState
from tinyvlm import picture

from mmlora.adapters.files import load_adapter
from mmlora.models import precision
from mmlora.models import precision as models
from mmlora.models.vlm import load_vlm
from mmlora.paths import NOTEBOOKS
from mmlora.reporting.record import Metrics
from mmlora.training import log as trainlog

COLOURS = ("red", "green", "blue", "olive")


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """Pictures and questions as a teacher would lay them down."""
    folder, rng = tmp_path_factory.mktemp("own"), random.Random(0)
    for split, count in (("train", 24), ("test", 8)):
        rows = []
        for number in range(count):
            left, right = rng.sample(COLOURS, 2)
            row = {"question": "Which colour is on the left?", "choices": list(COLOURS), "answer": COLOURS.index(left),
                   "solution": f"The left one is {left}.", "skill": "colours"}
            if number % 4:
                row["image"] = f"{split}-{number}.png"
                picture(left, right, (60 + 4 * number, 48)).save(folder / row["image"])
            else:
                row["hint"] = f"On the left is {left}."
            rows.append(row)
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def code(name: str) -> list:
    return [cell for cell in nbformat.read(NOTEBOOKS / name, as_version=4).cells if cell.cell_type == "code"]


def execute(name: str, **parameters) -> dict:
    """The notebook's cells in this process, with other parameters; what they bound."""
    space = {"display": lambda *_: None}
    for cell in code(name):
        exec(cell.source, space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= parameters
    return space


@pytest.fixture
def saved(tmp_path):
    """`saved(name)`: the folder of a tiny model of that family."""

    def save(name: str) -> str:
        vlm = families.build(name)
        vlm.model.save_pretrained(tmp_path / "model")
        (vlm.processor if families.FAMILIES[name].sees else vlm.processor.tokenizer).save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    matplotlib.use("Agg")
    return save


@pytest.mark.parametrize("name", families.FAMILIES)
@pytest.mark.filterwarnings("ignore:.*generations were cut")
def test_every_notebook_runs(name, saved, own_folder, tmp_path, capsys):
    model, out = saved(name), str(tmp_path / "out")
    execute("00_start_here.ipynb", MODEL=model, MINUTES=0.02, TRAIN=8, TEST=2)
    execute("04_one_hour_run.ipynb", MODEL=model, DATA=str(own_folder), MINUTES=0.1, OUT=out)
    metrics = Metrics.load(tmp_path / "out" / "metrics.json")
    assert metrics.samples_seen > 0 and metrics.n_test == 8 and metrics.blank_image["n"]["Avg"] == 6
    assert load_adapter(load_vlm(model).model, tmp_path / "out" / "adapter")
    capsys.readouterr()
    execute("05_reading_the_results.ipynb", RUN=out, MAPS=1, GRID=2)
    assert "of 1 texts are the same" in capsys.readouterr().out  # how many depends on where an endless one was cut


def test_an_interrupted_run_goes_on(saved, own_folder, tmp_path, monkeypatch, capsys):
    settings = {"MODEL": saved("smolvlm"), "DATA": str(own_folder), "MINUTES": 0.1, "OUT": str(tmp_path / "out")}

    def closed(journal, record, *_):
        if record["step"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainlog.Journal, "write", closed)
        execute("04_one_hour_run.ipynb", **settings)
    space = execute("04_one_hour_run.ipynb", **settings, RESUME=True)
    assert "resumed from checkpoint-00000000" in "".join(capsys.readouterr())
    assert Metrics.load(tmp_path / "out" / "metrics.json").samples_seen == space["log"].samples_seen > 0


@pytest.fixture
def halves(monkeypatch):
    """What a card does, done on the CPU: weights and products in bfloat16."""

    def forget():
        precision.precision.cache_clear()
        AcceleratorState._reset_state(reset_partial_state=True)

    monkeypatch.setenv("MMLORA_PRECISION", "bfloat16")
    monkeypatch.setattr(models, "weights_dtype", lambda: torch.bfloat16)
    forget()
    yield
    forget()


@pytest.mark.filterwarnings("ignore:.*generations were cut")
def test_every_notebook_runs_in_half_precision(saved, own_folder, tmp_path, halves):
    model, out = saved("smolvlm"), str(tmp_path / "out")
    for space in (execute("00_start_here.ipynb", MODEL=model, MINUTES=0.02, TRAIN=8, TEST=2),
                  execute("04_one_hour_run.ipynb", MODEL=model, DATA=str(own_folder), MINUTES=0.1, OUT=out),
                  execute("05_reading_the_results.ipynb", RUN=out, MAPS=1, GRID=2)):
        assert space["vlm"].model.dtype == torch.bfloat16
