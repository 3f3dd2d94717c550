"""The fault suite makes the faults that it says, and counts what it should."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from functools import partial

import pytest

from mmlora.errors import MMLoraError
from mmlora.paths import PACKAGE
from tools import faults_table
from tools.readme import render_readme

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, disks mounted")


@pytest.fixture
def faulty(monkeypatch):
    """`faulty("verdict")` is that module of benchmarks/faulty."""
    monkeypatch.syspath_prepend(PACKAGE.parent / "benchmarks")
    return lambda name: importlib.import_module(f"faulty.{name}")


@pytest.fixture
def outcomes(faulty, tmp_path):
    """What becomes of children that do these things."""
    children = faulty("children")

    def ask(do, **how):
        found = []

        def fault():
            found.append((yield children.Job(do, tmp_path / "child", **how)))
            return {}

        list(children.run([fault()]))
        return found[0]

    return ask


# Children.


def fails(kind):
    raise kind("it is so")


def waits():
    os.write(1, b"here\n")
    time.sleep(60)


def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    waits()


def test_a_child_tells_its_result_its_error_and_its_output(outcomes):
    assert outcomes(lambda: {"end": 3}).result == {"end": 3}
    ours, other = outcomes(partial(fails, MMLoraError)), outcomes(partial(fails, KeyError))
    assert (ours.sentence, ours.message) == (True, "it is so") and (other.sentence, other.error) == (False, "KeyError")
    died = outcomes(lambda: os.kill(os.getpid(), signal.SIGQUIT))
    assert (died.signal, died.killed, died.result) == (signal.SIGQUIT, False, None)


def test_a_child_is_killed_when_it_is_due_and_when_it_hangs(outcomes, faulty, monkeypatch):
    killed = outcomes(waits, kill=(signal.SIGKILL, 0.3))
    assert killed.killed and killed.seconds < 5 and killed.output == "here\n"
    assert outcomes(waits, limit=0.3).hung
    monkeypatch.setattr(faulty("children"), "GRACE", 0.2)
    assert outcomes(stubborn, kill=(signal.SIGTERM, 0.3)).hung


# What is counted.


@pytest.mark.parametrize(
    "side, outcome, ending",
    [
        ("mmlora", {"result": {}}, "ended"),
        ("mmlora", {"error": "CacheError", "message": "so", "sentence": True}, "refused"),
        ("mmlora", {"error": "OSError", "message": "No space left on device: a.json"}, "crash"),
        ("Trainer", {"error": "OSError", "message": "[Errno 28] No space left on device"}, "refused"),
        ("Trainer", {"error": "ValueError", "message": "cannot take a.json"}, "refused"),
        ("Trainer", {"error": "RuntimeError", "message": "unexpected pos 64 vs 0"}, "crash"),
        ("Trainer", {"signal": 7}, "crash"),
        ("Trainer", {"hung": True, "error": "OSError", "message": "No space left"}, "crash"),
        ("mmlora", {"signal": 9, "killed": True}, "killed"),
    ],
)
def test_an_ending_is_a_sentence_or_a_crash(faulty, side, outcome, ending):
    verdict, children = faulty("verdict"), faulty("children")
    assert verdict.ending(children.Outcome(**outcome), "disk", side, ("a.json",)) == ending


def test_a_line_of_output_is_a_word(faulty):
    verdict, children = faulty("verdict"), faulty("children")
    heard = children.Outcome(result={}, output="loss 1.2\nrefused checkpoint-3 (state.json is not what was written)\n")
    assert verdict.said(heard, "damage", ()) and verdict.said(heard, "nan", ("state.json",))
    assert not verdict.said(heard, "nan", ()) and not verdict.said(heard, "disk", ("a.json",))


# What is broken.


def test_damage_is_one_bit_or_a_cut(faulty, tmp_path):
    import random

    harms, rng, kinds = faulty("harms"), random.Random(0), set()
    for _ in range(20):
        path = tmp_path / "file"
        path.write_bytes(bytes(range(200)))
        done, after = harms.damage(path, rng), path.read_bytes()
        kinds.add(done["harm"])
        if done["harm"] == "cut":
            assert after == bytes(range(200))[: done["byte"]]
        else:
            (at,) = (i for i, (a, b) in enumerate(zip(after, range(200))) if a != b)
            assert at == done["byte"] and after[at] ^ at == 1 << done["bit"]
    assert kinds == {"bit", "cut"}


def test_the_payload_is_code(faulty, tmp_path):
    """What reads a pickle without care runs it; or else the suite would find nothing."""
    import pickle

    faulty("harms").hostile_pickle(tmp_path / "a.bin", tmp_path / "mark")
    pickle.loads((tmp_path / "a.bin").read_bytes())
    assert (tmp_path / "mark").exists()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root mounts")
def test_a_disk_is_full_and_has_room_again(faulty, tmp_path):
    harms = faulty("harms")
    with harms.disk(tmp_path / "disk") as way:
        if way != "tmpfs":
            pytest.skip("nothing may be mounted here")
        (tmp_path / "disk" / "kept").write_bytes(bytes(5000))
        harms.resize(tmp_path / "disk", 8192)
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "disk" / "more").write_bytes(bytes(9000))
        harms.resize(tmp_path / "disk", 2**20)
        (tmp_path / "disk" / "more").write_bytes(bytes(9000))
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_limit_on_files_does_where_nothing_may_be_mounted(outcomes, faulty, tmp_path):
    def write():
        faulty("harms").limit_files(4096)
        (tmp_path / "file").write_bytes(bytes(5000))

    assert "File too large" in outcomes(write).message


# The whole suite, with one fault of each kind but those that take long.


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """One or two faults of these kinds, in a process as a person starts it."""
    import subprocess

    out = tmp_path_factory.mktemp("faults") / "faults.json"
    kinds = [word for kind in ("kill", "disk", "hostile", "nan") for word in ("--only", kind)]
    command = [
        sys.executable,
        str(PACKAGE.parent / "benchmarks" / "faults.py"),
        "--share",
        "0.03",
        *kinds,
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_both_sides_stand_the_same_faults(record):
    ours, theirs = ([fault for fault in record["faults"] if fault["side"] == side] for side in ("mmlora", "Trainer"))
    assert [(f["kind"], f["number"]) for f in ours] == [(f["kind"], f["number"]) for f in theirs]
    assert {f["kind"] for f in ours} == {"kill", "disk", "hostile", "nan"}
    assert {"date", "machine", "versions", "git", "settings", "minutes"} <= record.keys()


def test_ours_stands_them(record):
    assert [fault for fault in record["faults"] if fault["side"] == "mmlora" and fault["counted"]] == []


# The page.


def test_the_tables_count_what_the_record_holds():
    none = dict.fromkeys(faults_table.COUNTED, 0)
    made = {
        "summary": {"kill": {"mmlora": {"n": 3, **none}, "Trainer": {"n": 3, **none, "crash": 2}},
                    "tables": {"mmlora": {"n": 9, **none}}},
        "faults": [{"side": "Trainer", "kind": "kill", "place": "train", "counted": ["crash"], "message": "a|b", "outcome": "crash"}],
    }  # fmt: skip
    lines = faults_table.summary(made).splitlines()
    assert lines[3] == "| `kill -9` at a random moment, then resumed | Trainer | 3 | 0 | 0 | 2 | 0 | 0 |"
    assert lines[-1] == "| all but the tables | Trainer | 3 | 0 | 0 | 2 | 0 | 0 |"
    assert faults_table.counted(made).splitlines()[-1] == r"| Trainer | kill | train | crash | 1 | a\|b |"


def test_the_pages_tables_are_those_of_the_record():
    path = PACKAGE.parent / "docs" / "faults.md"
    text = path.read_text(encoding="utf-8")
    assert render_readme(text, faults_table.tables()) == text, "run python -m tools.faults_table"


def test_the_page_names_all_kinds_and_counts(faulty):
    verdict = faulty("verdict")
    assert faults_table.COUNTED == verdict.COUNTED and set(verdict.CAUSES) | {"tables"} == set(faults_table.KINDS)
