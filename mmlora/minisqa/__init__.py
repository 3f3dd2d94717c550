"""MiniSQA: a generated stand-in for ScienceQA, with its fields, its categories and its most frequent skills.

A guest: `load_problems("minisqa")` finds it by its entry point (see `mmlora.guests`).
"""

from __future__ import annotations

from collections.abc import Iterator

from mmlora.minisqa import skills  # noqa: F401 - importing a skill registers it
from mmlora.minisqa.core import SKILLS, SPLIT_SIZES, UNTRAINED, Draft, UnknownSkill, generate
from mmlora.problems.record import Problem

__all__ = ["LICENCE", "SKILLS", "SPLIT_SIZES", "UNTRAINED", "Draft", "UnknownSkill", "generate", "load"]

LICENCE = "apache-2.0"


def load(split: str, limit: int | None) -> Iterator[Problem]:
    """Yield the problems of a split, built first if need be; a split of `limit` problems is balanced in itself."""
    from mmlora.minisqa import dataset
    from mmlora.problems import parquet

    sizes = None if limit is None else {split: limit}
    folder = dataset.home() if limit is None else dataset.home() / f"{split}-{limit}"
    return parquet.read([dataset.build(folder, sizes=sizes) / f"{split}.parquet"], split)
