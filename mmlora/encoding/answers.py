"""From what a model said to the choice that it named, or None: our own rule, ScienceQA's official one, lmms-eval's."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmlora.problems.record import LETTERS


def parse_official(text: str, choices: Sequence[str]) -> int | None:
    """The choice whose letter the official scorer reads: a text that says "The answer is X." exactly once; else None."""
    found = re.findall(r"The answer is ([A-Z]).", text)
    return _lettered(found[0], choices) if len(found) == 1 else None


def parse_lmms(text: str, choices: Sequence[str]) -> int | None:
    """The choice that lmms-eval counts: a text that is a letter, or begins with a letter and a full stop; else None."""
    return _lettered(text[0], choices) if len(text) == 1 or text[1:2] == "." else None


def _lettered(letter: str, choices: Sequence[str]) -> int | None:
    letters = LETTERS[: len(choices)]
    return letters.index(letter) if letter in letters else None


def parse_answer(text: str, choices: tuple[str, ...]) -> int | None:
    """The choice that the last "The answer is …" names, or None when it names none of them.

    What it names ends at a full stop, at a line's end or with the text; as a choice may hold full stops itself, the
    longest one named counts. Case and full stops matter only between choices that differ in nothing else. Its own letter
    may stand before a choice, as in the prompt: "(C) mammal".
    """
    *_, tail = re.split(r"\bthe answer is\b:?", text, flags=re.IGNORECASE)
    if tail == text:
        return None
    for end in reversed(list(re.finditer(r"\.(?=\s)|\n|$", tail))):
        said = tail[: end.start()]
        named = [
            i
            for i, choice in enumerate(choices)
            if _loosely(said) in (_loosely(choice), _loosely(f"({LETTERS[i]}) {choice}"))
        ]
        if len(named) > 1:
            named = [i for i in named if _strictly(choices[i]) == _strictly(said)]
        if len(named) == 1:
            return named[0]
    return None


def _strictly(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def _loosely(text: str) -> str:
    return " ".join(text.lower().replace(".", " ").split())
