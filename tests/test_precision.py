"""The numbers that a machine multiplies: chosen by time, turned off by the environment, and only in products."""

import os

import pytest
import torch
from accelerate import Accelerator

from mmlora.models import precision


@pytest.fixture
def choose(monkeypatch):
    """`choose(seconds of a bfloat16 product, of a float32 one)` gives the choice without a GPU."""

    def chosen(half: float, full: float) -> str:
        monkeypatch.delenv("MMLORA_PRECISION", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(precision, "_seconds", {torch.bfloat16: half, torch.float32: full}.__getitem__)
        forget()
        return precision.precision()

    def forget():
        precision.precision.cache_clear()
        precision._on_processor.cache_clear()

    yield chosen
    forget()


def test_a_processor_without_bfloat16_keeps_float32(choose):
    assert choose(1.0, 0.3) == "no"
    with precision.mixed(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_processor_with_bfloat16_uses_it_in_products_only(choose):
    assert choose(0.2, 1.0) == "bf16"
    with precision.mixed(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        assert (torch.ones(2, 2) + torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("half, dtype", [(0.2, torch.bfloat16), (1.0, torch.float32)])
def test_beside_a_card_the_processor_multiplies_its_own_numbers(choose, monkeypatch, half, dtype):
    choose(half, 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(precision, "precision", lambda: "fp16")  # an older card's
        with precision.mixed(torch.device("cpu")):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_the_environment_turns_it_off(choose, monkeypatch):
    choose(0.2, 1.0)
    monkeypatch.setenv("MMLORA_PRECISION", "float32")
    precision.precision.cache_clear()
    assert precision.precision() == "no"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half", "'half'; it can be float32, bfloat16, float16"),
        ("float16", "only cards multiply fast"),
    ],
)
def test_what_cannot_be_had_is_refused(choose, monkeypatch, name, message):
    choose(0.2, 1.0)
    monkeypatch.setenv("MMLORA_PRECISION", name)
    precision.precision.cache_clear()
    with pytest.raises(precision.PrecisionError, match=message):
        precision.precision()


def test_a_second_run_in_one_process_may_choose_other_numbers(choose, monkeypatch):
    choose(0.2, 1.0)
    for asked, found in (("float32", "no"), ("bfloat16", "bf16"), ("auto", "bf16"), ("float32", "no")):
        precision.choose(asked)
        assert precision.precision() == found
        assert Accelerator(mixed_precision=precision.precision(), cpu=True).mixed_precision == found
    precision.choose("auto")
    assert precision.ASKED not in os.environ
    monkeypatch.setenv(precision.ASKED, "float32")
    for asked, found in (("auto", "float32"), ("bfloat16", "bfloat16"), ("auto", "float32")):
        precision.choose(asked)
        assert precision.products() == os.environ[precision.ASKED] == found, "auto leaves what its user said"


def test_a_mac_multiplies_float32(choose, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose(0.2, 1.0) == "no" and precision.device().type == "mps"


# On a card, as far as it can be told without one.


@pytest.fixture
def card(monkeypatch):
    """`card(bf16)`: what is chosen on a card with or without bfloat16."""

    def chosen(bf16: bool):
        monkeypatch.delenv("MMLORA_PRECISION", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation
        )
        precision.precision.cache_clear()
        return precision.precision(), precision.weights_dtype(), precision.device().type

    yield chosen
    precision.precision.cache_clear()


def test_a_t4_multiplies_float16_and_an_ampere_card_bfloat16(card):
    assert card(bf16=False) == ("fp16", torch.float16, "cuda")  # a T4 emulates bfloat16, many times slower
    assert card(bf16=True) == ("bf16", torch.bfloat16, "cuda")


def test_weights_stay_in_float32_on_a_cpu(choose):
    choose(0.2, 1.0)
    assert precision.weights_dtype() == torch.float32


def test_four_bits_are_offered_only_where_they_work(choose):
    choose(1.0, 0.3)
    with pytest.raises(precision.PrecisionError, match="need an NVIDIA card and the package bitsandbytes"):
        precision.nf4()
