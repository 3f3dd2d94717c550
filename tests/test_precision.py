"""The numbers that a machine multiplies: chosen by time, turned off by the environment, and only in products."""

import pytest
import torch

from mmlora import precision


@pytest.fixture
def choose(monkeypatch):
    """`choose(seconds of a bfloat16 product, of a float32 one)` gives the choice without a GPU."""

    def chosen(half: float, full: float) -> str:
        monkeypatch.delenv("MMLORA_PRECISION", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(precision, "_seconds", {torch.bfloat16: half, torch.float32: full}.__getitem__)
        precision.precision.cache_clear()
        return precision.precision()

    yield chosen
    precision.precision.cache_clear()


def test_a_processor_without_bfloat16_keeps_float32(choose):
    assert choose(1.0, 0.3) == "no"
    with precision.mixed(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_processor_with_bfloat16_uses_it_in_products_only(choose):
    assert choose(0.2, 1.0) == "bf16"
    with precision.mixed(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        assert (torch.ones(2, 2) + torch.ones(2, 2)).dtype == torch.float32


def test_the_environment_turns_it_off(choose, monkeypatch):
    choose(0.2, 1.0)
    monkeypatch.setenv("MMLORA_PRECISION", "float32")
    precision.precision.cache_clear()
    assert precision.precision() == "no"
