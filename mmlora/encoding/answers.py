"""From what a model said to the choice that it named, or None: our own rule, ScienceQA's official one, lmms-eval's."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from mmlora.problems.record import LETTERS

MARK = re.compile(r"\bthe answer is\b:?", re.IGNORECASE)
ENDS = re.compile(r"\.(?=\s)|\n|$")


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


def parse_answer(text: str, choices: Sequence[str]) -> int | None:
    """The choice that the last "The answer is …" names, or None when it names none of them, or several.

    The name ends at a full stop, at the end of its line or of the text. A choice may itself contain full stops, so the
    longest match counts; it may also contain "the answer is", which is then not read as the start of another answer. Case,
    white space, full stops and Unicode forms are ignored unless choices differ in nothing else, so the taught sentence
    always names its own choice. A choice may follow its own letter, as in the prompt: "(C) mammal".
    """
    named, past = None, 0
    for mark in MARK.finditer(text):
        if mark.start() >= past:
            named, past = _named(text, mark.end(), choices)
    return named


def _named(text: str, start: int, choices: Sequence[str]) -> tuple[int | None, int]:
    """The choice that the text names from `start` on, and where its name ends; None and `start` where it names none."""
    loose = [(_loosely(choice), _loosely(f"({letter}) {choice}")) for letter, choice in zip(LETTERS, choices)]
    for end in reversed(list(ENDS.finditer(text, start))):
        said = text[start : end.start()]
        heard = _loosely(said)
        found = [i for i, ways in enumerate(loose) if heard in ways and said.strip()]
        if len(found) > 1:
            found = _closest(said if end[0] == "." else said.removesuffix("."), choices, found)
        if len(found) == 1:
            return found[0], end.start()
    return None, start


def _closest(said: str, choices: Sequence[str], among: Sequence[int]) -> list[int]:
    """Those of `among` that equal `said` by the strictest comparison by which any does; one leading space is dropped."""
    said = said.removeprefix(" ")
    for strictly in STRICTLY:
        for lettered in ("", "({}) "):
            found = [i for i in among if strictly(lettered.format(LETTERS[i]) + choices[i]) == strictly(said)]
            if found:
                return found
    return []


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _spaced(text: str) -> str:
    return " ".join(_composed(text).split())


def _loosely(text: str) -> str:
    return " ".join(_composed(text).lower().replace(".", " ").split())


#: Comparisons of two texts, from the strictest to the loosest that still distinguishes case and inner full stops.
STRICTLY = (str, _composed, _spaced, lambda text: _spaced(text).rstrip("."))
