"""Names that lead to models."""

import pytest
from transformers import CONFIG_MAPPING

from mmlora.models.catalog import CATALOG, entries, find, nearest


def test_a_short_name_and_a_hub_id_lead_to_the_same_entry():
    for entry in entries():
        assert find(entry.name) is entry
        assert entry.repo is None or find(entry.repo) is entry
    ours = (find("smolbridge"), find("smolbridge-world"))
    assert tuple(entries()[:2]) == ours and entries()[2:] == CATALOG, "guests come first"
    assert find("Qwen/qwen3-VL-2B-instruct") is find("QWEN3-VL-2B")


def test_other_ids_and_folders_are_not_in_the_catalogue(tmp_path):
    assert find("someone/else") is find(str(tmp_path)) is find("") is None


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("smolvlm256m", "smolvlm-256m"),
        ("HuggingFaceTB/SmolVLM-256M", "smolvlm-256m"),
        ("Llava-1.5", "llava-1.5-7b"),
        ("qwen/qwen2.5-vl-3b", "qwen2.5-vl-3b"),
        ("paligemma", "paligemma2-3b"),
        ("smol-bridge", "smolbridge"),
    ],
)
def test_nearest_knows_what_was_meant(typed, meant):
    assert nearest(typed)[0] == meant


def test_nearest_does_not_guess():
    assert nearest("xyz") == []


def test_a_picture_bounded_by_area_takes_the_tokens_that_the_entry_says():
    """Qwen's processor, with its own rule for sizes, on a picture far larger than the bound."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    for name, side in (("qwen2.5-vl-3b", 28), ("qwen3-vl-2b", 32)):
        entry = find(name)
        low, high = entry.size["shortest_edge"], entry.size["longest_edge"]
        height, width = smart_resize(3000, 3000, side, low, high)
        assert height * width // side**2 == entry.visual_tokens


def test_the_families_are_part_of_transformers():
    assert {"idefics3", "smolvlm", "qwen2_5_vl", "qwen3_vl", "llava", "paligemma", "llama"} <= set(CONFIG_MAPPING)
