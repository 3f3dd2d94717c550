"""MiniSQA: a generated stand-in for ScienceQA, with its fields, its categories and its most frequent skills."""

from mmlora.minisqa import (  # noqa: F401
    biology,
    chemistry,
    earth,
    economics,
    geography,
    grammar,
    graphs,
    physics,
    vocabulary,
)
from mmlora.minisqa.core import SKILLS, SPLIT_SIZES, Draft, UnknownSkill, generate

__all__ = ["SKILLS", "SPLIT_SIZES", "Draft", "UnknownSkill", "generate"]
