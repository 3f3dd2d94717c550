"""Where a text leaves the reference, and that markdown shows both texts as they are."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from PIL import Image

from mmlora.evaluation.scores import Prediction
from mmlora.problems.record import Problem
from mmlora.reporting.explanations import FAULTS, KINDS, fault, first_departure, marked

FIRST, LATER, ANSWER = KINDS
MISREAD, MISREASONED, *_ = FAULTS
SOLUTION = "The map shows Ohio.  It is\nin the north. So it is cold."


def departure(text: str, solution: str = SOLUTION, lecture: str = "") -> str:
    problem = Problem("p", "Is it cold?", ("cold", "cold. Or hot"), 0, solution=solution, lecture=lecture)
    return first_departure(problem, Prediction("p", 1, False, text))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("The map shows Iowa. It is in the north. So it is cold. The answer is cold.", FIRST),
        ("The map shows Ohio and Iowa. It is in the north. So it is cold. The answer is cold.", FIRST),
        ("The map", FIRST),
        ("", FIRST),
        ("The answer is cold.", FIRST),
        ("The map shows Ohio. It is in the south. So it is cold. The answer is cold.", LATER),
        ("The map shows Ohio. The answer is cold.", LATER),
        ("The map shows Ohio. It is in the north. So it is cold. Or hot. The answer is cold.", LATER),
        ("The map shows Ohio. It is in the north. So it is colder. The answer is cold.", LATER),
        ("The map shows Ohio. It is in the north. So it is cold. The answer is hot.", ANSWER),
        ("The map shows Ohio. It is in the north. So it is cold.", ANSWER),
    ],
)
def test_the_first_departure_is_the_first(text, kind):
    assert departure(text) == kind


def test_a_problem_without_a_solution_can_only_differ_in_the_answer():
    assert departure("Something else. The answer is cold.", "") == departure("", " \n") == ANSWER


def test_a_solution_without_a_full_stop_can_be_followed():
    assert departure("It is blue The answer is cold.", "It is blue") == ANSWER
    assert departure("It is bluer The answer is cold.", "It is blue") == FIRST
    assert departure("It is green The answer is cold.", "It is blue") == FIRST


def test_what_a_format_says_before_the_explanation_is_no_departure():
    same, other = "The map shows Ohio. It is in the north. So it is cold.", "The map shows Ohio. It is far."
    for before in (
        "The answer is cold. Or hot. ",
        "The answer is B. BECAUSE: ",
        "The answer is A. BECAUSE: Maps show. ",
    ):
        assert departure(before + same, lecture="Maps  show.") == ANSWER
        assert departure(before + other, lecture="Maps  show.") == LATER
    assert departure(f"Maps show. {same} The answer is A.", lecture="Maps show.") == ANSWER
    assert departure("The answer is lava. " + same) == FIRST


def test_marks_show_what_each_text_has_alone():
    assert marked("it is red. The end", "it is green and blue. The end") == "it is ~~red.~~ **green and blue.** The end"
    assert marked("one two", "one") == "one ~~two~~"
    assert marked("one", "one two") == "one **two**"
    assert marked("", "all of it") == "**all of it**"
    assert marked("same \n words", "same words") == "same words"


def test_a_long_text_keeps_its_frequent_words():
    words = "one two " * 150
    assert marked(f"no {words}", f"{words} end") == f"~~no~~ {words}**end**"


@pytest.mark.parametrize(
    "text",
    [
        "2 * 3 * 4 is snake_case_name and a_b",
        "~~no~~ **no** `no` ~no~",
        "<b>bold</b> &amp; [a](b) # c | d",
        r"costs $5 or $6, \(x\) and \frac",
        "- 5 degrees",
        "1. first",
        "12) twelfth",
        "# heading",
        "> quote",
        "+ plus",
        "-20°C",
        "...",
    ],
)
def test_markdown_leaves_the_words_as_they_are(text):
    """Rendered as a notebook does, and with the marks away, both texts read as they did."""
    html = markdown2html_mistune(f"- {marked(f'{text} a', f'{text} b')}")
    assert html.count("<li>") == 1 and html.count("<strong>b</strong>") == 1 and html.count("<del>a</del>") == 1
    assert unescape(re.sub(r"<.*?>", "", html)).split() == f"{text} a b".split()
    struck = markdown2html_mistune(f"- {marked(f'same {text}', 'same')}")
    assert unescape(struck[struck.index("<del>") + 5 : struck.index("</del>")]) == text


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        ("Two magnets, left north: right SOUTH", MISREASONED),
        ("a picture of two magnets left north right south again", MISREASONED),
        ("Two magnets, left south, right north", MISREAD),  # the same words in another order
        ("Two magnets, left north", MISREAD),
        ("", MISREAD),
    ],
)
def test_a_wrong_answer_was_misread_where_the_captions_words_are_not_read(read, kind):
    shown = Problem("p", "Do they attract?", ("yes", "no"), 0, Image.new("RGB", (4, 4)), caption="Two magnets, left north, right south.")  # fmt: skip
    assert fault(shown, read) == kind
    assert fault(replace(shown, image=None), read) == "no picture"
    assert fault(replace(shown, caption=""), read) == "no caption"
