"""Notebook 04 on every architecture: from a saved model and a folder of one's own problems to a scored adapter."""

import json
import random

import families
import matplotlib
import nbformat
import pytest
from tinyvlm import picture

from mmlora.lora import load_adapter
from mmlora.metrics import Metrics
from mmlora.models import load_vlm
from mmlora.paths import NOTEBOOKS

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


@pytest.mark.parametrize("name", [name for name, family in families.FAMILIES.items() if family.sees])
@pytest.mark.filterwarnings("ignore:.*generations were cut")
def test_the_one_hour_run(name, own_folder, tmp_path, monkeypatch):
    matplotlib.use("Agg")
    vlm = families.build(name)
    vlm.model.save_pretrained(tmp_path / "model")
    vlm.processor.save_pretrained(tmp_path / "model")
    cells = [cell for cell in nbformat.read(NOTEBOOKS / "04_one_hour_run.ipynb", as_version=4).cells
             if cell.cell_type == "code"]
    space = {"display": lambda *_: None}
    for cell in cells:
        exec(cell.source, space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= {"MODEL": str(tmp_path / "model"), "DATA": str(own_folder), "MINUTES": 0.1, "OUT": str(tmp_path / "out")}
    metrics = Metrics.load(tmp_path / "out" / "metrics.json")
    assert metrics.samples_seen > 0 and metrics.n_test == 8 and metrics.blank_image["n"]["Avg"] == 6
    assert load_adapter(load_vlm(str(tmp_path / "model")).model, tmp_path / "out" / "adapter")
