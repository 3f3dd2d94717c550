"""Where not even one sample fits, gradient checkpointing is switched on: more computation, the same losses."""

from __future__ import annotations

from dataclasses import replace

import families
import pytest
import tiny
import torch
from test_cache import ANSWERS
from torch.autograd.graph import saved_tensors_hooks

from mmlora.adapters import lora
from mmlora.adapters.towers import training_mode
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.samples import Samples
from mmlora.models.vlm import base_model
from mmlora.training.fit import fit
from mmlora.training.log import TrainingError
from mmlora.training.recompute import can_recompute, recompute
from mmlora.training.settings import TrainSettings

SETTINGS = TrainSettings(steps=3, batch_size=4, learning_rate=5e-3, fused=False)


class Room:
    """A training set on a machine with so many bytes for what a forward pass keeps for its backward pass: torch's own count."""

    def __init__(self, data, size: float = float("inf")):
        self.data, self.size, self.kept = data, size, []
        self.ids, self.lengths, self.fingerprint = data.ids, data.lengths, data.fingerprint

    def __len__(self):
        return len(self.data)

    def loss(self, model, indices):
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        found = {}

        def count(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            if sum(found.values()) > self.size:
                raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate more")
            return tensor

        with saved_tensors_hooks(count, lambda tensor: tensor):
            result = self.data.loss(model, indices)
        self.kept.append(sum(found.values()))
        return result


def printed(capsys) -> str:
    found = capsys.readouterr()
    return found.out + found.err


def figures(log):
    return [value for r in log.records for value in (r["loss"], r["gradient_norm"])]


def alike() -> tiny.Tokens:
    """Samples of one length, so that all take the same room."""
    data = tiny.Tokens(12)
    data.rows = [row[:6].repeat(4) for row in data.rows]
    data.lengths = [24] * 12
    return data


def of_tiny(tmp_path):
    return tiny.adapted(dropout=0.0), alike()


def of_family(name, from_cache):
    def build(tmp_path):
        vlm = families.build(name)
        model, samples = lora.attach(vlm.model, rank=4, layers=(2, 3)), Samples(vlm, ANSWERS)
        return model, PrefixCache.build(model, samples, tmp_path / "cache") if from_cache else samples

    return build


@pytest.mark.parametrize(
    "build", [of_tiny, of_family("smolvlm", False), of_family("smolvlm", True), of_family("llava-1.5", True)]
)
def test_a_sample_that_does_not_fit_is_computed_again_and_nothing_else_changes(build, tmp_path, capsys, one_thread):
    model, data = build(tmp_path)
    settings = replace(SETTINGS, micro_batch_size=1)
    plain = Room(data)
    expected = fit(model, plain, settings, tmp_path / "plain")
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    model, data = build(tmp_path)
    recompute(model)
    fit(model, again := Room(data), settings, tmp_path / "again")
    assert max(again.kept) < min(plain.kept), "computing again keeps less of every sample"
    model, data = build(tmp_path)
    capsys.readouterr()
    log = fit(model, Room(data, (max(again.kept) + min(plain.kept)) / 2), settings, tmp_path / "room")
    assert "out of memory with one sample a forward pass: gradient checkpointing is on from now on" in printed(capsys)
    assert figures(log) == pytest.approx(figures(expected), rel=1e-5)
    assert all(torch.allclose(p, model.get_parameter(name), atol=1e-6) for name, p in weights.items())
    assert not base_model(model).is_activation_checkpointing, "it is as it was after training"
    assert not base_model(model).get_input_embeddings()._forward_hooks


def test_whole_batches_are_tried_again(tmp_path, capsys):
    """Halved to one sample, then checkpointed, where more of them fit again."""
    model = tiny.adapted(dropout=0.0)
    one = Room(alike())
    training_mode(model)
    one.loss(model, [0])
    recompute(model)
    some = Room(alike())
    some.loss(model, [0, 1])
    assert some.kept[0] < one.kept[0]
    log = fit(tiny.adapted(dropout=0.0), data := Room(alike(), some.kept[0]), SETTINGS, tmp_path)
    said = printed(capsys)
    assert "trying 4 samples a forward pass again" in said and said.count("from now on 2 samples a forward pass") == 2
    assert len(data.kept) == 2 * len(log.records), "two forward passes of two samples make a step of four"


def test_fused_layers_step_aside(tmp_path, capsys):
    """They hold less already, so a sample that does not fit into their room does not fit into the plain layers'."""
    one = Room(alike())
    fit(tiny.adapted(dropout=0.0), one, replace(SETTINGS, steps=1, micro_batch_size=1, fused=True), tmp_path / "all")
    model = tiny.adapted(dropout=0.0)
    training_mode(model)
    recompute(model)
    again = Room(alike())
    again.loss(model, [0])
    room = (again.kept[0] + min(one.kept)) / 2
    assert again.kept[0] < room < min(one.kept)
    fit(tiny.adapted(dropout=0.0), Room(alike(), room), replace(SETTINGS, fused=True), tmp_path / "room")
    assert "its activations are recomputed" in printed(capsys)


def test_what_cannot_be_computed_again_ends_with_a_sentence(tiny_vlm, tmp_path):
    """SmolBridge has no gradient checkpointing; and where it is on already, nothing more can be done."""
    model = lora.attach(families.build("smolvlm").model, rank=4, layers=(2, 3))
    assert can_recompute(model) and not can_recompute(tiny_vlm.model)
    recompute(model)
    assert not can_recompute(model)
    with pytest.raises(TrainingError, match="do not fit in memory, 1 at a time"):
        fit(tiny.adapted(), Room(alike(), 1), SETTINGS, tmp_path)
