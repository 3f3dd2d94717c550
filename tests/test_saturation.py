"""A training of minutes that has nothing left to learn says so and stops; one that still learns never does."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny

from mmlora.paths import RESULTS
from mmlora.training import clock
from mmlora.training.fit import fit
from mmlora.training.probe import Probe
from mmlora.training.saturation import ALONE, WINDOW, ZERO, Saturation

PACE = 0.2  # seconds a step, by the clock of these tests: 300 steps a minute
HIGH = 20  # steps before the loss is zero
SINCE = HIGH + WINDOW  # the first step whose window has only losses that are
SETTINGS = replace(tiny.SETTINGS, steps=None, minutes=1, batch_size=2, checkpoint_minutes=5)


class Learned(tiny.Tokens):
    """Samples whose loss falls to a factor of what it was after `HIGH` steps; each takes `PACE` seconds by the tests' clock."""

    def __init__(self, monkeypatch, factor: float = 1e-5, count: int = 40):
        super().__init__(count)
        self.now, self.steps, self.factor = 0.0, 0, factor
        monkeypatch.setattr(clock, "perf_counter", lambda: self.now)

    def loss(self, model, indices):
        self.now += PACE
        self.steps += 1
        total, tokens = super().loss(model, indices)
        return total * (self.factor if self.steps > HIGH else 1.0), tokens


def printed(capsys) -> str:
    found = capsys.readouterr()
    return found.out + found.err


def test_nothing_is_learned_after_the_loss_is_zero_for_long_enough(tmp_path, monkeypatch, capsys, one_thread):
    log = fit(tiny.adapted(), Learned(monkeypatch), SETTINGS, tmp_path)
    last = SINCE + ALONE
    assert log.records[-1]["step"] == last and log.seconds == pytest.approx(last * PACE, abs=0.01)
    assert (
        f"nothing is left to learn, so training stops after step {last}, 0.7 of 1.0 minutes: the mean loss of {WINDOW} steps has been "
        f"below 0.0005 since step {SINCE}, with every sample seen since; a run that counts steps (--steps) trains on"
    ) in printed(capsys)


def test_a_loss_that_is_merely_small_is_no_reason(tmp_path, monkeypatch, capsys, one_thread):
    """3e-4 of a loss of 4 is more than twice `ZERO`, and still a quarter of the least that an hour's run shows."""
    log = fit(tiny.adapted(), Learned(monkeypatch, 3e-4), SETTINGS, tmp_path)
    assert ZERO < log.records[-1]["loss"] < 4 * ZERO and log.seconds > 59
    assert "nothing is left to learn" not in printed(capsys)


def test_steps_that_are_counted_are_all_taken(tmp_path, monkeypatch, one_thread):
    steps = SINCE + ALONE + 4
    log = fit(tiny.adapted(), Learned(monkeypatch), replace(SETTINGS, minutes=None, steps=steps), tmp_path)
    assert log.records[-1]["step"] == steps


def test_a_resumed_run_stops_where_it_would_have_and_then_takes_no_step(tmp_path, monkeypatch, capsys, one_thread):
    data = Learned(monkeypatch)

    def stop(record):
        if record["step"] == SINCE + 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny.adapted(), data, SETTINGS, tmp_path, on_step=stop)
    for _ in range(2):
        log = fit(tiny.adapted(), data, SETTINGS, tmp_path, resume=True)
        assert log.records[-1]["step"] == SINCE + ALONE
        assert "nothing is left to learn" in printed(capsys)


def record(step: int, loss: float = 1e-5, **more) -> dict:
    return {"step": step, "samples": 8 * step, "loss": loss, **more}


@pytest.mark.parametrize(
    "probes, last",
    [
        ({100: 5, 200: 5, 300: 5}, 200),  # level
        ({100: 5, 200: 6, 300: 6}, 300),  # it still rose
        ({100: 5, 200: 6, 300: 7}, None),  # and rises to the end
        ({100: 5, 200: 4}, 200),
        ({30: 5, 100: 5}, None),  # the first was taken before the loss was zero
        ({100: 5}, None),  # one alone tells nothing, however long the loss is zero
    ],
)
def test_where_probes_are_taken_they_decide(probes, last):
    found, stopped = Saturation(40), None
    for step in range(1, 400):
        measured = {"validation": {"correct": probes[step], "n": 10}} if step in probes else {}
        found.add(record(step, **measured))
        stopped = stopped or (found.reason(True) and step)
    assert stopped == last


def test_a_training_with_probes_stops_at_one(tmp_path, monkeypatch, capsys, one_thread):
    probe = Probe(lambda: {"correct": 5, "n": 10}, (0.4, 0.5, 0.9))
    log = fit(tiny.adapted(), Learned(monkeypatch), SETTINGS, tmp_path, probe=probe)
    assert log.records[-1]["validation"] and 29.5 < log.seconds < 31
    assert "and the share of validation problems that are right no longer rises; a run that counts" in printed(capsys)


def test_every_sample_is_seen_at_zero_loss():
    large = Saturation(8 * (ALONE + 50))
    for step in range(1, WINDOW + ALONE + 60):
        large.add(record(step))
        assert (large.reason(False) is not None) == (step >= WINDOW + ALONE + 50)


def test_one_hard_sample_begins_the_wait_anew():
    found = Saturation(40)
    for step in range(1, 2 * WINDOW + ALONE):
        found.add(record(step, 1e-5 if step != WINDOW else 0.1))
        assert found.reason(False) is None
    assert found.since and found.since["step"] == 2 * WINDOW


def test_a_recorded_hour_never_came_near_it():
    """The constant's reason: the hour learned until its end."""
    lines = (RESULTS / "one_hour_smolbridge" / "log.jsonl").read_text().splitlines()
    means, found = [], Saturation(1)
    for each in map(json.loads, lines):
        found.add(each)
        assert found.reason(False) is None and found.reason(True) is None
        means.append(found.mean)
    assert len(means) > 1600 and min(means[WINDOW:]) > 10 * ZERO
