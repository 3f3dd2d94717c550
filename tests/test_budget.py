"""The wall-clock of a whole run: sizes, parts, what is left for training."""

import pytest

from mmlora import budget as budgets
from mmlora.budget import WHOLE_TEST, WHOLE_TRAIN, Budget


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `clock.sleep(minutes)` moves."""

    class Clock:
        now = 1000.0

        def sleep(self, minutes):
            self.now += 60 * minutes

    clock = Clock()
    monkeypatch.setattr(budgets, "perf_counter", lambda: clock.now)
    return clock


def budget(clock, minutes: float) -> Budget:
    return Budget(minutes, started=clock.now)


# The budget.


@pytest.mark.parametrize("minutes, train, test", [(0.1, 64, 48), (6, 798, 180), (15, 1995, 450), (60, None, None)])
def test_sizes_follow_from_the_minutes(minutes, train, test):
    assert (Budget(minutes).train_problems, Budget(minutes).test_problems) == (train, test)


def test_what_an_earlier_session_spent_is_counted(clock):
    resumed = budget(clock, 10)
    with resumed.watch("train"):
        clock.now += 60
    resumed.add("train", 2.5)
    assert resumed.to_dict() == {"data": 0, "align": 0, "cache": 0, "train": 3.5, "score": 0, "total": 3.5}


def test_a_session_that_goes_on_knows_what_the_others_spent(clock, tmp_path):
    first = Budget(60, tmp_path / "minutes.json", started=clock.now)
    for part, minutes in (("data", 1), ("align", 10), ("cache", 8), ("train", 20)):
        with first.watch(part):
            clock.sleep(minutes)
    again = budget(clock, 60)
    again.go_on(tmp_path / "minutes.json")
    assert again.elapsed() == pytest.approx(19) and again.training_minutes(8) == pytest.approx(33)  # 13 and 20 before
    again.add("train", 20)
    assert again.to_dict() == {"data": 1, "align": 10, "cache": 8, "train": 20, "score": 0, "total": 39}
    budget(clock, 60).go_on(tmp_path / "nothing.json")


def test_a_run_on_parts_has_less_than_minisqas_own_sizes():
    from mmlora.minisqa.core import SPLIT_SIZES

    assert 0.9 * SPLIT_SIZES["train"] < Budget(WHOLE_TRAIN - 0.1).train_problems < SPLIT_SIZES["train"]
    assert 0.9 * SPLIT_SIZES["test"] < Budget(WHOLE_TEST - 0.1).test_problems < SPLIT_SIZES["test"]


def test_training_gets_what_is_left_beside_scoring(clock, capsys):
    hour = budget(clock, 60)
    clock.sleep(12)
    assert hour.elapsed() == pytest.approx(12) and hour.training_minutes(8) == pytest.approx(40)
    clock.sleep(30)
    assert hour.training_minutes(8) == pytest.approx(10) and not capsys.readouterr().out


@pytest.mark.parametrize("slept, scoring", [(47, 8), (70, 0), (1, 100)])
def test_a_slow_machine_trains_a_tenth_all_the_same_and_says_so(clock, capsys, slept, scoring):
    hour = budget(clock, 60)
    clock.sleep(slept)
    assert hour.training_minutes(scoring) == pytest.approx(6)
    assert f"this machine needs {slept + scoring:.1f} of 60 minutes" in capsys.readouterr().out


def test_a_part_that_comes_twice_is_added_up(clock):
    hour = budget(clock, 60)
    for minutes in (1, 2):
        with hour.watch("score"):
            clock.sleep(minutes)
    with hour.watch("data"):
        clock.sleep(4)
    clock.sleep(0.5)
    assert hour.to_dict() == {"data": 4.0, "align": 0.0, "cache": 0.0, "train": 0.0, "score": 3.0, "total": 7.5}
