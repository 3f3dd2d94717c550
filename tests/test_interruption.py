"""Ctrl-C and SIGTERM while training: a whole step is kept, nothing is half taken, and it goes on to the same bits."""

import json
import signal
from dataclasses import replace

import pytest
import tiny
import torch
from test_checkpoint import content

from mmlora.training import checkpoint
from mmlora.training.checkpoint import CheckpointError, newest
from mmlora.training.fit import fit
from mmlora.training.interruption import Interruption

pytestmark = pytest.mark.usefixtures("one_thread")
RARELY = replace(tiny.SETTINGS, checkpoint_minutes=60)  # so that nothing but the interruption saves


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What twelve steps without an interruption come to."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    fit(tiny.adapted(), tiny.Tokens(), RARELY, folder)
    return content(folder)


class Pressed(tiny.Tokens):
    """At the `call`-th forward pass, after its dropout was drawn, a signal comes."""

    def __init__(self, call: int, number: int = signal.SIGINT):
        super().__init__()
        self.left, self.number = call, number

    def loss(self, model, indices):
        found = super().loss(model, indices)
        self.left -= 1
        if not self.left:
            signal.raise_signal(self.number)
        return found


def goes_on_as(whole, folder):
    fit(tiny.adapted(), tiny.Tokens(), RARELY, folder, resume=True)
    assert content(folder) == whole


@pytest.mark.parametrize("call", [1, 5, 6, 9])  # the first one, and about the end of the first epoch
def test_ctrl_c_within_a_step_keeps_the_steps_before_it(whole, tmp_path, capsys, call):
    model = tiny.adapted()
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(model, Pressed(call), RARELY, tmp_path)
    assert newest(tmp_path).state["step"] == call - 1 == len(caught.value.log.records)
    assert caught.value.log.samples_seen == sum([8] * (call - 1)) == newest(tmp_path).state["samples"]
    assert f"training was interrupted after step {call - 1}" in capsys.readouterr().out
    assert not model.training and all(p.grad is None for p in model.parameters())
    goes_on_as(whole, tmp_path)


def test_ctrl_c_within_an_update_waits_for_its_end(whole, tmp_path, monkeypatch):
    steps, original = [], torch.optim.AdamW.step

    def step(optimizer, *arguments):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(optimizer, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(torch.optim.AdamW, "step", step)
        fit(tiny.adapted(), tiny.Tokens(), RARELY, tmp_path)
    assert newest(tmp_path).state["step"] == 3 == len(caught.value.log.records)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3, "the third line was not written yet"
    goes_on_as(whole, tmp_path)


def test_ctrl_c_between_two_steps_keeps_both(whole, tmp_path):
    def press(record):
        if record["step"] == 4:
            torch.rand(3)  # what an observer draws is drawn again by nobody
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny.adapted(), tiny.Tokens(), RARELY, tmp_path, on_step=press)
    assert newest(tmp_path).state["step"] == 4
    goes_on_as(whole, tmp_path)


def terminated(folder):
    """In a process of its own: SIGTERM at the fifth step."""
    torch.set_num_threads(1)
    fit(tiny.adapted(), Pressed(5, signal.SIGTERM), RARELY, folder)
    raise AssertionError("it was asked to end")


def test_sigterm_keeps_a_checkpoint_and_then_ends_the_process(fresh_process, whole, tmp_path):
    assert fresh_process(terminated, tmp_path) == -signal.SIGTERM
    assert newest(tmp_path).state["step"] == 4
    goes_on_as(whole, tmp_path)


def test_a_second_ctrl_c_does_not_spoil_what_the_first_one_keeps(whole, tmp_path, monkeypatch):
    from mmlora.training import checkpoint

    original = checkpoint._write_through

    def again(path, data):
        if "00000002" in str(path):
            signal.raise_signal(signal.SIGINT)
        original(path, data)

    monkeypatch.setattr(checkpoint, "_write_through", again)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny.adapted(), Pressed(3), RARELY, tmp_path)
    monkeypatch.undo()
    assert newest(tmp_path).state["step"] == 2
    goes_on_as(whole, tmp_path)


def test_what_signals_did_before_they_do_afterwards(tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    fit(tiny.adapted(), tiny.Tokens(), replace(RARELY, steps=1), tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        fit(tiny.adapted(), Pressed(1), RARELY, tmp_path / "b")
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Interruption():
            signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_error_tells_how_far_training_came(tmp_path):
    def fail(record):
        if record["step"] == 3:
            raise OSError("no such thing")

    with pytest.raises(OSError, match="no such thing") as caught:
        fit(tiny.adapted(), tiny.Tokens(), RARELY, tmp_path, on_step=fail)
    assert [record["step"] for record in caught.value.log.records] == [1, 2, 3]
    with pytest.raises(CheckpointError) as refused:  # which is none of this training's
        fit(tiny.adapted(rank=3), tiny.Tokens(), RARELY, tmp_path, resume=True)
    assert not hasattr(refused.value, "log")


def test_the_log_of_an_interrupted_training_is_whole(tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(tiny.adapted(), Pressed(4), RARELY, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == caught.value.log.records and [line["step"] for line in lines] == [1, 2, 3]


def test_ctrl_c_while_the_first_checkpoint_is_written_can_be_gone_on_from(whole, tmp_path, monkeypatch):
    """Broken off between its name and the note that it is there, it would be an earlier run's."""
    write = checkpoint.write

    def pressed(*arguments):
        write(*arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint, "write", pressed)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(tiny.adapted(), tiny.Tokens(), RARELY, tmp_path)
    assert caught.value.log.records == []
    monkeypatch.undo()
    goes_on_as(whole, tmp_path)
