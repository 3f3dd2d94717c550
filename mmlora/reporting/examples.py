"""A few answered problems kept beside a run's figures, pictures included, so that its report needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from mmlora.evaluation.scores import Prediction, by_id
from mmlora.files import refusals, write_whole
from mmlora.problems.pictures import decoded, encoded
from mmlora.problems.record import Problem

FILE = "examples.jsonl"


@dataclass(frozen=True)
class Example:
    """A problem, its answer, and perhaps what the answer depends on: `occlusion.occlusion`, (grid, grid) float64."""

    problem: Problem
    prediction: Prediction
    occlusion: np.ndarray | None = None


def keep_examples(
    folder: str | Path,
    problems: Sequence[Problem],
    predictions: Sequence[Prediction],
    maps: Mapping[str, np.ndarray] | None = None,
    n: int = 12,
) -> Path:
    """Write `examples.jsonl`: up to `n` wrong answers, taken evenly from the whole list so that no skill fills the
    page, and every problem that `maps` (occlusion maps by problem id) has. Returns its path.
    """
    maps = maps or {}
    pairs = by_id(problems, predictions)
    wrong = [pair for pair in pairs if not pair[1].correct]
    kept = wrong[:: max(1, -(-len(wrong) // n))]
    kept += [(p, q) for p, q in pairs if p.id in maps and p.id not in {k.id for k, _ in kept}]
    path = Path(folder) / FILE
    lines = (json.dumps(_record(Example(p, q, maps.get(p.id))), ensure_ascii=False) + "\n" for p, q in kept)
    with refusals(path):
        write_whole(path, "".join(lines))
    return path


def load_examples(folder: str | Path) -> list[Example]:
    """What `keep_examples` kept; nothing where it was not called."""
    path = Path(folder) / FILE
    if not path.is_file():
        return []
    return [_example(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def png(image: Image.Image) -> str:
    """The picture as a file in base64: its own, or a PNG."""
    return base64.b64encode(encoded(image)).decode()


def _record(example: Example) -> dict:
    image = example.problem.image
    return {
        "problem": asdict(replace(example.problem, image=None)),
        "image": image and png(image),
        "prediction": asdict(example.prediction),
        "occlusion": None if example.occlusion is None else np.round(example.occlusion, 4).tolist(),
    }


def _example(record: dict) -> Example:
    image = record["image"] and decoded(base64.b64decode(record["image"]))
    problem = record["problem"] | {"choices": tuple(record["problem"]["choices"]), "image": image}
    prediction = record["prediction"] | {"scores": tuple(record["prediction"]["scores"])}
    occlusion = record["occlusion"] and np.array(record["occlusion"])
    return Example(Problem(**problem), Prediction(**prediction), occlusion)
