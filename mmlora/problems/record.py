"""The record that everything in mmlora passes around: one ScienceQA problem.

ScienceQA (Lu et al. 2022, arXiv 2209.09513) describes a problem with 13 fields. `Problem` holds them under
their own names, plus the `id` that the hub data set lacks, a `caption`, the picture said in words, and a `wording`:
whether training asks in this sentence too.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, replace

from PIL import Image

from mmlora.errors import MMLoraError

LETTERS = string.ascii_uppercase  # ScienceQA has two to five choices, own folders up to 26
SUBJECTS = ("natural science", "social science", "language science")
#: ScienceQA's nine columns: the three subjects, three kinds of context, two grade bands, all.
CATEGORIES = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")
SHOWN = 80  # how many characters of an id a message shows
WORDINGS = ("", "seen", "unseen")  # nobody said; the sentence is asked in training too; it is not


class ProblemError(MMLoraError, ValueError):
    """A problem that cannot be used; the message names its id and says what to do."""


def called(name: object, most: int = SHOWN) -> str:
    """An id or a path as a message shows it: short, and on one line."""
    text = str(name)
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= most else f"{shown[:most]}…"


@dataclass(frozen=True)
class Problem:
    """One multiple-choice problem. `answer` is an index into `choices`; `image` is RGB or None."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    image: Image.Image | None = None
    hint: str = ""
    task: str = "closed choice"
    grade: str = "grade1"
    subject: str = "natural science"
    topic: str = ""
    category: str = ""
    skill: str = ""
    lecture: str = ""
    solution: str = ""
    caption: str = ""
    wording: str = ""

    def __post_init__(self):
        name = called(self.id)
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise ProblemError(f"problem {name}: has {len(self.choices)} choices; give 2 to {len(LETTERS)}")
        if not 0 <= self.answer < len(self.choices):
            raise ProblemError(f"problem {name}: answer {self.answer} is no index into its {len(self.choices)} choices")
        if self.subject not in SUBJECTS:
            raise ProblemError(f"problem {name}: subject {self.subject!r:.60} is none of {', '.join(SUBJECTS)}")
        if self.wording not in WORDINGS:
            raise ProblemError(f"problem {name}: wording {self.wording!r:.60} is none of seen, unseen; or leave it out")
        if not re.fullmatch(r"(grade)?[0-9]{1,4}", self.grade):  # isdigit would let ² through, which is no number
            raise ProblemError(f"problem {name}: grade {self.grade!r:.60} should read like 'grade4'")

    @property
    def answer_text(self) -> str:
        return self.choices[self.answer]

    @property
    def categories(self) -> tuple[str, ...]:
        """The columns of ScienceQA's table that this problem counts in (TXT and IMG may overlap)."""
        columns = [{"natural": "NAT", "social": "SOC", "language": "LAN"}[self.subject.split()[0]]]
        if self.hint:
            columns.append("TXT")
        if self.image is not None:
            columns.append("IMG")
        if not self.hint and self.image is None:
            columns.append("NO")
        columns.append("G1-6" if int(self.grade.removeprefix("grade")) <= 6 else "G7-12")
        return (*columns, "Avg")

    def reordered(self, order: list[int] | tuple[int, ...]) -> Problem:
        """The same problem with its choices in another order; `answer` follows its text."""
        return replace(self, choices=tuple(self.choices[i] for i in order), answer=list(order).index(self.answer))

    def blanked(self) -> Problem:
        """The same problem with a plain grey picture of the same size: what can be answered without looking?"""
        if self.image is None:
            return self
        return replace(self, image=Image.new("RGB", self.image.size, (128, 128, 128)))
