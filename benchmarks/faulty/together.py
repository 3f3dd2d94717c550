"""Killing one process of two; as a script, what each of the two does: `torchrun together.py SIDE WORLD FOLDER [STEP RANK]`.

On cards `accelerate launch` starts such processes by torchrun; on processors it asks for MPI, which few have.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

ERROR = re.compile(
    r"^(\[rank\d\]: )?[\w.]+(Error|Exception|Interrupt)\b: "
)  # the line of a traceback that names the exception
LIMIT = 120.0  # seconds that a launch may take, its imports included


def launch(side: str, world: Path, folder: Path, *death: int) -> dict:
    """Two processes by gloo; what the launcher said, and how it ended."""
    here = Path(__file__).resolve()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(here), side,
               str(world), str(folder), *map(str, death)]  # fmt: skip
    paths = os.pathsep.join(map(str, (here.parents[1], here.parents[2] / "tests", here.parents[2])))
    env = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    errors = [line for line in done.stderr.splitlines() if ERROR.match(line) and "ChildFailedError" not in line]
    return {"rc": done.returncode, "said": done.stderr[-4000:], "error": errors[0] if errors else ""}


def reference(world: Path, folder: Path, side: str):
    """A run of two without a fault, as a child's job."""
    from faulty.world import end

    done = launch(side, world, folder)
    if done["rc"]:
        raise RuntimeError(done["said"])
    return {"end": end(folder / "adapter")}


def one_dies(case):
    """One of two is killed at a random step; the launcher ends in time, and the run goes on to the same end."""
    from faulty import verdict
    from faulty.kinds import end_of
    from faulty.world import STEPS, Progress

    work, name = case.folder / "work", case.side.NAME
    work.mkdir(parents=True)
    step, rank = case.rng.randrange(2, STEPS), (case.number + 1) % 2
    root = case.world.base.parent
    first = yield case.job(partial(launch, name, root, work, step, rank), "first", limit=LIMIT + 10)
    saved = max(Progress(work / "progress-0").read()["saved"], default=0)
    (work / "progress-0").unlink(missing_ok=True)
    second = yield case.job(partial(launch, name, root, work), "second", limit=LIMIT + 10)
    steps = Progress(work / "progress-0").read()["step"]
    counted, tail = set(), ""
    if first.result is None or not verdict.names(first.result["said"], case.kind, ()):
        counted.add(verdict.CRASH)
    fine = second.result is not None and second.result["rc"] == 0
    if not fine:
        counted |= {verdict.CRASH, verdict.LOST}
        tail = (second.result or {"error": second.message})["error"][:400]
    elif end_of(work / "adapter") != case.reference.ends["process"]:
        counted.add(verdict.WRONG)
    if min(steps, default=saved + 1) <= saved:
        counted.add(verdict.LOST)
    same = fine and verdict.WRONG not in counted
    outcome = f"ended after {first.seconds:.0f} s; {'went on to the same end' if same else 'another end' if fine else 'did not go on'}"
    return case.record(
        "rank", outcome, counted, second, step=step, rank=rank, saved=saved, **({"then": tail} if tail else {})
    )


def main():
    """What one of the two processes does."""
    import torch

    from faulty import ours, theirs, world
    from faulty.world import Progress
    from mmlora.models import processes

    side, root, folder, *death = sys.argv[1:]
    own = int(os.environ["RANK"])

    class Deadly(Progress):
        def saved(self, number: int) -> None:
            super().saved(number)
            if [number, own] == list(map(int, death)):
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    module = {each.NAME: each for each in (ours, theirs)}[side]
    module.train(world.read(Path(root)), Path(folder), Deadly(Path(folder) / f"progress-{own}"))
    processes.leave()


if __name__ == "__main__":
    main()
