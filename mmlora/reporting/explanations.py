"""Where an answer went wrong: in reading or after it, and at which word. Nothing here needs a model."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from mmlora.evaluation.controls import words
from mmlora.evaluation.scores import Prediction
from mmlora.problems.record import LETTERS, Problem

#: The places where a model's text can first leave the reference, in the order of reading.
KINDS = ("in the first sentence", "later, before the answer", "only in the answer")
#: Where a wrong answer comes from: the eye, the words after it, or nobody can tell.
FAULTS = ("misread", "misreasoned", "no picture", "no caption")


def first_departure(problem: Problem, prediction: Prediction) -> str:
    """The first place, one of `KINDS`, where `prediction.text` leaves `problem.solution`; white space does not count.

    An empty text leaves it in the first sentence. A problem without a solution has nothing to leave before the answer.
    """
    reference, said = _spaced(problem.solution), _explanation(problem, prediction)
    if not reference:
        return KINDS[2]
    if _begins(said, reference):
        rest = said[len(reference) :].lstrip().lower()
        return KINDS[2] if not rest or _begins(rest, "the answer is") else KINDS[1]
    first, *_ = re.split(r"(?<=[.!?]) ", reference)
    return KINDS[1] if _begins(said, first) else KINDS[0]


def fault(problem: Problem, read: str) -> str:
    """Of a wrong answer, one of `FAULTS`: *misread* where `read` lacks words of the true caption, or their order.

    `read` is what the model read in the picture, in words (`inference.reading.reader`); words besides do no harm.
    """
    if problem.image is None:
        return FAULTS[2]
    if not problem.caption:
        return FAULTS[3]
    rest = iter(words(read))
    return FAULTS[1] if all(word in rest for word in words(problem.caption)) else FAULTS[0]


def _explanation(problem: Problem, prediction: Prediction) -> str:
    """The text without what some formats say before the explanation: the answer, "BECAUSE:" and the lecture."""
    names = "|".join(re.escape(_spaced(name)) for name in [*sorted(problem.choices, key=len, reverse=True), *LETTERS])
    said = re.sub(rf"^The answer is (?:{names})\. (?:BECAUSE: )?", "", _spaced(prediction.text))
    lecture = _spaced(problem.lecture)
    return said[len(lecture) :].lstrip() if lecture and _begins(said, lecture) else said


def _begins(text: str, start: str) -> bool:
    return f"{text} ".startswith(f"{start} ")


def _spaced(text: str) -> str:
    return " ".join(text.split())


def marked(said: str, reference: str) -> str:
    """Both texts as one line of markdown: ~~struck out~~ what only `said` has, **bold** what only `reference` has.

    What markdown or a notebook's mathematics would take for a mark of their own is escaped.
    """
    ours, theirs, parts = _escaped(said), _escaped(reference), []
    for kind, a, b, c, d in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if kind == "equal":
            parts += ours[a:b]
            continue
        parts += [f"~~{' '.join(ours[a:b])}~~"] * (a < b) + [f"**{' '.join(theirs[c:d])}**"] * (c < d)
    return re.sub(r"^(\d*)([-+.)])", r"\1\\\2", " ".join(parts))  # a line that begins so would be a list


def _escaped(text: str) -> list[str]:
    """The words of `text`, each safe in markdown."""
    safe = re.sub(r"([`*_~|\[\]<>#$&])", r"\\\1", text.replace("\\", "\0"))
    return safe.replace("\0", "&#92;").split()  # a doubled backslash before a bracket would begin mathematics
