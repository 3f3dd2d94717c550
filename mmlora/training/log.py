"""What a training run writes while it runs: a line of JSON a step, and a progress bar."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmlora.errors import MMLoraError
from mmlora.files import PLACE, REFUSALS


class TrainingError(MMLoraError):
    """Training that cannot start or go on; the message says where it stopped and what to do."""


@dataclass(frozen=True)
class TrainLog:
    """What `fit` returns: one record a step, and the totals, interrupted parts included.

    A record has `step`, `seconds`, `loss` (mean over the batch's supervised tokens, or pairs under `dpo`), `learning_rate`,
    `samples` and `tokens` (what the loss is the mean of; both so far), `gradient_norm` (before clipping) and an objective's own
    metrics; the first that reached every tower also `gradient_norm_by_tower`, those after which a probe was taken `validation`.
    """

    records: list[dict]
    samples_seen: int
    seconds: float
    seconds_before: float = 0.0  # of these, spent by earlier processes, up to the checkpoint that was resumed

    @property
    def samples_per_second(self) -> float:
        """Over the whole training, checkpoints and probes included: what a budget of minutes is worth."""
        return self.samples_seen / self.seconds if self.seconds else 0.0


class Journal:
    """`log.jsonl` and the bar. The records are kept in memory too, so a full disk costs none of them.

    A `quiet` one, of a process beside the first, only keeps them.
    """

    def __init__(self, folder: Path, quiet: bool = False):
        self.path, self.quiet = Path(os.devnull) if quiet else folder / "log.jsonl", quiet
        self.records: list[dict] = []
        self.written = 0  # records that are in the file
        self.file: Any = None  # until `open`
        self.bar: Any = None

    @property
    def text(self) -> str:
        return "".join(json.dumps(record) + "\n" for record in self.records)

    def open(self, records: list[dict]) -> None:
        """Begin with `records`; later lines of an interrupted run are dropped, for their steps are taken again."""
        self.records, self.written = records, len(records)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "w", encoding="utf-8", newline="\n")
            self.file.write(self.text)
            self.file.flush()
        except OSError as error:
            raise TrainingError(
                f"{self.path} cannot be written ({error.strerror}): {REFUSALS.get(error.errno or 0, PLACE)}"
            ) from error
        self.bar = tqdm(
            total=100,
            desc="training",
            bar_format="{percentage:3.0f}%|{bar}| {desc}",
            mininterval=0.5,
            disable=self.quiet,
        )

    def keep(self, record: dict) -> None:
        """Add a record, which may still grow until it is written."""
        self.records.append(record)

    def write(self, share: float, seconds_left: float) -> None:
        """Write what was added; `share` of the budget is spent and `seconds_left` remain."""
        self._flush()
        record = self.records[-1]
        speed = record["samples"] / max(1e-9, record["seconds"])
        left = tqdm.format_interval(max(0.0, seconds_left))
        self.bar.set_description_str(f"loss {record['loss']:.3f}, {speed:.1f} samples/s, {left} left", refresh=False)
        self.bar.update(min(100.0, 100 * share) - self.bar.n)

    def _flush(self) -> None:
        lines, self.written = self.records[self.written :], len(self.records)
        try:
            self.file.write("".join(json.dumps(record) + "\n" for record in lines))
            self.file.flush()
        except OSError:
            pass  # a full disk: the line waits in the buffer, and the next checkpoint reports the disk

    def say(self, sentence: str) -> None:
        if not self.quiet:
            tqdm.write(sentence)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.file is not None:
            self._flush()
            try:
                self.file.close()
            except OSError:
                pass  # the last checkpoint holds a copy
