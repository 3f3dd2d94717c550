"""MiniSQA: a generated stand-in for ScienceQA, with its fields, its categories and its most frequent skills."""

from mmlora.minisqa import biology, chemistry, earth, economics, geography, grammar, physics, vocabulary  # noqa: F401
from mmlora.minisqa.core import SKILLS, SPLIT_SIZES, Draft, UnknownSkill, generate

__all__ = ["SKILLS", "SPLIT_SIZES", "Draft", "UnknownSkill", "generate"]
