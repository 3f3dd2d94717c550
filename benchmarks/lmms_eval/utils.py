"""What lmms-eval calls for each row of the data set: mmlora's prompt, and both of its ways to read an answer."""

from __future__ import annotations

from mmlora.encoding.answers import parse_answer, parse_official
from mmlora.encoding.prompts import prompt_text
from mmlora.problems.pictures import rgb
from mmlora.problems.record import Problem


def problem(doc: dict) -> Problem:
    return Problem("", doc["question"], tuple(doc["choices"]), doc["answer"], hint=doc["hint"] or "")


def visual(doc: dict) -> list:
    return [] if doc["image"] is None else [rgb(doc["image"])]


def prompt(doc: dict, lmms_eval_specific_kwargs=None) -> str:
    return prompt_text(problem(doc))


def target(doc: dict) -> str:
    return f"The answer is {problem(doc).answer_text}."


def results(doc: dict, said: list[str]) -> dict[str, float]:
    """Right is an answer that names the choice by its text or, as the official code wants it, by its letter."""
    choices = problem(doc).choices
    named = parse_answer(said[0], choices)
    right = float((parse_official(said[0], choices) if named is None else named) == doc["answer"])
    return {"accuracy": right} | ({"image_accuracy": right} if doc["image"] is not None else {})
