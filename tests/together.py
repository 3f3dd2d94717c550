"""What every process of tests/test_processes.py does: `torchrun together.py NAME FOLDER`, one result a process.

Not a test itself. Each function gets the folder, and what it returns is written to FOLDER/NAME-RANK.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

os.environ["MMLORA_PRECISION"] = "float32"

import families
import tiny
import tinyvlm
import torch

from mmlora import headless
from mmlora.adapters import lora
from mmlora.adapters.files import save_adapter
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.prompts import taught
from mmlora.encoding.samples import Samples
from mmlora.errors import MMLoraError
from mmlora.evaluation.answering import evaluate
from mmlora.models import processes
from mmlora.models.vlm import decoder_layers, load_base
from mmlora.settings import Settings
from mmlora.training.fit import fit

PROBLEMS = [replace(problem, id=f"{problem.id}-{i}") for i in range(3) for problem in tinyvlm.PROBLEMS]
FIFTY = replace(tiny.SETTINGS, steps=50, batch_size=7, checkpoint_minutes=5)  # seven: shares of another size


def plain_model():
    return tiny.adapted(dropout=0.0)


def losses(folder: Path, name: str = "run", **how) -> list[float]:
    log = fit(plain_model(), tiny.Tokens(), FIFTY, folder / name, **how)
    return [record["loss"] for record in log.records]


def fifty(folder: Path) -> list[float]:
    return losses(folder)


def with_dropout(folder: Path) -> list[float]:
    """Every step saved, so that a later call can go on from the middle."""
    log = fit(tiny.adapted(), tiny.Tokens(), tiny.SETTINGS, folder / "dropout", resume=(folder / "dropout").exists())
    return [record["loss"] for record in log.records]


def dies(folder: Path) -> None:
    """The last process ends without a word after the fourth step."""

    def stop(record):
        if record["step"] == 4 and processes.index() == processes.count() - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        fit(plain_model(), tiny.Tokens(), tiny.SETTINGS, folder / "dies", on_step=stop)
    except MMLoraError as error:  # as the command line says it
        sys.exit(f"mmlora: {type(error).__name__}: {error}")


def goes_on(folder: Path) -> list[float]:
    log = fit(plain_model(), tiny.Tokens(), tiny.SETTINGS, folder / "dies", resume=True)
    return [record["loss"] for record in log.records]


def prefix(folder: Path) -> dict:
    vlm = families.build("smolvlm")
    model = lora.attach(vlm.model, rank=4, layers=(2, 3))
    samples = Samples(vlm, [taught(problem, "answer") for problem in PROBLEMS])
    cache = PrefixCache.build(model, samples, folder / "cache")
    again = PrefixCache.build(model, samples, folder / "cache")
    with torch.no_grad():
        return {"loss": cache.loss(model, list(range(len(PROBLEMS))))[0].item(), "shape": cache.shape, "ids": again.ids}


def answers(folder: Path) -> list:
    vlm = families.build("smolvlm")
    return [[p.id, p.choice, list(p.scores)] for p in evaluate(vlm, PROBLEMS[:11], progress=False)]


def spread(folder: Path) -> dict:
    """A model from a folder, asked, adapted, trained and asked again; the first process saves its adapter."""
    vlm = load_base(folder / "model")
    held = sum(shard_of(p).numel() for p in decoder_layers(vlm.model).parameters())
    before = [p.choice for p in evaluate(vlm, PROBLEMS[:5], progress=False)]
    model = lora.attach(vlm.model, rank=4, layers=(2, 3))
    log = fit(model, Samples(vlm, [taught(p, "answer") for p in PROBLEMS]), FIFTY, folder / f"of-{processes.count()}")
    said = evaluate(vlm.with_model(model), PROBLEMS[:5], progress=False)
    if processes.first():
        save_adapter(model, folder / f"adapter-{processes.count()}", {})
    return {
        "held": held,
        "before": before,
        "losses": [r["loss"] for r in log.records],
        "scores": [p.scores for p in said],
    }


def whole_run(folder: Path) -> bool:
    """`mmlora run` on the model and the problems in `folder`; whether the group of processes is still there after it."""
    settings = Settings(
        model=str(folder / "model"), data=str(folder / "data"), steps=4, method="likelihood", probe_problems=4
    )
    headless.run(settings, out=folder / "run")
    return torch.distributed.is_initialized()


def shard_of(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    processes.count()  # the group of processes exists from here on
    found = globals()[name](folder)
    (folder / f"{name}-{processes.index()}.json").write_text(json.dumps(found))
    processes.leave()
