"""Stage one of the alignment: what the bridge is given, what it should write, and that it learns to."""

import copy

import numpy as np
import pytest
import tinyvlm
import torch

from mmlora.reader import ReadSettings, look, read, whiten, word_codes


@pytest.fixture
def bridge(tiny_vlm):
    return copy.deepcopy(tiny_vlm.model.model.connector)


def test_cells_are_described_by_components_of_equal_size(bridge):
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(20, bridge.describe.in_features, generator=generator)
    strength = torch.logspace(1, -1, 20)
    cells = (torch.randn(400, 16, 20, generator=generator) * strength) @ few + 3
    with torch.no_grad():
        whiten(bridge, cells)
        described = bridge.seen(cells).view(-1, bridge.describe.out_features)
    assert described.mean(0).abs().max() < 0.01
    covariance = described.T @ described / len(described)
    off = covariance - torch.diag(covariance.diagonal())
    assert covariance[:4, :4].diagonal().min() > 0.9 and covariance.diagonal().max() <= 1.001 and off.abs().max() < 0.01


def test_a_piece_of_a_caption_is_the_mean_of_its_words():
    words = torch.eye(6)
    rows = {"a b c d": [1, 2, 3, 4], "a b c": [1, 2, 3], "e e e e": [5, 5, 5, 5]}
    codes = word_codes(lambda text, **_: {"input_ids": rows[text]}, 7 * words, list(rows), 2).view(3, 2, 6)
    expected = torch.stack([
        torch.stack([words[[1, 2]].mean(0), words[[3, 4]].mean(0)]),
        torch.stack([(words[1] + words[2] / 2) / 1.5, (words[2] / 2 + words[3]) / 1.5]),  # b's neighbour is shared
        torch.stack([words[5], words[5]]),
    ])
    expected -= expected.mean(0)
    assert torch.allclose(codes, expected / expected.std(), atol=1e-5)


def test_the_bridge_learns_to_write_what_it_reads(bridge):
    rng = np.random.default_rng(0)
    seen = (rng.normal(size=(3000, bridge.read.in_features)) + 2).astype(np.float16)
    code = rng.normal(size=(6, bridge.write.out_features))
    codes = torch.from_numpy(seen[:, :6].astype(np.float32) @ code.astype(np.float32))
    codes = (codes - codes.mean(0)) / codes.std()
    settings = ReadSettings(epochs=12, batch_size=64, dropout=0.0, held_out=500)
    errors = read(bridge, seen, codes, settings)
    assert errors["held_out_error"] < 0.1 and errors["train_error"] < 0.1
    with torch.no_grad():  # given pictures as they are, not less their mean
        written = bridge.write(torch.nn.functional.gelu(bridge.read(torch.from_numpy(seen[:500].astype(np.float32)))))
    assert float((written - codes[:500]).square().mean()) == pytest.approx(errors["held_out_error"], rel=1e-3)


def test_pictures_keep_their_order_and_the_basis_is_settled_once(tiny_vlm, tmp_path):
    vlm = copy.deepcopy(tiny_vlm)
    pictures = [tinyvlm.picture(a, b) for a in ("red", "green", "blue") for b in ("black", "white", "red")] * 2
    seen = look(vlm, pictures, len(pictures), tmp_path / "seen.f16", settle=True)
    describe = vlm.model.model.connector.describe.weight.clone()
    assert not torch.equal(describe, tiny_vlm.model.model.connector.describe.weight)
    pixels = vlm.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = vlm.model.model.connector.seen(vlm.model.model.get_image_cells(pixels))
    assert seen.shape == expected.shape and np.allclose(seen, expected, atol=0.1)
    again = look(vlm, reversed(pictures), len(pictures), tmp_path / "again.f16", settle=False)
    assert torch.equal(vlm.model.model.connector.describe.weight, describe) and np.allclose(again[::-1], seen, atol=0.1)
