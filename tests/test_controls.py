"""Controls lack exactly what they say they lack."""

from dataclasses import replace

from PIL import Image

from mmlora.evaluation.controls import best_guess, captioned, chance, controls, evenly, reading, swapped
from mmlora.evaluation.scores import Prediction
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


def test_questions_on_one_picture_are_not_swapped_among_themselves():
    again = [problem(name, "balls", colour) for name, colour in (("f", "red"), ("g", "red"), ("h", "blue"))]
    assert [(p.id, p.image.getpixel((0, 0))) for p in swapped(again)] == [
        ("f", (0, 0, 255)), ("g", (0, 0, 255)), ("h", (255, 0, 0))]  # fmt: skip
    assert swapped(again[:2]) == []


def test_a_caption_stands_in_the_pictures_place():
    found = captioned(PROBLEMS)
    assert [(p.id, p.image, p.hint) for p in found][0] == ("a", None, "a red ball.")
    assert found[-1].hint == "a green ball. It rolls." and "e" not in [p.id for p in found]


def test_reading_takes_the_choice_whose_words_are_there():
    texts = dict(
        zip([id(p.image) for p in PROBLEMS[:4]], ["a blue  ball", "the cat sat", "nothing that I know", "a ball, RED"])
    )
    found = reading(PROBLEMS[:4], lambda picture: texts[id(picture)])
    assert [said.choice for said in found] == [1, 2, None, 0]
    assert [said.correct for said in found] == [False, False, False, True]
    assert found[0].text == "a blue  ball"


def test_all_controls_are_asked_the_same_problems():
    asked = []

    def answer(problems):
        asked.append(problems)
        return [Prediction(p.id, 0, True, p.hint) for p in problems]

    found = controls(PROBLEMS, answer, lambda picture: "a cat", 3)
    assert list(found) == ["swapped", "captions_as_text", "reading"]
    assert [[p.id for p in each] for each in asked] == [["a", "c"], ["a", "b", "c"]], "a lone picture has no other"
    assert [p.id for p in found["reading"].problems] == ["a", "b", "c"]
    assert [said.choice for said in found["reading"].predictions] == [2, 2, 2]
    assert list(controls(PROBLEMS, answer, None)) == ["swapped", "captions_as_text"]
    assert [len(each.problems) for each in controls(PROBLEMS, answer, None).values()] == [3, 4]
    assert controls(PROBLEMS[4:], answer, lambda picture: "") == {}


def test_a_part_is_taken_from_the_whole_list():
    problems = [replace(PROBLEMS[0], id=str(i)) for i in range(10)]
    assert [p.id for p in evenly(problems, 4)] == ["0", "2", "5", "7"]
    assert evenly(problems, None) == evenly(problems, 10) == evenly(problems, 99) == problems


def test_the_best_guess_of_a_skill_is_the_choice_most_often_right_when_it_was_offered():
    def offered(*choices, skill="balls", answer=0):
        return replace(PROBLEMS[0], choices=choices, answer=answer, skill=skill)

    train = [offered("red", "blue"), offered("red", "green", answer=1), offered("blue", "green", answer=1)]
    train += [offered("green", "red", skill="cats", answer=1)]
    asked = [offered("red", "green"), offered("blue", "red"), offered("red", "green", skill="cats"), offered("x", "y")]
    assert [said.text for said in best_guess(asked, train)] == ["green", "red", "red", "x"]


def test_chance_is_one_in_as_many_as_there_are_choices():
    found = chance([PROBLEMS[0], replace(PROBLEMS[1], choices=("a", "b")), replace(PROBLEMS[4], choices=("a", "b"))])
    assert found["by_skill"] == {"balls": 41.67, "cats": 50.0} and found["IMG"] == 41.67 and found["avg"] == 44.44
    assert found["LAN"] is None
