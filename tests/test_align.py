"""The alignment run: what the connector is given, how captions are spelled, that it learns to read, and what ships."""

import copy
import json

import numpy as np
import pytest
import tinyvlm
import torch
from safetensors.torch import load_file, save_file

from mmlora.minisqa.dataset import version
from mmlora.smolbridge import align, assemble
from mmlora.smolbridge.align import SILENCE, ReadSettings, look, spell, whiten
from tools import align_smolbridge
from tools.align_smolbridge import read_right

CAPTIONS = [
    f"The left square is {a} and the right square is {b}." for a in ("red", "green", "blue") for b in ("red", "blue")
]


@pytest.fixture
def connector(tiny_vlm):
    return copy.deepcopy(tiny_vlm.model.model.connector)


def test_cells_are_described_by_components_of_equal_size(connector):
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(20, connector.describe.in_features, generator=generator)
    strength = torch.logspace(1, -1, 20)
    cells = (torch.randn(400, 16, 20, generator=generator) * strength) @ few + 3
    with torch.no_grad():
        whiten(connector, cells)
        described = connector.seen(cells).unflatten(1, (16, -1)).flatten(0, 1)
    assert described.mean(0).abs().max() < 0.01
    covariance = described.T @ described / len(described)
    off = covariance - torch.diag(covariance.diagonal())
    assert covariance[:4, :4].diagonal().min() > 0.9 and covariance.diagonal().max() <= 1.001 and off.abs().max() < 0.01


def test_pictures_keep_their_order(tiny_vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(align, "BASIS", 20)  # so that most pictures come after the basis is settled
    vlm = copy.deepcopy(tiny_vlm)
    colors = ("red", "green", "blue", "black", "gray", "orange")
    pictures = [tinyvlm.picture(a, b) for a in colors for b in colors]
    seen = look(vlm, iter(pictures), tmp_path / "seen.f16", fresh=True)
    assert not torch.equal(vlm.model.model.connector.describe.weight, tiny_vlm.model.model.connector.describe.weight)
    pixels = vlm.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = vlm.model.model.connector.seen(*vlm.model.model.get_image_view(pixels)[:2]).numpy()
    nearest = ((seen[:, None].astype(np.float32) - expected[None]) ** 2).sum(-1).argmin(1)
    assert nearest.tolist() == list(range(len(pictures)))
    assert np.abs(seen - expected).max() < 0.05 * np.abs(expected).max()


def test_captions_are_spelled_word_by_word_and_end_in_silence():
    words = tinyvlm.tokenizer()
    texts = ["The left square is red.", "blue", "The right square is blue and the left square is green."]
    dictionary, spelled = spell(words, texts)
    assert spelled.shape == (3, max(len(words(t)["input_ids"]) for t in texts))
    said = [words.decode(dictionary[row]) for row in spelled]
    assert [text.rstrip(SILENCE) for text in said] == texts and said[2] == texts[2]
    assert len(dictionary) == len(set(dictionary.tolist()))


def test_a_caption_counts_as_read_when_every_word_is_right():
    spelled = torch.tensor([[0, 1], [1, 1], [2, 0]])
    scores = torch.eye(3)[torch.tensor([[0, 1], [1, 2], [2, 0]])]
    assert read_right(scores, spelled, ["a", "a", "b"]) == {"a": [1, 2], "b": [1, 1]}


@pytest.fixture
def aligned(tiny_vlm, tmp_path, monkeypatch):
    """Folder with the result, from pictures that were looked at before and whose captions are patterns of their own."""
    vlm = copy.deepcopy(tiny_vlm)
    monkeypatch.setattr(align_smolbridge, "assembled", lambda connector: "tiny")
    monkeypatch.setattr(align_smolbridge, "load_base", {"tiny": vlm}.get)
    monkeypatch.setattr(
        align_smolbridge,
        "ReadSettings",
        lambda: ReadSettings(epochs=30, batch_size=16, cell_dropout=0.0, dropout=0.0, held_out=100),
    )
    folder = tmp_path / "work" / f"pictures-5-400-{version()}"
    folder.mkdir(parents=True)
    rng, connector = np.random.default_rng(0), vlm.model.model.connector
    kinds = rng.integers(len(CAPTIONS), size=400)
    numbers = connector.seen_size
    patterns = rng.normal(size=(len(CAPTIONS), numbers))
    seen = (patterns[kinds] + 0.1 * rng.normal(size=(400, numbers))).astype(np.float16)
    seen.tofile(folder / "seen.f16")
    (folder / "captions.json").write_text(json.dumps([(CAPTIONS[k], "squares") for k in kinds]))
    save_file(
        {n: torch.randn_like(t) for n, t in connector.describe.state_dict().items()}, folder / "describe.safetensors"
    )
    align_smolbridge.align(pictures=400, seed=5, out=tmp_path / "out", work=tmp_path / "work")
    return tmp_path, vlm, seen, [CAPTIONS[k] for k in kinds]


def test_the_connector_learns_to_read_and_what_was_learned_ships(aligned):
    folder, vlm, seen, captions = aligned
    facts = json.loads((folder / "out" / "align.json").read_text())
    assert facts["captions_read_right"] == {"squares": [100, 100]} and len(facts["log"]) == 30
    assert facts["log"][-1]["held_out_loss"] < 0.1 < facts["log"][0]["held_out_loss"]
    shipped = assemble._connector(folder / "out" / "connector.safetensors")
    sizes = assemble.sizes(shipped)
    assert sizes == {
        "cell_width": 16,
        "connector_width": 64,
        "dictionary": facts["dictionary"],
        "visual_tokens": facts["visual_tokens"],
        "spelling": 0,
        "glance_width": 0,
        "naming_tokens": 0,
    }
    describe = load_file(folder / "work" / f"pictures-5-400-{version()}" / "describe.safetensors")
    assert torch.allclose(shipped["describe.weight"].float(), describe["weight"], atol=1e-2)
    connector = align.fitting(vlm.model, shipped["word_ids"], facts["visual_tokens"])
    connector.load_state_dict(shipped)
    said = align.say(connector, seen[:100]).argmax(-1)
    words = [vlm.processor.tokenizer.decode(shipped["word_ids"][row]).rstrip(SILENCE) for row in said]
    assert words == captions[:100]


def test_a_large_matrix_ships_in_eight_bits_and_the_rest_in_sixteen(monkeypatch):
    monkeypatch.setattr(assemble, "LARGE", 100)
    tensors = {"read.weight": torch.randn(8, 40), "read.bias": torch.randn(8), "word_ids": torch.arange(3)}
    shipped = assemble.packed(tensors)
    assert shipped["connector.read.weight"].dtype == torch.int8 and shipped["connector.read.bias"].dtype == torch.half
    again = assemble.unpacked(shipped)
    assert again.keys() == tensors.keys() and torch.equal(again["word_ids"], tensors["word_ids"])
    step = tensors["read.weight"].abs().amax(1, keepdim=True) / 127
    assert ((again["read.weight"] - tensors["read.weight"]).abs() <= 0.51 * step).all()
