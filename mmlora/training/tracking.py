"""Records of a training as they come, sent to a tracker through accelerate; nothing is sent unless a setting names one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from mmlora.errors import on_one_line
from mmlora.training.log import TrainingError
from mmlora.training.settings import NO_TRACKER, TrainSettings

SHOWN = 300  # characters of a tracker's message
PROJECT = "mmlora"  # what the tracker files runs under


def refuse_missing(tracker: str) -> None:
    """Raise `TrainingError` for a tracker whose package is not installed."""
    if tracker != NO_TRACKER and tracker not in map(str, get_available_trackers()):
        raise TrainingError(
            f"report_to is {tracker}, which is not installed: run `pip install {tracker}` and start Python anew, or leave "
            "report_to out"
        )


def accelerator(settings: TrainSettings, folder: Path, **options: Any) -> Accelerator:
    """An `Accelerator` that reports to the tracker of `settings`; tensorboard's files go to `folder`/tensorboard.

    Raises `TrainingError` where it is not installed.
    """
    refuse_missing(settings.report_to)
    if settings.report_to == NO_TRACKER:
        return Accelerator(**options)
    return Accelerator(log_with=settings.report_to, project_dir=folder / "tensorboard", **options)


class Tracking:
    """One training's tracker, from `start` to `finish`; `say` prints a line."""

    def __init__(self, accelerator: Accelerator, settings: TrainSettings, folder: Path, say: Callable[[str], None]):
        self.accelerator, self.settings, self.folder, self.say = accelerator, settings, folder, say
        self.on = False

    def start(self) -> None:
        """Start the tracker with the settings. Raises `TrainingError` where it cannot, such as without a login."""
        name = self.settings.report_to
        if name == NO_TRACKER:
            return
        config = {key: value for key, value in asdict(self.settings).items() if value is not None}
        run = {"wandb": {"name": self.folder.name, "dir": str(self.folder)}, "trackio": {"name": self.folder.name}}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # or else wandb takes another
            self.accelerator.init_trackers(PROJECT, config, run)
        except Exception as error:  # each tracker has kinds of its own
            self.accelerator.trackers.clear()  # half started, it could not be finished
            raise TrainingError(
                f"report_to is {name}, which cannot start ({on_one_line(error, SHOWN)}): mend that, or leave report_to out"
            ) from error
        self.on = True

    def log(self, record: dict[str, Any]) -> None:
        """Send one step's record. A tracker that fails is said once and no longer used: training goes on."""
        if not self.on:
            return
        try:
            self.accelerator.log(scalars(record), step=record["step"])
        except Exception as error:
            self.on = False
            self.say(
                f"{self.settings.report_to} takes no more records ({on_one_line(error, SHOWN)}); training goes on without it"
            )

    def finish(self) -> None:
        """Let the tracker write what it holds. `end_training` would end the process group too, which scoring needs."""
        for tracker in self.accelerator.trackers:
            try:
                tracker.finish()
            except Exception as error:
                self.say(
                    f"{self.settings.report_to} did not end well ({on_one_line(error, SHOWN)}); log.jsonl has every record"
                )
        self.accelerator.trackers.clear()
        self.on = False


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """A record's numbers by name: `train/loss`, `validation/correct` and so on, with samples/s and the share right added."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= {f"{name}/{key}": number for key, number in value.items() if isinstance(number, (int, float))}
        elif isinstance(value, (int, float)) and name != "step":
            found[f"train/{name}"] = value
    if record["seconds"]:
        found["train/samples_per_second"] = record["samples"] / record["seconds"]
    if validation := record.get("validation"):
        found["validation/accuracy"] = validation["correct"] / validation["n"]
    return found
