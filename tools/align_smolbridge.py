"""Make SmolBridge's connector: align it (`smolbridge.align`) on captioned pictures of MiniSQA's generator.

    python -m tools.align_smolbridge --pictures 48000

The pictures are drawn with another seed than any MiniSQA split. Writes `weights/smolbridge/connector.safetensors` and
`align.json`, the log.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file

from mmlora import minisqa
from mmlora.minisqa.dataset import version
from mmlora.models.vlm import load_base
from mmlora.paths import RUNS, WEIGHTS
from mmlora.reporting import machine
from mmlora.smolbridge.align import ReadSettings, fitting, look, read, say, spell
from mmlora.smolbridge.assemble import assembled

SEED = 1_000_003  # far from the seeds that people use for MiniSQA


def read_right(scores: torch.Tensor, spelled: torch.Tensor, skills: list[str]) -> dict[str, list[int]]:
    """For each skill, how many captions come out right word for word, and of how many."""
    right = (scores.argmax(-1) == spelled).all(-1).tolist()
    return {s: [sum(r for r, t in zip(right, skills) if t == s), skills.count(s)] for s in sorted(set(skills))}


def drawn(vlm, count: int, seed: int, folder: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Draw `count` pictures of MiniSQA's image skills: what the connector sees of each, their captions and their skills.

    Kept in `folder` and used again.
    """
    connector, texts, file = vlm.model.model.connector, [], folder / "captions.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)

        def pictures():
            for problem in minisqa.generate("train", count, seed=seed, skills=minisqa.pictured()):
                texts.append((problem.caption, problem.skill))
                yield problem.image

        look(vlm, pictures(), folder / "seen.f16", count, fresh=True)
        save_file(connector.describe.state_dict(), folder / "describe.safetensors")
        file.write_text(json.dumps(texts))
    connector.describe.load_state_dict(load_file(folder / "describe.safetensors"))
    captions, skills = zip(*json.loads(file.read_text()))
    seen = np.memmap(folder / "seen.f16", np.float16, "r", shape=(count, connector.seen_size))
    return seen, list(captions), list(skills)


def align(
    pictures: Annotated[int, typer.Option(help="that the connector learns to read from, 60 to 100 a second")] = 48_000,
    seed: Annotated[int, typer.Option(help="of the pictures")] = SEED,
    out: Path = WEIGHTS / "smolbridge",
    work: Path = RUNS / "align",
):
    """Align the connector on captions of drawn pictures; connector.safetensors and align.json go to `out`."""
    state, settings = machine.git_state(), ReadSettings()
    vlm = load_base(assembled(connector=None))
    seen, captions, skills = drawn(vlm, pictures, seed, work / f"pictures-{seed}-{pictures}-{version()}")
    words, spelled = spell(vlm.processor.tokenizer, captions)
    connector = fitting(vlm.model, words, spelled.shape[1])
    log = read(connector, seen, spelled, settings)
    right = read_right(
        say(connector, seen[: settings.held_out]), spelled[: settings.held_out], skills[: settings.held_out]
    )
    out.mkdir(parents=True, exist_ok=True)
    halves = {n: t if n == "word_ids" else t.half() for n, t in connector.state_dict().items()}
    save_file({f"connector.{name}": t.contiguous() for name, t in halves.items()}, out / "connector.safetensors")
    facts = {
        "pictures": pictures,
        "seed": seed,
        "visual_tokens": spelled.shape[1],
        "dictionary": len(words),
        **asdict(settings),
        **machine.circumstances(state),
    }
    (out / "align.json").write_text(json.dumps({**facts, "log": log, "captions_read_right": right}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(align)
