"""What the base model reads of pictures, skill by skill: the loss of captions with their own picture and with another's.

    python benchmarks/reading.py

The other picture is of the same skill, so what a caption costs more with it is what was read of the details. The
pictures are drawn with a seed that no training used.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from mmlora import metrics, minisqa
from mmlora.cache import Samples
from mmlora.models import BRIDGE, VLM, load_vlm
from mmlora.paths import RESULTS
from mmlora.scienceqa import Problem
from mmlora.weights import sha256

SEED = 77


@torch.inference_mode()
def nats(vlm: VLM, problems: list[Problem]) -> float:
    """Mean loss of a caption, summed over its tokens."""
    loss, _ = Samples(vlm, problems, "caption").loss(vlm.model, range(len(problems)))
    return round(float(loss) / len(problems), 3)


def main(
    pictures: Annotated[int, typer.Option(help="of each skill")] = 16, out: Path = RESULTS / "reading" / "smolbridge.json"
):
    """Measure all skills with pictures and write `out`."""
    vlm, skills = load_vlm("smolbridge"), {}
    for skill in tqdm(minisqa.SKILLS, desc="reading", unit="skill"):
        problems = list(minisqa.generate("validation", pictures, seed=SEED, skills=[skill]))
        if problems[0].image is not None:
            swapped = [replace(p, image=other.image) for p, other in zip(problems, problems[1:] + problems[:1])]
            skills[skill] = {"own_picture": nats(vlm, problems), "another_picture": nats(vlm, swapped)}
    mean = {kind: round(sum(row[kind] for row in skills.values()) / len(skills), 2)
            for kind in ("own_picture", "another_picture")}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({
        "unit": "nats per caption", "mean": mean, "skills": skills, "pictures_of_each_skill": pictures, "seed": SEED,
        "bridge": sha256(BRIDGE), "machine": metrics.machine(), "versions": metrics.versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "git": metrics.git_state(),
    }, indent=1) + "\n")
    for skill, row in sorted(skills.items(), key=lambda item: item[1]["own_picture"]):
        print(f"{row['own_picture']:6.2f} {row['another_picture']:6.2f}  {skill}")
    print(f"mean {mean} -> {out}")


if __name__ == "__main__":
    typer.run(main)
