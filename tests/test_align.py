"""The alignment run as a whole, on a tiny model with pictures that were looked at before."""

import copy
import json

import numpy as np
import pytest
import tinyvlm
import torch
from safetensors.torch import load_file, save_file

from mmlora import align, models
from mmlora.reader import ReadSettings

CAPTIONS = [f"The left square is {a} and the right square is {b}." for a in ("red", "green", "blue") for b in ("red", "blue")]


@pytest.fixture
def aligned(tiny_vlm, tmp_path, monkeypatch):
    """Folder with the result, from a picture description in which each caption is a pattern of its own."""
    tiny_vlm.model.save_pretrained(tmp_path / "tiny")
    tiny_vlm.processor.save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr(align, "smolbridge", lambda **config: tmp_path / "tiny")
    monkeypatch.setattr(align, "ReadSettings", lambda: ReadSettings(epochs=30, batch_size=16, dropout=0.0, held_out=100))
    work, connector = tmp_path / "work", tiny_vlm.model.model.connector
    (work / "pictures-5-400").mkdir(parents=True)
    rng = np.random.default_rng(0)
    kinds = rng.integers(len(CAPTIONS), size=400)
    patterns = rng.normal(size=(len(CAPTIONS), connector.read.in_features))
    seen = (patterns[kinds] + 0.1 * rng.normal(size=(400, connector.read.in_features))).astype(np.float16)
    seen.tofile(work / "pictures-5-400" / "seen.f16")
    (work / "pictures-5-400" / "captions.json").write_text(json.dumps([CAPTIONS[k] for k in kinds]))
    describe = {name: torch.randn_like(t) for name, t in connector.describe.state_dict().items()}
    save_file(describe, work / "pictures-5-400" / "describe.safetensors")
    settings = dict(pictures=400, captions=64, seed=5, entry=2, tokens=4, out=tmp_path / "out", work=work)
    align.align(minutes=0.05, learning_rate=1e-3, start=None, resume=False, **settings)
    return tmp_path, settings


def test_what_was_learned_is_what_ships(aligned, tiny_vlm):
    folder, settings = aligned
    facts = json.loads((folder / "out" / "align.json").read_text())
    assert facts["held_out_error"] < 0.5 and facts["start"] is None
    steps = (folder / "out" / "align.jsonl").read_text().splitlines()
    assert len(steps) > 1 and json.loads(steps[-1])["samples"] == facts["samples_seen"]
    shipped = copy.deepcopy(tiny_vlm.model)
    models._load_bridge(shipped, folder / "out" / "bridge.safetensors")
    core, before = shipped.model, tiny_vlm.model.model
    describe = load_file(folder / "work" / "pictures-5-400" / "describe.safetensors")
    assert torch.allclose(core.connector.describe.weight, describe["weight"], atol=1e-2)
    read = load_file(folder / "work" / "read.safetensors")["write.weight"]
    assert not torch.allclose(core.connector.write.weight, read, atol=1e-4)  # the bridge trains on in stage two
    lower, upper = (f"language_model.layers.{i}.mlp.up_proj.weight" for i in (1, 2))
    assert torch.equal(core.state_dict()[lower], before.state_dict()[lower])
    assert not torch.equal(core.state_dict()[upper], before.state_dict()[upper])


def test_an_alignment_goes_on_from_a_bridge(aligned, tiny_vlm):
    folder, settings = aligned
    first = folder / "out" / "bridge.safetensors"
    again = settings | {"pictures": 400, "captions": 400, "out": folder / "again", "work": folder / "work"}
    (folder / "work" / "training").rename(folder / "work" / "first training")
    align.align(minutes=0.05, learning_rate=1e-9, start=first, resume=False, **again)
    before, after = load_file(first), load_file(folder / "again" / "bridge.safetensors")
    assert before.keys() == after.keys()
    for name in before:  # so small a rate leaves everything where it was
        assert torch.allclose(before[name].float(), after[name].float(), atol=2e-3), name
