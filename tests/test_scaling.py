"""benchmarks/scaling.py: what is measured, and what follows from it on paper."""

import importlib

import pytest
import tinyvlm
import torch

from mmlora.paths import PACKAGE


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(PACKAGE.parent / "benchmarks")
    return importlib.import_module("scaling")


def test_one_thing_varies_at_a_time_and_departs_from_the_base(scaling):
    base = scaling.asdict(scaling.Point())
    for name, points in scaling.SWEEPS.items():
        for point in points:
            other = {key for key, value in scaling.asdict(point).items() if value != base[key]}
            assert other <= ({name} | ({"cores"} if name == "processes" else set())), point
        assert len({getattr(point, name) for point in points}) == len(points) > 1


def test_an_estimate_takes_the_share_of_the_peak_that_was_reached_here(scaling):
    base = {"operations": 2e10, "step_seconds": 0.05, "peak": 2e12}
    paper = scaling.on_paper(base, {"cache_seconds": 0.02, "step_seconds": 0.06})
    assert paper["share_of_peak"] == pytest.approx(0.2)
    assert paper["machines"]["T4"]["step_seconds"] == pytest.approx(2e10 / (0.2 * 65e12))
    assert paper["problems"]["16000"] == pytest.approx({"cache_seconds": 320, "step_seconds": 960})


def test_fewer_tokens_are_the_first_ones(scaling):
    vlm = tinyvlm.build()
    pixels = torch.rand(2, 3, 128, 128)
    with torch.inference_mode():
        whole = vlm.model.model.get_image_words(pixels)
        scaling.fewer_tokens(vlm, 3)
        fewer = vlm.model.model.get_image_words(pixels)
    assert whole.shape[1] == 4 and vlm.processor.visual_tokens == 3
    torch.testing.assert_close(fewer, whole[:, :3])
