"""When a mark counts as reached, by the answers on the way."""

import importlib

import pytest

from mmlora.paths import PACKAGE


@pytest.fixture
def reached(monkeypatch):
    monkeypatch.syspath_prepend(PACKAGE.parent / "benchmarks")
    return importlib.import_module("time_to_accuracy").reached


def answers(*pairs):
    return [{"minutes": minutes, "correct": correct, "n": 200} for minutes, correct in pairs]


def test_a_mark_lies_on_the_line_between_two_answers(reached):
    found = reached(answers((1, 100), (3, 140), (5, 164)))
    assert found["60"] == pytest.approx(2.0) and found["70"] == pytest.approx(3.0)
    assert found["80"] == pytest.approx(3 + 2 * 10 / 12, abs=0.01) and found["85"] is None


def test_the_first_time_counts_where_a_curve_wavers(reached):
    assert reached(answers((1, 130), (2, 110), (3, 130)))["60"] == pytest.approx(60 / 65, abs=0.01)
