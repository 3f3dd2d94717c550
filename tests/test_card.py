"""The licence of an adapter follows from its base's and its data's; its card says so."""

from __future__ import annotations

import copy

import pytest
import yaml

from mmlora.adapters.card import card, licence_of_both
from mmlora.adapters.lora import attach
from mmlora.models.base import Base

WEIGHTS = "0123456789abcdef" * 4


@pytest.mark.parametrize(("base", "data", "both"), [
    ("apache-2.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"),
    ("mit", "gemma", "gemma"),
    ("apache-2.0", "apache-2.0", "apache-2.0"),
    ("mit", "apache-2.0", "mit"),
    ("apache-2.0", "other", "other"),  # nobody said what may be done with the data
    ("other", "apache-2.0", "other"),  # or with the base
    ("other", "other", "other"),
    ("gemma", "apache-2.0", "gemma"),
    ("gemma", "gemma", "gemma"),
    ("cc-by-nc-sa-4.0", "gemma", "other"),  # each asks for itself: that takes a lawyer
    ("gemma", "cc-by-nc-sa-4.0", "other"),
    ("llama2", "other", "other"),
])  # fmt: skip
def test_the_licence_of_both(base, data, both):
    assert licence_of_both(base, data) == both


@pytest.fixture(scope="module")
def adapted(tiny_vlm):
    return attach(copy.deepcopy(tiny_vlm.model), rank=4)


def head(text: str) -> dict:
    """What the hub reads."""
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize(("base", "data", "both"), [
    ("apache-2.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"), ("other", "apache-2.0", "other"),
    ("gemma", "cc-by-nc-sa-4.0", "other"),
])  # fmt: skip
def test_the_card_has_the_licence_at_its_head_and_in_its_table(adapted, base, data, both):
    text = card(adapted, Base("owner/name", "c" * 40, base, WEIGHTS), {"accuracy": "85 | 90"}, data, [])
    assert head(text)["license"] == both
    assert f"| licence | {both} (base {base}, data {data}) |" in text
    assert "| accuracy | 85 / 90 |" in text, "no cell breaks the table"


def test_the_card_names_a_base_of_the_hub_and_only_that(adapted):
    of_hub = card(adapted, Base("owner/name", "c" * 40, "mit", WEIGHTS), {}, "mit", [])
    assert head(of_hub)["base_model"] == "owner/name" and head(of_hub)["library_name"] == "peft"
    assert f"| its revision | {'c' * 40} |" in of_hub and f"| its weights | `{WEIGHTS[:16]}` |" in of_hub
    for name in ("smolbridge", "/home/me/model"):
        assert "base_model" not in head(card(adapted, Base(name, None, "apache-2.0", WEIGHTS), {}, "mit", []))
