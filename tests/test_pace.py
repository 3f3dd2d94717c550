"""A run's minutes: answers that fit into them, training that leaves room for them, samples that are too few."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmlora import timing
from mmlora.budget import Budget
from mmlora.evaluation import pace as paces
from mmlora.evaluation.pace import LEAST, Pace
from mmlora.evaluation.scores import Prediction
from mmlora.problems.record import Problem
from mmlora.settings import Settings
from mmlora.timing import FEWEST, Timing
from mmlora.training import clock as clocks
from mmlora.training.clock import OFTEN, Clock
from mmlora.training.log import TrainingError
from mmlora.training.settings import TrainSettings

PROBLEMS = [Problem(f"p{i}", "Which?", ("a", "b"), 0) for i in range(200)]


class Machine:
    """Answers that take `seconds` each, on a clock that only they move."""

    def __init__(self, monkeypatch, seconds: float):
        self.seconds, self.now, self.calls = seconds, 0.0, []
        monkeypatch.setattr(paces, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing, "perf_counter", lambda: self.now)

    def answer(self, problems: list[Problem]) -> list[Prediction]:
        self.calls.append(len(problems))
        self.now += self.seconds * len(problems)
        return [Prediction(problem.id, 0, True) for problem in problems]

    def left(self, seconds: float):
        return lambda: seconds - self.now


def test_a_quiet_machine_answers_all_at_once(monkeypatch):
    quiet = Machine(monkeypatch, 1.0)
    problems, said = Pace(1.1, 200, quiet.left(200)).answered(PROBLEMS, quiet.answer)
    assert problems == PROBLEMS and [s.id for s in said] == [p.id for p in PROBLEMS] and quiet.calls == [200]


def test_where_nothing_was_promised_all_are_answered(monkeypatch):
    slow = Machine(monkeypatch, 60.0)
    assert len(Pace(1.0, 200, None).answered(PROBLEMS, slow.answer)[0]) == 200


def test_a_slow_machine_answers_as_many_as_fit(monkeypatch):
    slow = Machine(monkeypatch, 2.0)
    problems, said = Pace(2.0, 200, slow.left(200)).answered(PROBLEMS, slow.answer)
    assert len(problems) == len(said) == 100 and slow.now <= 200
    assert [p.id for p in problems] == [s.id for s in said]
    assert problems == [p for p in PROBLEMS if p in problems], "in their own order"
    assert 30 < sum(PROBLEMS.index(p) < 100 for p in problems) < 70, "and drawn from everywhere"


def test_a_machine_slower_than_estimated_is_noticed_half_way(monkeypatch):
    """Half of what was thought to fit is answered, and the rest at the pace that this took."""
    slower = Machine(monkeypatch, 3.0)
    problems, _ = Pace(2.0, 200, slower.left(200)).answered(PROBLEMS, slower.answer)
    assert slower.calls == [50, 16] and slower.now <= 200 and len(problems) == 66


def test_a_few_are_answered_whatever_the_time(monkeypatch):
    late = Machine(monkeypatch, 10.0)
    assert len(Pace(10.0, 200, late.left(-5)).answered(PROBLEMS, late.answer)[0]) == LEAST
    assert len(Pace(10.0, 200, late.left(-5)).answered(PROBLEMS[:3], late.answer)[0]) == 3
    assert Pace(10.0, 0, late.left(-5)).answered([], late.answer) == ([], [])


def test_what_comes_later_keeps_its_share(monkeypatch):
    """200 test problems and 100 controls, in half of the time that they would take."""
    slow = Machine(monkeypatch, 2.0)
    pace = Pace(2.0, 300, slow.left(300))
    first, _ = pace.answered(PROBLEMS, slow.answer)
    second, _ = pace.answered(PROBLEMS[:100], slow.answer)
    assert (len(first), len(second)) == (100, 50) and slow.now <= 300


# Timing: the same for a whole run.


def test_a_baseline_takes_its_share_of_the_minutes(monkeypatch):
    slow = Machine(monkeypatch, 2.0)
    budget = Budget(5)
    monkeypatch.setattr(budget, "elapsed", lambda: slow.now / 60)
    problems, said = Timing(Settings(minutes=5), budget).baseline(PROBLEMS, slow.answer)
    assert len(problems) == len(said) == LEAST  # 30 seconds less the trial's have no room for more
    asked = Machine(monkeypatch, 2.0)
    assert len(Timing(Settings(minutes=5, test_problems=200), budget).baseline(PROBLEMS, asked.answer)[0]) == 200
    assert asked.calls == [200], "and no trial, where a number was asked for"


@pytest.mark.parametrize("changes", [{"steps": 5}, {"train_minutes": 3}, {"test_problems": 9}])
def test_what_was_asked_for_otherwise_promises_no_minutes(changes):
    assert Timing(Settings(), Budget(60)).promised and not Timing(Settings(**changes), Budget(60)).promised


def test_training_leaves_room_for_answers_at_the_newest_pace(monkeypatch):
    run = Timing(Settings(minutes=60), Budget(60))
    monkeypatch.setattr(run.budget, "elapsed", lambda: 10.0)
    run.expect(600.0, 100)  # six seconds an answer, and a tenth more
    assert run.reserved == pytest.approx(11.4), "and maps and the report come after them"
    allowed = run.training_minutes()
    assert allowed(1.0) == pytest.approx(38.6) and allowed(2.0) == pytest.approx(27.6)
    assert allowed(9.0) == 6.0, "a tenth is trained all the same"
    run.probed(30.0, 10)  # answers of a trained model are shorter: what they took is known now
    assert allowed(2.0) == pytest.approx(44.1)


def test_a_short_run_on_a_slow_machine_scores_less_before_it_learns_less(monkeypatch):
    run = Timing(Settings(minutes=10), Budget(10))
    monkeypatch.setattr(run.budget, "elapsed", lambda: 2.0)
    run.expect(120.0, 20)
    assert run.reserved == pytest.approx(2.6) and run.training_minutes()(1.0) == pytest.approx(5.4)
    run.expect(360.0, 60)
    assert run.reserved == pytest.approx(3.4) and run.training_minutes()(2.0) == pytest.approx(4.6)


def test_too_few_samples_are_said_before_training(capsys):
    run = Timing(Settings(minutes=5), Budget(5))
    run.refuse_few_samples(1.0, FEWEST / 60)
    run.refuse_few_samples(None, 1.0)
    with pytest.raises(TrainingError, match=r"see about 60 samples .* a run of about 34 minutes .*--few-samples"):
        run.refuse_few_samples(1.0, 1.0)
    assert not capsys.readouterr().out
    for asked in (replace(run.settings, few_samples=True), replace(run.settings, minutes=0.5)):
        Timing(asked, Budget(asked.minutes)).refuse_few_samples(1.0, 1.0)
        assert "see about 60 samples" in capsys.readouterr().out


@pytest.mark.parametrize(("busy", "with_one", "chosen"), [(1.0, 9.0, 1), (1.0, 7.5, 2), (0.2, 9.0, 2)])
def test_fewer_threads_are_taken_where_a_neighbour_makes_them_faster(monkeypatch, capsys, busy, with_one, chosen):
    threads_now = [2]
    monkeypatch.setattr(timing.torch, "get_num_threads", lambda: threads_now[0])
    monkeypatch.setattr(timing.torch, "set_num_threads", lambda number: threads_now.__setitem__(0, number))
    monkeypatch.setattr(timing.threads, "used_by_others", lambda: (busy, 2))
    monkeypatch.setattr(timing, "samples_per_second", lambda *_: 7.0 if threads_now[0] == 2 else with_one)
    model = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")
    Timing(Settings(minutes=5), Budget(5)).prepare(model, None, 3.0)
    assert threads_now == [chosen]
    assert ("training takes 1 of 2 threads" in capsys.readouterr().out) == (chosen == 1)


def test_the_clock_asks_anew_when_steps_become_slower(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clocks, "perf_counter", lambda: now[0])
    asked = []

    def allowed(slowdown: float) -> float:
        asked.append(slowdown)
        return 10 / slowdown

    clock = Clock(TrainSettings(minutes=10), allowed)
    clock.estimate_anew()
    assert not asked and clock.budget == 600
    for seconds in (1.0, 2.0):
        clock.recent.extend([seconds] * OFTEN)
        clock.estimate_anew()
    assert asked == [1.0, 2.0] and clock.budget == 300
    by_steps = Clock(TrainSettings(steps=5), allowed)
    by_steps.recent.extend([1.0] * OFTEN)
    by_steps.estimate_anew()
    assert len(asked) == 2
