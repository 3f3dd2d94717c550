"""Processes for one fault each, forked from this one, which has imported everything and computed no gradient.

A fault is a generator: it yields `Job`s, gets an `Outcome` for each, and returns its record. Two run at a time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmlora.errors import MMLoraError

POLL = 0.002  # seconds between two looks at the children
GRACE = 10.0  # seconds that a process has to end after SIGTERM


@dataclass(frozen=True)
class Job:
    """What a process is to do, and in which folder its outcome and its output are kept."""

    do: Callable[[], dict]
    place: Path
    kill: tuple[int, float] | None = None  # a signal, and after how many seconds it is sent
    limit: float = 90.0  # seconds after which the process counts as hung


@dataclass(frozen=True)
class Outcome:
    """How a process ended: with a `result`, with an `error`, by a `signal`, or never (`hung`)."""

    result: dict | None = None
    error: str = ""  # the exception's type
    message: str = ""
    sentence: bool = False  # it is an MMLoraError
    where: str = ""  # the last lines of the traceback
    output: str = ""
    signal: int = 0
    killed: bool = False  # the signal came from us
    hung: bool = False
    seconds: float = 0.0


Fault = Generator[Job, Outcome, dict]


@dataclass
class _Child:
    job: Job
    fault: Fault
    pid: int
    began: float = field(default_factory=time.monotonic)
    sent: float | None = None  # when the signal was sent
    hung: bool = False


def run(faults: Iterable[Fault], together: int = 2) -> Iterator[dict]:
    """The records of all faults, each as soon as it is known."""
    waiting, running = iter(faults), []
    try:
        while True:
            while len(running) < together and (fault := next(waiting, None)) is not None:
                running.append(_start(next(fault), fault))
            if not running:
                return
            time.sleep(POLL)
            for child in list(running):
                outcome = _look(child)
                if outcome is None:
                    continue
                running.remove(child)
                try:
                    running.append(_start(child.fault.send(outcome), child.fault))
                except StopIteration as end:
                    yield end.value
    finally:
        for child in running:
            _end(child.pid)
            child.fault.close()


def _start(job: Job, fault: Fault) -> _Child:
    job.place.mkdir(parents=True, exist_ok=True)
    (job.place / "outcome.json").unlink(missing_ok=True)
    sys.stdout.flush()  # or else the child prints it again
    pid = os.fork()
    if pid == 0:
        _in_child(job)
    try:
        os.setpgid(pid, pid)  # here too: it may be killed before it has done so itself
    except (PermissionError, ProcessLookupError):
        pass
    return _Child(job, fault, pid)


def _in_child(job: Job):
    """Never returns."""
    try:
        os.setpgid(0, 0)
        output = os.open(job.place / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        found = _done(job)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        aside = job.place / "outcome.part"
        aside.write_text(json.dumps(found))
        aside.replace(job.place / "outcome.json")
    finally:
        os._exit(0)


def _done(job: Job) -> dict:
    try:
        return {"result": job.do()}
    except BaseException as error:  # an interruption is an outcome too
        frames = traceback.format_exception(error)
        return {
            "error": type(error).__name__,
            "message": str(error)[:2000],
            "sentence": isinstance(error, MMLoraError),
            "where": "".join(frames)[-1500:],
        }


def _look(child: _Child) -> Outcome | None:
    """What became of the child, or None while it runs; a signal that is due is sent."""
    pid, status = os.waitpid(child.pid, os.WNOHANG)
    passed = time.monotonic() - child.began
    if pid:
        _end(child.pid)  # what it started and left behind
        return _outcome(child, status, passed)
    kill = child.job.kill
    if kill and child.sent is None and passed >= kill[1]:
        child.sent = time.monotonic()
        os.killpg(child.pid, kill[0])
    late = child.sent is not None and time.monotonic() - child.sent > GRACE
    if not child.hung and (late or passed > child.job.limit):
        child.hung = True
        os.killpg(child.pid, signal.SIGKILL)
    return None


def _outcome(child: _Child, status: int, seconds: float) -> Outcome:
    place = child.job.place
    output = (place / "output.txt").read_text(errors="replace") if (place / "output.txt").exists() else ""
    kept = place / "outcome.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return Outcome(
        **found,
        output=output,
        signal=number,
        killed=child.sent is not None and number != 0 and not child.hung,
        hung=child.hung,
        seconds=seconds,
    )


def _end(pid: int):
    """Kill the process group and collect the child's status, if it is still there."""
    try:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, PermissionError, ChildProcessError):
        pass
