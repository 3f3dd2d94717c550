"""MiniSQA: a generated stand-in for ScienceQA, with its fields, its categories and its most frequent skills.

A guest: `load_problems("minisqa")` finds it by its entry point (see `mmlora.guests`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from PIL import Image

from mmlora.minisqa import skills  # noqa: F401 - importing a skill registers it
from mmlora.minisqa.core import SKILLS, SPLIT_SIZES, UNTRAINED, Draft, UnknownSkill, generate
from mmlora.problems.record import Problem

__all__ = [
    "LICENCE", "SKILLS", "SPLIT_SIZES", "UNTRAINED", "Draft", "UnknownSkill", "captioned", "generate", "load", "pictured",
]  # fmt: skip

LICENCE = "apache-2.0"
BLOCK = 1000  # pictures that are drawn under one seed
FURTHER = 10_000_019  # seeds of further pictures: multiples of this, far from those that people use


def load(split: str, limit: int | None) -> Iterator[Problem]:
    """Yield the problems of a split, built first if need be; a split of `limit` problems is balanced in itself."""
    from mmlora.minisqa import dataset
    from mmlora.problems import parquet

    sizes = None if limit is None else {split: limit}
    folder = dataset.home() if limit is None else dataset.home() / f"{split}-{limit}"
    return parquet.read([dataset.build(folder, sizes=sizes) / f"{split}.parquet"], split, own=True)


def pictured() -> list[str]:
    """The skills whose problems have a picture."""
    return [name for name in SKILLS if next(generate("train", 1, skills=[name])).image is not None]


def captioned() -> Iterator[tuple[Image.Image, str]]:
    """Pictures of the trained skills with their captions, without end: none of a test picture, none of an untrained skill."""
    seen = [skill for skill in pictured() if skill not in UNTRAINED]
    for block in count(1):
        for problem in generate("train", BLOCK, seed=FURTHER * block, skills=seen):
            if problem.image is not None:
                yield problem.image, problem.caption
