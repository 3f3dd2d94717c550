"""What pictures show, in words: what a connector can learn to read from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from PIL import Image

from mmlora import guests
from mmlora.problems.pictures import digest
from mmlora.problems.record import Problem


def captioned(problems: Sequence[Problem]) -> list[tuple[Image.Image, str]]:
    """Each picture with its caption, or with the first sentence of the solution where there is none; others are left out.

    Several questions on a picture with one caption give it once: some pictures are held out to measure the reading, and none of
    them may be among those that are learned.
    """
    found: dict[tuple[bytes, str], tuple[Image.Image, str]] = {}
    for problem in problems:
        text = problem.caption or re.split(r"(?<=[.!?])\s", problem.solution.strip())[0]
        if problem.image is not None and text:
            found.setdefault((digest(problem.image), text), (problem.image, text))
    return list(found.values())


def further_captioned(data: str) -> Iterable[tuple[Image.Image, str]]:
    """Pictures of the same kind without end, where the data is a guest's that draws them; none of any other."""
    package = guests.guest("problems", data)
    return package.captioned() if hasattr(package, "captioned") else ()
