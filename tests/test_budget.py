"""The minutes of a whole run: sizes, parts, what is left for training."""

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


def work(budget: Budget, clock, part: str, minutes: float) -> None:
    with budget.watch(part):
        clock.sleep(minutes)


# The budget.


@pytest.mark.parametrize("minutes, train, test", [(0.1, 64, 48), (6, 798, 180), (15, 1995, 450), (60, None, None)])
def test_sizes_follow_from_the_minutes(minutes, train, test):
    assert (Budget(minutes).train_problems, Budget(minutes).test_problems) == (train, test)


@pytest.mark.parametrize(
    "minutes, align, probe, controls", [(5, 5 / 6, 0, 40), (15, 2.5, 0, 90), (33, 5.5, 66, 198), (60, 10, 96, 200)]
)
def test_parts_follow_from_the_minutes(minutes, align, probe, controls):
    budget = Budget(minutes)
    found = budget.align_minutes, budget.probe_problems, budget.control_problems
    assert found == (pytest.approx(align), probe, controls)


def test_a_part_that_breaks_off_is_counted_and_kept(clock, tmp_path):
    hour = Budget(60, tmp_path / "minutes.json")
    with pytest.raises(OSError), hour.watch("cache"):
        clock.sleep(8)
        raise OSError("the disk is full")
    again = Budget(60)
    again.go_on(tmp_path / "minutes.json")
    assert hour.elapsed() == again.elapsed() == pytest.approx(8)


def test_what_an_earlier_session_spent_is_counted(clock):
    resumed = Budget(10)
    work(resumed, clock, "train", 1)
    resumed.add("train", 2.5)
    assert resumed.to_dict() == {"data": 0, "align": 0, "cache": 0, "train": 3.5, "score": 0, "total": 3.5}


def test_a_session_that_goes_on_knows_what_the_others_spent(clock, tmp_path):
    first = Budget(60, tmp_path / "minutes.json")
    for part, minutes in (("data", 1), ("align", 10), ("cache", 8), ("train", 20)):
        work(first, clock, part, minutes)
    again = Budget(60)
    again.go_on(tmp_path / "minutes.json")
    assert again.elapsed() == pytest.approx(19) and again.training_minutes(8) == pytest.approx(33)  # 13 and 20 before
    again.add("train", 20)
    assert again.to_dict() == {"data": 1, "align": 10, "cache": 8, "train": 20, "score": 0, "total": 39}
    Budget(60).go_on(tmp_path / "nothing.json")


def test_a_run_on_parts_has_less_than_minisqas_own_sizes():
    from mmlora.minisqa.core import SPLIT_SIZES

    assert 0.9 * SPLIT_SIZES["train"] < Budget(WHOLE_TRAIN - 0.1).train_problems < SPLIT_SIZES["train"]
    assert 0.9 * SPLIT_SIZES["test"] < Budget(WHOLE_TEST - 0.1).test_problems < SPLIT_SIZES["test"]


def test_training_gets_what_is_left_beside_scoring(clock, capsys):
    hour = Budget(60)
    work(hour, clock, "align", 12)
    assert hour.elapsed() == pytest.approx(12) and hour.training_minutes(8) == pytest.approx(40)
    work(hour, clock, "cache", 30)
    assert hour.training_minutes(8) == pytest.approx(10) and not capsys.readouterr().out


def test_answers_that_take_most_of_a_run_are_said(clock, capsys):
    run = Budget(5)
    work(run, clock, "score", 1.2)
    work(run, clock, "cache", 0.6)
    assert run.training_minutes(1) == pytest.approx(2.2) and not capsys.readouterr().out
    assert run.training_minutes(2.4) == pytest.approx(0.8)
    assert "of 5 minutes, answers take 3.6 and leave 0.8 for training" in capsys.readouterr().out


def test_who_reads_between_two_steps_loses_no_minute_of_training(clock):
    hour = Budget(60)
    work(hour, clock, "data", 2)
    clock.sleep(25)
    assert hour.elapsed() == pytest.approx(2) and hour.training_minutes(8) == pytest.approx(50)


@pytest.mark.parametrize("worked, scoring", [(47, 8), (70, 0), (1, 100)])
def test_a_slow_machine_trains_a_tenth_all_the_same_and_says_so(clock, capsys, worked, scoring):
    hour = Budget(60)
    work(hour, clock, "cache", worked)
    assert hour.training_minutes(scoring) == pytest.approx(6)
    assert f"this machine needs {worked + scoring:.1f} of 60 minutes" in capsys.readouterr().out


def test_a_part_that_comes_twice_is_added_up(clock):
    hour = Budget(60)
    for part, minutes in (("score", 1), ("score", 2), ("data", 4)):
        work(hour, clock, part, minutes)
    assert hour.to_dict() == {"data": 4.0, "align": 0.0, "cache": 0.0, "train": 0.0, "score": 3.0, "total": 7.0}
