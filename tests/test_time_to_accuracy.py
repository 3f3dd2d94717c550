"""When it is asked on the way, and when a mark counts as reached."""

import importlib

import pytest
import typer

from mmlora.paths import PACKAGE


@pytest.fixture
def training(monkeypatch):
    monkeypatch.syspath_prepend(PACKAGE.parent / "benchmarks")
    return importlib.import_module("time_to_accuracy")


@pytest.fixture
def reached(training):
    return training.reached


def test_the_last_questions_come_as_late_as_their_answers_fit(training):
    assert training.asked_at(10, 300, 3) == pytest.approx([0.28, 0.56, 0.84])
    with pytest.raises(typer.BadParameter, match="500 answers may take 2.7 minutes, and there are 2 in all"):
        training.asked_at(2, 500, 6)


def answers(*pairs):
    return [{"minutes": minutes, "correct": correct, "n": 200} for minutes, correct in pairs]


def test_a_mark_lies_on_the_line_between_two_answers(reached):
    found = reached(answers((1, 100), (3, 140), (5, 164)))
    assert found["60"] == pytest.approx(2.0) and found["70"] == pytest.approx(3.0)
    assert found["80"] == pytest.approx(3 + 2 * 10 / 12, abs=0.01) and found["85"] is None


def test_the_first_time_counts_where_a_curve_wavers(reached):
    assert reached(answers((1, 130), (2, 110), (3, 130)))["60"] == pytest.approx(60 / 65, abs=0.01)
