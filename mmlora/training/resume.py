"""What a checkpoint of a training run holds, and whether another process may go on from it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from mmlora.files import refusals
from mmlora.models import processes
from mmlora.models.base import stored_as
from mmlora.models.precision import products
from mmlora.models.vlm import base_model
from mmlora.training import checkpoint
from mmlora.training.checkpoint import Checkpoint, CheckpointError
from mmlora.training.log import TrainingError
from mmlora.training.settings import TrainingSet, TrainSettings

#: A budget is measured anew, saves and trackers change nothing that is learned, and fused layers are the plain ones in other steps.
FREE = ("minutes", "checkpoint_minutes", "fused", "report_to")
STATE, LOG, SCALER = "state.json", "log.jsonl", "scaler.json"
USUAL = {
    field.name: field.default for field in fields(TrainSettings)
}  # of a setting that an older version did not have
BEST = "best"  # the folder with the adapter of the best probe


def state(model: nn.Module, settings: TrainSettings, data: TrainingSet, place: dict, seconds: float) -> dict:
    """What must be the same for a run to go on (settings, data), and what it goes on from (place, seconds spent)."""
    chosen = {name: value for name, value in asdict(settings).items() if name not in FREE}
    for adapter in getattr(model, "peft_config", {}).values():  # shapes would not tell two alphas apart
        chosen |= {"rank": adapter.r, "alpha": adapter.lora_alpha, "dropout": adapter.lora_dropout}
    layers = "fused" if settings.fused else "plain"
    numbers = {"products": products(), "weights": stored_as(base_model(model)), "layers": layers}
    numbers["processes"] = str(processes.count())
    return {**place, "elapsed": seconds, "settings": chosen, "data": data.fingerprint, "numbers": numbers}


def files(model: nn.Module, accelerator: Accelerator, optimizer: Optimizer, now: dict, log: str) -> dict[str, bytes]:
    """The checkpoint's files, ready for `checkpoint.write`; random states are those of every process."""
    found = checkpoint.capture(model, optimizer)
    for number, kept in enumerate(processes.gathered({name: found[name] for name in checkpoint.RANDOM})):
        found |= {_of(number, name): content for name, content in kept.items()}
    found |= {STATE: json.dumps(now, indent=1).encode(), LOG: log.encode()}
    if accelerator.scaler is not None:
        found[SCALER] = json.dumps(accelerator.scaler.state_dict()).encode()
    return found


def check(found: Checkpoint, mine: dict) -> str:
    """Raise `CheckpointError` unless `found` is of this very run; returns what to say where only its numbers differ."""
    theirs = found.state
    for name, value in mine["settings"].items():
        if (other := theirs["settings"].get(name, USUAL.get(name))) != value:
            raise CheckpointError(
                f"{found.path} was made with {name} {other}, not {value}; give the same settings or choose another folder"
            )
    if theirs["data"] != mine["data"]:
        raise CheckpointError(
            f"{found.path} was made with other data or frozen weights; give the same or choose another folder"
        )
    changed = [
        f"{what} in {before} before, {now} from now on"
        for what, now in mine["numbers"].items()
        if (before := theirs["numbers"].get(what)) != now
    ]
    return (
        f"; {', '.join(changed)}: the end will differ in its last digits from an uninterrupted run" if changed else ""
    )


def claim(folder: Path, resume: bool) -> Path:
    """Where a run in `folder`, made if need be, keeps its minutes; raises `TrainingError` unless it is new, or goes on."""
    minutes = folder / "minutes.json"
    if processes.first():
        with refusals(folder):
            if resume and not folder.is_dir():
                raise TrainingError(f"there is no folder {folder}; to go on with a run, name its folder (OUT in 04)")
            if minutes.is_file() and not resume:
                raise TrainingError(f"{folder} has a run already; go on with it (RESUME in 04), or take another folder")
            folder.mkdir(parents=True, exist_ok=True)
    processes.wait()
    return minutes


def put_aside(folder: Path) -> None:
    """Make room in `folder` for a training that begins anew: what the earlier one left goes into a folder of its own."""
    earlier = folder / f"training-{1 + len(list(folder.glob('training-*')))}"
    with refusals(earlier):
        earlier.mkdir()
        for path in [*folder.glob("checkpoint-*"), folder / LOG, folder / BEST]:
            if path.exists():
                path.rename(earlier / path.name)
    print(f"training begins anew with a fresh adapter; the earlier one is kept in {earlier}")


def _of(number: int, name: str) -> str:
    """A file's name for a process: the first one's are called as they are."""
    return f"{number}-{name}" if number else name


def restore(found: Checkpoint, model: nn.Module, accelerator: Accelerator, optimizer: Optimizer) -> None:
    """Put back the tensors, the moments, the random states, and the loss scale where one was kept and is needed."""
    own = {
        name: found.files[_of(processes.index(), name)]
        for name in checkpoint.RANDOM
        if _of(processes.index(), name) in found.files
    }
    checkpoint.restore(Checkpoint(found.path, found.files | own), model, optimizer)
    if accelerator.scaler is not None and SCALER in found.files:  # a run that was begun in bfloat16 has none
        accelerator.scaler.load_state_dict(json.loads(found.files[SCALER]))
