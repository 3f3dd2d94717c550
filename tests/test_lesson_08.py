"""Lesson 08's signs are what their rows say, and its exercises are judged by what the package itself does."""

from __future__ import annotations

import random

import pytest
from PIL import ImageColor

from mmlora import load_problems
from mmlora.lessons import lesson_08, signs
from mmlora.lessons.exercises import exercises
from mmlora.problems.rows import DataError


def test_signs_are_a_folder_of_problems_and_show_what_they_are_said_to(tmp_path):
    signs.write(tmp_path, train=24, test=9)
    train, test = (load_problems(str(tmp_path), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (24, 9) and {p.question for p in test} == set(signs.QUESTIONS)
    for problem in train + test:
        colour, shape = problem.caption.split()[1:3]
        assert problem.answer_text in problem.caption and len(problem.choices) == 4
        seen = dict((rgb, count) for count, rgb in problem.image.getcolors(256**2))
        painted = {name: seen.get(ImageColor.getrgb(code), 0) for name, code in signs.COLOURS.items()}
        assert max(painted, key=painted.get) == colour and shape in signs.SHAPES
    assert {p.image.tobytes() for p in train}.isdisjoint(p.image.tobytes() for p in test)


@pytest.mark.parametrize("row", "ABCD")
def test_the_rows_that_the_exercise_calls_refused_are_refused(tmp_path, row):
    signs.sign(random.Random(0), "red", "round", "a bar").save(tmp_path / "one.png")
    answer, image = {"A": ("B", "one.png"), "B": ("red", ""), "C": ("2", "one.png"), "D": ("A", "../one.png")}[row]
    (tmp_path / "train.csv").write_text(f"question,choice_a,choice_b,answer,image\nWhich?,red,blue,{answer},{image}\n")
    if row in lesson_08.REFUSED:
        with pytest.raises(DataError, match="line 2"):
            load_problems(str(tmp_path), "train")
    else:
        assert len(load_problems(str(tmp_path), "train")) == 1


def test_wrong_answers_are_told_why():
    asked = exercises("08")
    assert asked["08-1"].judge("dc") is True and "can be read" in asked["08-1"].judge("AC")
    assert asked["08-2"].judge(["Mark", "shape"]) is True and "tell the colour" in asked["08-2"].judge(["colour"])
