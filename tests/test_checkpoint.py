"""Interrupted plus resumed equals uninterrupted, whatever the moment; damage is found and named."""

import errno
import json
import os
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from mmlora.training import checkpoint
from mmlora.training.checkpoint import CheckpointError, newest, write
from mmlora.training.fit import fit

pytestmark = pytest.mark.usefixtures("one_thread")


def content(folder) -> dict:
    """Everything the newest checkpoint holds, except the time it took."""
    files = dict(newest(folder).files)
    state = json.loads(files.pop("state.json"))
    log = [json.loads(line) for line in files.pop("log.jsonl").splitlines()]
    del state["elapsed"]
    for record in log:
        del record["seconds"]
    return {**files, "state": state, "log": log}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    model, _ = tiny.train_here(folder)
    return content(folder), tiny.logits(model)


# Bit for bit.


@pytest.mark.parametrize(
    "moment, count",
    [
        ("step", 5),  # outside a save, where the first epoch ends
        ("step", 8),
        ("fsync", 9 * 4 + 3),  # inside a save: nine syncs each, the third of the fifth
        ("fsync", 9 * 6 + 7),  # after the files, before the manifest is safe
        ("replace", 4),  # between the finished folder and its name
    ],
)
def test_killed_and_resumed_equals_uninterrupted(fresh_process, uninterrupted, tmp_path, moment, count):
    assert fresh_process(tiny.train_and_die, tmp_path, moment, count) == -signal.SIGKILL
    assert 0 < newest(tmp_path).state["step"] < 12
    model, log = tiny.train_here(tmp_path, resume=True)
    expected, logits = uninterrupted
    assert content(tmp_path) == expected
    assert torch.equal(tiny.logits(model), logits)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == log.records
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000011", "checkpoint-00000012", "log.jsonl"]


class Killed(BaseException):
    """A kill for one process: nothing that handles errors catches it."""


def kill_at(patch, limit: int):
    """From here on the `limit`-th call that touches the disk is the last one."""
    calls = iter(range(1, 10**6))
    for module, name in ((os, "fsync"), (os, "replace"), (os, "open"), (checkpoint.shutil, "rmtree")):

        def counted(*arguments, original=getattr(module, name), **options):
            if next(calls) == limit:
                raise Killed
            return original(*arguments, **options)

        patch.setattr(module, name, counted)


def test_a_kill_at_any_call_of_a_save_leaves_the_old_or_the_new_one_whole(tmp_path):
    def save(folder, step):
        write(folder, step, {"a": bytes([step]) * 50, "b": b"x" * step})

    survived = []
    for limit in range(1, 30):
        folder = tmp_path / str(limit)
        for step in (1, 2, 3):
            save(folder, step)
        try:
            with pytest.MonkeyPatch.context() as patch:
                kill_at(patch, limit)
                save(folder, 4)
        except Killed:
            survived.append(newest(folder).files["a"][0])
            save(folder, 5)
            assert sorted(path.name[-1] for path in folder.iterdir()) == [str(survived[-1]), "5"]
        else:
            break
    assert len(survived) > 8 and survived == sorted(survived) and set(survived) == {3, 4}


def test_all_random_states_come_back(tmp_path):
    model = tiny.adapted()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    write(tmp_path, 0, checkpoint.capture(model, optimizer))
    expected = torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]
    checkpoint.restore(newest(tmp_path), model, optimizer)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]) == expected


# Damage.


@pytest.fixture
def two(tmp_path):
    """A folder with the checkpoints of steps 3 and 4."""
    fit(tiny.adapted(), tiny.Tokens(), replace(tiny.SETTINGS, steps=4), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["trainable.safetensors", "optimizer.safetensors", "random.safetensors", "random.json", "state.json", "log.jsonl"],
)
def test_a_flipped_bit_is_found_and_the_older_one_is_used(two, capsys, name):
    path = two / "checkpoint-00000004" / name
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    capsys.readouterr()
    assert newest(two).state["step"] == 3
    line = f"refused checkpoint-00000004 ({name} is not what was written); the newest good one is checkpoint-00000003\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    "harm, reason",
    [
        (lambda p: (p / "log.jsonl").write_bytes(b""), "log.jsonl is not what was written"),
        (lambda p: (p / "optimizer.safetensors").unlink(), "optimizer.safetensors is missing"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda p: (p / "manifest.json").write_text("{"), "cannot be read"),
        (lambda p: p.rename(p.with_name(".tmp-" + p.name)), "unfinished"),
    ],
)
def test_truncated_missing_and_unfinished_ones_are_refused_and_named(two, capsys, harm, reason):
    harm(two / "checkpoint-00000004")
    capsys.readouterr()
    assert newest(two).state["step"] == 3
    said = capsys.readouterr().out
    assert said.startswith("refused checkpoint-00000004") and reason in said and said.count("\n") == 1


def test_a_run_goes_on_from_the_older_one_to_the_same_end(uninterrupted, tmp_path):
    def interrupt(record):
        if record["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.train_here(tmp_path, on_step=interrupt)
    path = tmp_path / "checkpoint-00000007" / "trainable.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    tiny.train_here(tmp_path, resume=True)
    assert content(tmp_path) == uninterrupted[0]


def test_when_all_are_damaged_nothing_is_deleted(two):
    for path in two.glob("checkpoint-*/state.json"):
        path.write_text("{}")
    with pytest.raises(CheckpointError, match="can be used: checkpoint-00000004 .*; choose another folder"):
        fit(tiny.adapted(), tiny.Tokens(), replace(tiny.SETTINGS, steps=4), two, resume=True)
    assert len(list(two.glob("checkpoint-*/trainable.safetensors"))) == 2


def test_an_empty_folder_has_none(tmp_path):
    assert newest(tmp_path) is None and newest(tmp_path / "nowhere") is None


# A full disk.


def full_after(monkeypatch, saves):
    """The disk is full from the save after `saves` on, found out in the middle of a file."""
    seen, original = set(), checkpoint._write_through

    def write_through(path, data):
        seen.add(path.parent)
        if len(seen) > saves and path.name.startswith("optimizer"):
            path.write_bytes(data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, data)

    monkeypatch.setattr(checkpoint, "_write_through", write_through)


def test_training_survives_a_full_disk(monkeypatch, tmp_path, capsys):
    full_after(monkeypatch, 3)
    log = fit(tiny.adapted(), tiny.Tokens(), replace(tiny.SETTINGS, steps=4), tmp_path)
    assert len(log.records) == 4
    said = capsys.readouterr().out
    assert (
        f"the checkpoint of step 3 cannot be written to {tmp_path} (No space left on device); "
        "the newest one is still checkpoint-00000002; free some space; training goes on"
    ) in said
    assert "free some space; training is over, and its last steps are in no checkpoint" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000001", "checkpoint-00000002", "log.jsonl"]
    monkeypatch.undo()
    fit(tiny.adapted(), tiny.Tokens(), replace(tiny.SETTINGS, steps=4), tmp_path, resume=True)
    assert newest(tmp_path).state["step"] == 4


def test_a_disk_that_is_full_from_the_start_says_so_before_training(monkeypatch, tmp_path):
    full_after(monkeypatch, 0)
    source = tiny.Tokens()
    source.loss = lambda model, indices: pytest.fail("a step was taken")
    with pytest.raises(CheckpointError, match="step 0 cannot be written.*there is no older one; free some space"):
        fit(tiny.adapted(), source, tiny.SETTINGS, tmp_path)
    assert list(tmp_path.iterdir()) == []


# Another run's checkpoint.


@pytest.mark.parametrize(
    "settings, seed, adapter, sentence",
    [
        ({"learning_rate": 1e-4}, 1, {}, "was made with learning_rate 0.005, not 0.0001; give the same settings"),
        ({"steps": 9}, 1, {}, "was made with steps 4, not 9"),
        ({}, 2, {}, "was made with other data or frozen weights"),
        ({}, 1, {"alpha": 2}, "was made with alpha 8, not 2; give the same settings"),
        ({}, 1, {"layers": [3]}, "differ in name or shape from the 14 of this model"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(two, settings, seed, adapter, sentence):
    settings = replace(tiny.SETTINGS, **{"steps": 4, **settings})
    with pytest.raises(CheckpointError, match=sentence):
        fit(tiny.adapted(**adapter), tiny.Tokens(seed=seed), settings, two, resume=True)


def test_saving_more_or_less_often_is_no_other_run(two):
    fit(tiny.adapted(), tiny.Tokens(), replace(tiny.SETTINGS, steps=4, checkpoint_minutes=9), two, resume=True)
