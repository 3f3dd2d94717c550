"""Lesson 01: its judges, and what it builds by hand, taken from the notebook, beside peft's own and the package's."""

from __future__ import annotations

import contextlib
import io
from functools import cache

import nbformat
import pytest
import tiny
import torch
from peft import LoraConfig
from tinyvlm import PROBLEMS
from torch import nn

from mmlora.adapters.wrapping import wrapped
from mmlora.encoding.loss import batch_loss
from mmlora.encoding.prompts import taught
from mmlora.encoding.sample import collate, encode
from mmlora.lessons.exercises import verdict
from mmlora.models.vlm import decoder_layers
from mmlora.paths import NOTEBOOKS

TARGETS = ["q_proj", "v_proj"]
SIZES = [(1, 1), (4, 8), (8, 4)]  # rank, alpha


@cache
def cells() -> list[str]:
    notebook = nbformat.read(NOTEBOOKS / "01_lora_from_scratch.ipynb", as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def run(names: dict, *marks: str) -> dict:
    """`names` after the notebook's cells in which these marks stand; each must stand in one cell alone."""
    for mark in marks:
        (source,) = [source for source in cells() if mark in source]
        with contextlib.redirect_stdout(io.StringIO()):
            exec(source, names)
    return names


@pytest.fixture
def lesson() -> dict:
    return run({"torch": torch, "nn": nn}, "class LoRALinear", "def add_lora", "def remove_lora", "def merge(layer")


def by_hand(lesson: dict, rank: int, alpha: int, *, trained: bool) -> tuple[nn.Module, dict]:
    """The tiny decoder with the lesson's adapter, and its layers by name."""
    model = tiny.decoder().requires_grad_(False)
    torch.manual_seed(0)
    lesson["add_lora"](model, TARGETS, rank, alpha)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, lesson["LoRALinear"])}
    assert len(layers) == 2 * len(decoder_layers(model))
    if trained:
        for layer in layers.values():
            nn.init.normal_(layer.B)
    return model, layers


def by_peft(layers: dict, rank: int, alpha: int) -> nn.Module:
    """peft's adapter on another such decoder, with the same numbers."""
    model = wrapped(tiny.decoder(), LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS))
    with torch.no_grad():
        for name, layer in layers.items():
            theirs = model.get_base_model().get_submodule(name)
            theirs.lora_A["default"].weight.copy_(layer.A)
            theirs.lora_B["default"].weight.copy_(layer.B)
    return model


# -- the layer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "alpha"), SIZES)
def test_a_new_adapter_changes_nothing(lesson, rank, alpha):
    model, _ = by_hand(lesson, rank, alpha, trained=False)
    assert torch.equal(tiny.logits(model), tiny.logits(tiny.decoder()))


@pytest.mark.parametrize(("rank", "alpha"), SIZES)
def test_the_layer_gives_what_pefts_gives(lesson, rank, alpha):
    model, layers = by_hand(lesson, rank, alpha, trained=True)
    ours, theirs = tiny.logits(model), tiny.logits(by_peft(layers, rank, alpha))
    assert (ours - tiny.logits(tiny.decoder())).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("trained", [False, True])
def test_gradients_are_those_of_peft(lesson, trained):
    model, layers = by_hand(lesson, 4, 8, trained=trained)
    other, ids = by_peft(layers, 4, 8), torch.arange(24).reshape(2, 12)
    for each in (model, other):
        each(input_ids=ids, labels=ids).loss.backward()
    assert {n.rsplit(".", 1)[-1] for n, p in model.named_parameters() if p.grad is not None} == {"A", "B"}
    for name, layer in layers.items():
        theirs = other.get_base_model().get_submodule(name)
        torch.testing.assert_close(layer.A.grad, theirs.lora_A["default"].weight.grad)
        torch.testing.assert_close(layer.B.grad, theirs.lora_B["default"].weight.grad)
        assert bool(layer.A.grad.any()) == trained and layer.B.grad.any()


def test_as_many_numbers_train_as_in_peft(lesson):
    model, layers = by_hand(lesson, 4, 8, trained=False)
    ours = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert ours == by_peft(layers, 4, 8).get_nb_trainable_parameters()[0]


def test_taken_off_the_old_layers_are_back(lesson):
    model = tiny.decoder()
    before = dict(model.named_modules())
    lesson["add_lora"](model, TARGETS, 2, 4)
    assert dict(model.named_modules()) != before
    lesson["remove_lora"](model)
    assert dict(model.named_modules()) == before


# -- merging -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("rank", "alpha"), SIZES)
def test_merged_and_unmerged(lesson, rank, alpha, dtype, near):
    model, layers = by_hand(lesson, rank, alpha, trained=True)
    peft = by_peft(layers, rank, alpha).to(dtype)
    model.to(dtype)
    weights = {name: layer.linear.weight.clone() for name, layer in layers.items()}
    for layer in layers.values():
        lesson["merge"](layer)
    peft.merge_adapter()
    for name, layer in layers.items():
        theirs = peft.get_base_model().get_submodule(name).get_base_layer().weight
        size = float(theirs.abs().max())
        torch.testing.assert_close(layer.linear.weight, theirs, rtol=0, atol=near * size)
        assert (layer.linear.weight - weights[name]).abs().max() > 10 * near
        lesson["merge"](layer, sign=-1)
        torch.testing.assert_close(layer.linear.weight, weights[name], rtol=0, atol=near * size)


def test_a_merged_layer_gives_the_same_without_its_adapter(lesson):
    model, layers = by_hand(lesson, 4, 8, trained=True)
    beside = tiny.logits(model)
    for layer in layers.values():
        lesson["merge"](layer)
    lesson["remove_lora"](model)
    torch.testing.assert_close(tiny.logits(model), beside, rtol=1e-5, atol=1e-5)


# -- around it -----------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_packages(tiny_vlm):
    names = run({"nn": nn}, "def loss_of")
    batch = collate([encode(tiny_vlm.processor, taught(p, "answer")) for p in PROBLEMS])
    total, tokens = batch_loss(tiny_vlm.model, batch)
    torch.testing.assert_close(names["loss_of"](tiny_vlm.model, dict(batch)), total / tokens)


def test_restore_undoes_all_that_a_cell_may_have_done(lesson):
    from mmlora import detach

    model = tiny.decoder()
    decoder, before = decoder_layers(model), tiny.logits(model)
    matrices = {name: m for name, m in decoder.named_modules() if isinstance(m, nn.Linear)}
    original = {name: m.weight.detach().clone() for name, m in matrices.items()}
    names = run(lesson | {"detach": detach, "model": model, "decoder": decoder, "matrices": matrices,
                          "original": original}, "def restore")  # fmt: skip
    for disturb in (
        lambda: names["add_lora"](decoder, TARGETS, 2, 4),
        lambda: wrapped(model, LoraConfig(r=2, target_modules=TARGETS)),
        lambda: [m.weight.data.add_(1) for m in matrices.values()],
    ):
        disturb()
        names["restore"]()
        assert torch.equal(tiny.logits(model), before)
        assert {name: m for name, m in decoder.named_modules() if isinstance(m, nn.Linear)} == matrices
        assert not any(p.requires_grad for p in model.parameters())


def test_the_papers_figures_follow():
    names = run({}, "gpt3, layers, width, rank")
    assert names["lora"] == 18_874_368  # 18.9 million
    assert 35e6 < 2 * names["lora"] < 38e6 and 9_000 < names["gpt3"] / names["lora"] < 10_000


# -- exercises -----------------------------------------------------------------------------------------------------------


def energy_rank(S, share, power=2, more=1):
    values = S.double() ** power
    return int((values.cumsum(0) / values.sum() < share).sum()) + more


def join(A1, B1, s1, A2, B2, s2):
    return torch.cat([A1, A2]), torch.cat([s1 * B1, s2 * B2], dim=1)


STARTS = {"B zero": (0.0, 0.2), "A zero": (0.3, 0.0), "both zero": (0.0, 0.0)}


@pytest.mark.parametrize(
    ("name", "right", "wrong", "hint"),
    [
        ("01-1", 16, 8, "float32"),
        ("01-1", 16, 491, "one layer"),
        ("01-1", 16, 32, "one byte"),
        ("01-1", 16, 16.38, "whole number"),
        ("01-1", 16, 17, "rows + columns"),
        ("01-2", energy_rank, lambda S, share: energy_rank(S, share, power=1), "not the values"),
        ("01-2", energy_rank, lambda S, share: energy_rank(S, share, more=0), "one too few"),
        ("01-2", energy_rank, lambda S, share: None, "returns nothing"),
        ("01-2", energy_rank, lambda S, share: 99, "are needed"),
        ("01-3", STARTS, STARTS | {"A zero": (0.0, 0.3)}, "wrong way round"),
        ("01-3", STARTS, STARTS | {"both zero": (0.1, 0.1)}, "set the two matrices"),
        ("01-3", STARTS, STARTS | {"A zero": (0.1, 0.1, 0.1)}, "two numbers"),
        ("01-3", STARTS, (0.0, 0.2), "dictionary"),
        ("01-4", join, lambda A1, B1, s1, A2, B2, s2: join(A1, B1, 1, A2, B2, 1), "scales are missing"),
        ("01-4", join, lambda A1, B1, s1, A2, B2, s2: join(s1 * A1, B1, s1, s2 * A2, B2, s2), "counts twice"),
        ("01-4", join, lambda A1, B1, s1, A2, B2, s2: (A1 + A2, s1 * B1 + s2 * B2), "cross terms"),
        ("01-4", join, lambda A1, B1, s1, A2, B2, s2: join(A2, B2, s1, A1, B1, s2), "beside each other"),
        ("01-4", join, lambda *_: (torch.eye(7), torch.zeros(5, 7)), "more than the two"),
        ("01-4", join, lambda *_: (torch.zeros(3, 7), torch.zeros(5, 2)), "should be 5 x 7"),
        ("01-4", join, lambda *_: None, "returns nothing"),
    ],
)  # fmt: skip
def test_exercises(name, right, wrong, hint):
    assert verdict(name, right).state == "right"
    found = verdict(name, wrong)
    assert found.state == "wrong" and hint in found.words
    assert verdict(name, ...).state == "open"
