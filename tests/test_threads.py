"""Threads on a machine that others use too: what is set before torch is imported, and what a run says of its neighbours."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from mmlora import doctor, threads
from mmlora.reporting.machine import machine

UNSET = {name: value for name, value in os.environ.items() if name not in threads.CHOSEN}


def told(program: str, **environment: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", program], env=UNSET | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


SAY = "; import os; from mmlora import threads; print(os.environ.get('OMP_WAIT_POLICY'), threads.SETTLED)"


def test_threads_are_told_to_sleep_before_torch_is_there():
    assert told("import mmlora" + SAY) == "PASSIVE True"


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("KMP_BLOCKTIME", "3"), ("GOMP_SPINCOUNT", "9")]
)
def test_the_users_own_choice_stands(name, value):
    expected = value if name == "OMP_WAIT_POLICY" else "None"
    assert told("import sys; sys.modules['torch'] = None; import mmlora" + SAY, **{name: value}) == f"{expected} True"


def test_torch_that_was_there_first_is_noticed():
    assert told("import sys; sys.modules['torch'] = None; import mmlora" + SAY) == "PASSIVE False"


def test_doctor_says_when_torch_was_there_first(monkeypatch):
    assert doctor.waiting_threads().state == "OK"
    monkeypatch.setattr(threads, "SETTLED", False)
    found = doctor.waiting_threads()
    assert found.state == "to do" and "import mmlora before torch" in found.text


def test_a_busy_neighbour_is_seen_and_our_own_work_is_none():
    spinning = subprocess.Popen(
        [sys.executable, "-c", "print('begun', flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    )
    try:
        assert spinning.stdout.readline() == b"begun\n"
        used, cores = threads.used_by_others(0.5)
    finally:
        spinning.kill()
        spinning.communicate()
    assert cores >= 1 and 0.3 < used <= cores


def test_what_a_run_says_of_its_neighbours(monkeypatch, capsys):
    monkeypatch.setattr(threads, "used_by_others", lambda: (1.04, 2))
    threads.say_if_busy()
    assert "other programs use 1.0 of 2 cores" in capsys.readouterr().out
    monkeypatch.setattr(threads, "used_by_others", lambda: (0.1, 2))
    threads.say_if_busy()
    assert not capsys.readouterr().out


def test_time_of_this_process_is_not_a_neighbours(monkeypatch):
    """Two looks at the same clocks: what this process used between them is taken off."""

    class Process:
        def cpu_times(self):
            return (time.process_time(), 0.0)

    class Core:
        def __init__(self):
            self.idle, self.iowait, self.user = 0.0, 0.0, time.process_time()

        def __iter__(self):
            return iter((self.user, self.idle, self.iowait))

    import psutil

    monkeypatch.setattr(psutil, "Process", Process)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [Core() for _ in range(os.cpu_count())][:1])
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: sum(range(3_000_000)))
    used, _ = threads.used_by_others()
    assert used < 0.05


def test_a_machine_that_hides_its_load_stops_nothing(monkeypatch, capsys):
    """Android and some containers refuse /proc/stat."""
    import psutil

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", refused)
    monkeypatch.setattr(psutil, "virtual_memory", refused)
    threads.say_if_busy()
    assert not capsys.readouterr().out
    assert doctor.waiting_threads().text.endswith("hides what other programs use")
    assert "hides how much is free" in doctor.memory().text and machine()["memory_gb"] is None
