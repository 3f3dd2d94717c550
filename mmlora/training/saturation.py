"""When a training has nothing left to learn: its loss is numerically zero and stays there."""

from __future__ import annotations

from collections import deque
from typing import Any

WINDOW = 64  # steps whose mean loss is looked at: one hard sample among 512 must count
#: Mean loss per supervised token over `WINDOW` steps below which it is zero: where the progress bar shows 0.000. The smallest
#: such mean in results/one_hour_smolbridge/log.jsonl, a run that learned until its end, is 0.0053, ten times as much.
ZERO = 5e-4
#: Steps at zero loss before a training without validation problems stops; they must hold a whole epoch besides. With the
#: window before them, that is 1,536 samples at the usual batch size: a small data set was seen many times over by then.
ALONE = 128
PROBES = 2  # with validation problems: probes at zero loss, the last of which is no better than those before it


class Saturation:
    """Follows the records of a training on `samples` samples; the same records give the same answer after a resume."""

    def __init__(self, samples: int):
        self.samples = samples
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.since: dict[str, Any] | None = None  # the first record of the present stretch at zero loss
        self.last: dict[str, Any] = {}
        self.right: list[float] = []  # shares of validation problems that probes in this stretch found right

    def add(self, record: dict[str, Any]) -> None:
        """Take in the next step's record, with its `validation` where a probe was taken."""
        self.last = record
        self.losses.append(record["loss"])
        if len(self.losses) < WINDOW or self.mean >= ZERO:
            self.since = None
            self.right = []
            return
        if self.since is None:
            self.since = record
        if "validation" in record:
            self.right.append(record["validation"]["correct"] / record["validation"]["n"])

    @property
    def mean(self) -> float:
        """Of the last `WINDOW` losses, or of as many as there are."""
        return sum(self.losses) / len(self.losses)

    def reason(self, probed: bool) -> str | None:
        """Why there is nothing left to learn, in words; None while there may be. `probed`: probes are taken on the way."""
        if self.since is None:
            return None
        zero = f"the mean loss of {WINDOW} steps has been below {ZERO:g} since step {self.since['step']}"
        if probed:
            level = len(self.right) >= PROBES and self.right[-1] <= max(self.right[:-1])
            return f"{zero}, and the share of validation problems that are right no longer rises" if level else None
        steps = self.last["step"] - self.since["step"]
        epoch = self.last["samples"] - self.since["samples"] >= self.samples
        return f"{zero}, with every sample seen since" if steps >= ALONE and epoch else None
