"""`report_to`: each step's record goes to a tracker that was asked for, which is ended whatever happens."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import accelerate.tracking
import pytest
import tiny
from accelerate.utils import LoggerType

from mmlora.experiment import Experiment
from mmlora.settings import Settings
from mmlora.training.fit import fit
from mmlora.training.log import TrainingError
from mmlora.training.probe import Probe

SETTINGS = replace(tiny.SETTINGS, steps=4, checkpoint_minutes=5)


class Wandb:
    """What stands in for the package: a run that keeps what it is given."""

    def __init__(self):
        self.began, self.config, self.sent, self.ended, self.full = {}, {}, {}, 0, math.inf

    def init(self, **named):
        self.began = named
        return self

    def update(self, values, **_):
        self.config = dict(values)

    def log(self, values, step=None, **_):
        if len(self.sent) >= self.full:
            raise OSError("the server is gone")
        self.sent[step] = values

    def finish(self):
        self.ended += 1


@pytest.fixture
def wandb(monkeypatch):
    found = Wandb()
    config = SimpleNamespace(update=found.update)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=found.init, config=config))
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.WANDB])
    return found


def printed(capsys) -> str:
    found = capsys.readouterr()
    return found.out + found.err


def probe() -> Probe:
    return Probe(lambda: {"correct": 3, "n": 4}, (0.5,))


def test_nothing_is_sent_unless_it_is_asked_for(wandb, tmp_path):
    fit(tiny.adapted(), tiny.Tokens(), SETTINGS, tmp_path)
    assert not wandb.began and not wandb.sent and not wandb.ended


def test_a_tracker_gets_the_settings_and_every_step(wandb, tmp_path):
    log = fit(tiny.adapted(), tiny.Tokens(), replace(SETTINGS, report_to="wandb"), tmp_path / "run", probe=probe())
    assert wandb.began == {"project": "mmlora", "name": "run", "dir": str(tmp_path / "run")} and wandb.ended == 1
    assert wandb.config["learning_rate"] == 5e-3 and "minutes" not in wandb.config
    assert list(wandb.sent) == [1, 2, 3, 4]
    for record in log.records:
        sent = wandb.sent[record["step"]]
        assert sent["train/loss"] == record["loss"] and sent["train/learning_rate"] == record["learning_rate"]
        assert sent["train/gradient_norm"] == record["gradient_norm"]
        assert sent["train/samples_per_second"] == record["samples"] / record["seconds"]
        assert all(isinstance(value, (int, float)) for value in sent.values())
    assert wandb.sent[2] | {"validation/correct": 3, "validation/n": 4, "validation/accuracy": 0.75} == wandb.sent[2]
    assert "validation/accuracy" not in wandb.sent[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("broken")])
def test_a_tracker_is_ended_after_errors_and_interruptions(wandb, tmp_path, error):
    def stop(record):
        if record["step"] == 2:
            raise error

    with pytest.raises(BaseException, match="broken" if isinstance(error, RuntimeError) else None):
        fit(tiny.adapted(), tiny.Tokens(), replace(SETTINGS, report_to="wandb"), tmp_path, on_step=stop)
    assert list(wandb.sent) == [1, 2] and wandb.ended == 1


def test_a_tracker_that_fails_on_the_way_ends_no_training(wandb, tmp_path, capsys):
    wandb.full = 2
    log = fit(tiny.adapted(), tiny.Tokens(), replace(SETTINGS, report_to="wandb"), tmp_path)
    assert len(log.records) == 4 and list(wandb.sent) == [1, 2] and wandb.ended == 1
    said = printed(capsys)
    assert said.count("wandb takes no more records (the server is gone); training goes on without it") == 1


def test_a_tracker_that_cannot_start_is_a_sentence_before_the_first_step(wandb, tmp_path, monkeypatch):
    def refused(**_):
        raise ValueError("no API key\nconfigured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refused)
    with pytest.raises(
        TrainingError, match="^report_to is wandb, which cannot start \\(no API key configured\\): mend that, or leave"
    ):
        fit(tiny.adapted(), tiny.Tokens(), replace(SETTINGS, report_to="wandb"), tmp_path / "run")
    assert not list((tmp_path / "run").iterdir()) and not wandb.ended


def test_a_tracker_that_is_not_installed_ends_a_run_before_anything_is_loaded(wandb, tmp_path):
    message = "report_to is trackio, which is not installed: run `pip install trackio` and start Python anew, or leave"
    with pytest.raises(TrainingError, match=message):
        fit(tiny.adapted(), tiny.Tokens(), replace(SETTINGS, report_to="trackio"), tmp_path / "run")
    with pytest.raises(TrainingError, match=message):
        Experiment(Settings(report_to="trackio"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_hands_on_what_its_settings_say():
    assert Settings(report_to="wandb").training(1).report_to == "wandb" and Settings().training(1).report_to == "none"


def test_a_resumed_run_may_report_elsewhere(wandb, tmp_path):
    def stop(record):
        if record["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny.adapted(), tiny.Tokens(), SETTINGS, tmp_path, on_step=stop)
    fit(tiny.adapted(), tiny.Tokens(), replace(SETTINGS, report_to="wandb"), tmp_path, resume=True)
    assert list(wandb.sent) == [3, 4]


def test_tensorboards_files_hold_every_step(tmp_path):
    """The package itself, offline: what it wrote is read back."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = fit(tiny.adapted(), tiny.Tokens(), replace(SETTINGS, report_to="tensorboard"), tmp_path, probe=probe())
    found = EventAccumulator(str(tmp_path / "tensorboard" / "mmlora")).Reload()
    for name in ("loss", "learning_rate", "gradient_norm", "samples", "tokens"):
        events = found.Scalars(f"train/{name}")
        assert [event.step for event in events] == [1, 2, 3, 4]
        assert [event.value for event in events] == pytest.approx([record[name] for record in log.records], rel=1e-6)
    assert [(event.step, event.value) for event in found.Scalars("validation/accuracy")] == [(2, 0.75)]
