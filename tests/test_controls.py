"""Controls lack exactly what they say they lack."""

from dataclasses import replace

from PIL import Image

from mmlora.evaluation.controls import captioned, reading, swapped
from mmlora.problems.record import Problem


def problem(id, skill, colour, caption="", hint=""):
    picture = None if colour is None else Image.new("RGB", (4, 4), colour)
    return Problem(
        id, "Which one?", ("a red ball", "a blue ball", "a cat"), 0, picture, hint, skill=skill, caption=caption
    )


PROBLEMS = [
    problem("a", "balls", "red", "a red ball"),
    problem("b", "cats", "black", "a cat"),
    problem("c", "balls", "blue", "a blue ball"),
    problem("d", "balls", "green", "a green ball", "It rolls."),
    problem("e", "balls", None),
]


def test_swapped_pictures_are_of_another_problem_of_the_skill():
    for seed in range(5):
        found = swapped(PROBLEMS, seed)
        assert [p.id for p in found] == ["a", "c", "d"], "a lone picture has no other, a text no picture"
        own = {p.id: p for p in PROBLEMS}
        pictures = {id(p.image): p.id for p in PROBLEMS if p.image is not None}
        drawn_by = {p.id: pictures[id(p.image)] for p in found}
        assert set(drawn_by.values()) == set(drawn_by) and all(mine != theirs for mine, theirs in drawn_by.items())
        assert all(p.caption == own[drawn_by[p.id]].caption for p in found)
        assert all(replace(p, image=None, caption="") == replace(own[p.id], image=None, caption="") for p in found)
    assert [id(p.image) for p in swapped(PROBLEMS, 1)] == [id(p.image) for p in swapped(PROBLEMS, 1)]


def test_a_caption_stands_in_the_pictures_place():
    found = captioned(PROBLEMS)
    assert [(p.id, p.image, p.hint) for p in found][0] == ("a", None, "a red ball.")
    assert found[-1].hint == "a green ball. It rolls." and "e" not in [p.id for p in found]


def test_reading_takes_the_choice_whose_words_are_there():
    texts = {"a": "a blue  ball", "b": "the cat sat", "c": "nothing that I know", "d": "a ball, RED"}
    found = reading(PROBLEMS[:4], lambda p: texts[p.id])
    assert [said.choice for said in found] == [1, 2, None, 0]
    assert [said.correct for said in found] == [False, False, False, True]
    assert found[0].text == "a blue  ball"
