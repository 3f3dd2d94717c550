"""What surrounds the lessons: exercises that check themselves, quizzes, the glossary, students' copies, the site."""

from __future__ import annotations

import re

import nbformat
import pytest

from mmlora.lessons import check, quiz
from mmlora.lessons.exercises import LessonError, exercises, lesson, lessons, verdict
from mmlora.lessons.quizzes import Question, as_text, buttons, marked
from mmlora.paths import NOTEBOOKS, PACKAGE
from tools import colab, site, student

TERM = re.compile(r"^\| ([^|]+?) \| [^|]+ \|$", re.MULTILINE)
GLOSSARY = PACKAGE.parent / "docs" / "glossary.md"
LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
QUESTIONS = (Question("Two?", ("1", "2"), 1, "One and one."), Question("Three?", ("3", "4", "5"), 0, "Two and one."))


# -- exercises ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "right", "wrong", "hint"),
    [
        ("00-1", 152_640, 2_442_240, "of rank 16"),
        ("00-2", 18, 12, "chance itself"),
        ("00-2", 18, 37.5, "how many problems"),
        ("00-3", 20.8, 97.9, "really another problem's"),
        ("00-3", 20.8, 0.2, "in percent"),
        ("04-2", {"rank": 4, "first_layer": 25, "targets": ["q_proj", "v_proj"]}, {"rnk": 4}, "did you mean 'rank'"),
        ("04-2", {"rank": 4, "first_layer": 25, "targets": ["q_proj", "v_proj"]},
         {"rank": 4, "first_layer": 25, "targets": ["q_proj", "v_proj"], "seed": 1}, "seed was not asked for"),
        ("04-3", 38_400, 7_680, "one layer"),
        ("05-1", 870, 220, "eight points"),
        ("05-2", 0.1114, 0.0557, "one direction"),
        ("09-1", 4.159, 6.0, "bits"),
        ("09-2", 12_288, 8_192, "out_proj as well"),
    ],
)  # fmt: skip
def test_an_exercise_tells_right_from_wrong_and_says_why(name, right, wrong, hint):
    assert verdict(name, right).state == "right" and verdict(name, right).words == exercises(name[:2])[name].why
    refused = verdict(name, wrong)
    assert refused.state == "wrong" and hint in refused.words and exercises(name[:2])[name].hint in refused.words


@pytest.mark.parametrize("name", [name for number in lessons() for name in exercises(number)])
@pytest.mark.parametrize("answer", [None, "no idea", -1, [], lambda: None])
def test_nonsense_is_wrong_and_never_a_crash(name, answer):
    assert verdict(name, answer).state == "wrong"
    assert verdict(name, ...).state == "open"


def test_check_prints_one_line(capsys):
    check("00-1", ...)
    check("00-1", 152_640)
    check("00-1", 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:9].split()[1] for line in lines] == ["○", "✔", "✘"]


@pytest.mark.parametrize("name", ["00-9", "0-1", "99-1", "first"])
def test_an_unknown_exercise_is_named_with_its_neighbours(name):
    with pytest.raises(LessonError, match=f"no exercise is called '{name}'.* there are 00-1"):
        check(name, 1)


# -- quizzes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", lessons())
def test_a_quiz_can_be_answered(number, capsys):
    questions = lesson(number).QUIZ
    assert 3 <= len(questions) <= 5
    assert all(len(q.options) >= 3 and q.options[q.right] and q.why for q in questions)
    assert len({q.right for q in questions}) > 1, "always the same letter"
    quiz(number, "".join("abcdef"[q.right] for q in questions))
    assert f"{len(questions)} of {len(questions)} right" in capsys.readouterr().out


def test_answers_are_marked_one_by_one():
    assert marked(QUESTIONS, "BB").splitlines() == ["1. ✔ Right. One and one.", "2. ✘ No. Two and one.", "1 of 2 right"]
    for answers, message in (
        ("a", "1 answers for 2 questions"),
        ("ac1", "3 answers"),
        ("ca", "question 1 has no option 'c'; it has a to b"),
    ):
        with pytest.raises(LessonError, match=message):
            marked(QUESTIONS, answers)


def test_a_quiz_has_buttons_that_answer_and_words_for_those_without(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append(data))
    quiz("00")
    assert "model_id" in shown[0]["application/vnd.jupyter.widget-view+json"]
    assert shown[0]["text/plain"] == as_text("00", lesson("00").QUIZ)
    for question, box in zip(QUESTIONS, buttons(QUESTIONS).children):
        _, radio, said = box.children
        for place, option in enumerate(question.options):
            radio.value = option
            assert said.value == question.judged(place)


def test_without_ipywidgets_the_quiz_is_words(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    quiz("00")
    assert capsys.readouterr().out.strip() == as_text("00", lesson("00").QUIZ)


# -- words ---------------------------------------------------------------------------------------------------------------


def prose(path) -> str:
    """What a lesson tells, below its first cell, which only promises."""
    cells = nbformat.read(path, as_version=4).cells[1:]
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def terms() -> dict[str, re.Pattern]:
    """Every glossary term with the pattern that finds it, and its plural, in prose."""
    names = [
        name for row in TERM.findall(GLOSSARY.read_text(encoding="utf-8")) for name in [row] if row not in ("term",)
    ]
    plain = [re.sub(r"\s*\(.*\)", "", name) for name in names]
    return {name: re.compile(rf"(?<![\w-]){re.escape(name)}s?(?![\w-])", re.IGNORECASE) for name in plain}


def test_the_glossary_names_each_term_once():
    rows = [name for name in TERM.findall(GLOSSARY.read_text(encoding="utf-8")) if name != "term"]
    assert len(rows) == len(terms()) >= 40


@pytest.mark.parametrize("name", terms())
def test_a_term_is_explained_where_it_first_stands(name):
    """In the first lesson that uses it, its first appearance in running prose is in italics, as an explanation is."""
    for path in LESSONS:
        text = re.sub(r"`[^`]*`|\$[^$]*\$|\[[^\]]*\]\([^)]*\)|^#.*$|<!--.*?-->", " ", prose(path), flags=re.MULTILINE)
        if found := terms()[name].search(text):
            italic = re.search(rf"(?<!\*)\*[^*\n]*{re.escape(found[0])}[^*\n]*\*", text)
            near = text[max(0, found.start() - 80) : found.end() + 40]
            assert italic and italic.start() <= found.start(), f"{path.stem}: …{near}…"
            return
    pytest.fail("no lesson uses it; leave it out of the glossary")


# -- copies --------------------------------------------------------------------------------------------------------------


def test_students_copies_have_neither_outputs_nor_solutions(tmp_path):
    folder = tmp_path / "student"
    written = student.copies(folder)
    assert [path.name for path in written] == [path.name for path in LESSONS] and set(folder.rglob("*.ipynb")) == set(
        written
    )
    for path, lesson_ in zip(written, LESSONS):
        copy, whole = nbformat.read(path, as_version=4), nbformat.read(lesson_, as_version=4)
        assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in copy.cells)
        own = [c.source.replace("](../notebooks/solutions/", "](solutions/") for c in copy.cells]
        assert own[1:] == [c.source for c in whole.cells[1:]]
        text = "\n".join(c.source for c in copy.cells if c.cell_type == "markdown")
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
        assert [link for link in links if not (NOTEBOOKS.parent / "student" / link).resolve().is_file() and link not in
                {path.name for path in written}] == []  # fmt: skip
        assert student.LAST_RUN not in copy.cells[0].source and student.YOURS in copy.cells[0].source


def test_copies_with_answers_in_them_are_left_alone(tmp_path):
    (tmp_path / "00_start_here.ipynb").write_text("mine")
    with pytest.raises(student.StudentError, match="is there already, perhaps with somebody's answers; rename it"):
        student.copies(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_the_site_needs_nothing_but_itself(tmp_path):
    pages, outside = site.build(tmp_path / "site"), []
    names = {page.name for page in pages}
    assert {f"{path.stem}.html" for path in LESSONS} | {f"{path.stem}_solutions.html" for path in LESSONS} <= names
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)[^"]+"', text)
        assert not re.search(r"@import|cdnjs|unpkg|jsdelivr", text)
        local = {
            link.partition("#")[0] for link in re.findall(r'href="([^"]*)"', text) if not link.startswith(("http", "#"))
        }
        assert local <= names, local - names
        assert "<!--=" not in text
        for link in re.findall(r'href="([^"]+\.html#[^"]+)"', text):
            there, _, heading = link.partition("#")
            assert f'id="{heading}"' in (tmp_path / "site" / there).read_text(encoding="utf-8"), link
        outside += re.findall(rf'href="{re.escape(colab.repository())}/blob/main/([^"#]+)', text)
    assert outside and [there for there in outside if not (NOTEBOOKS.parent / there).exists()] == []
    start = (tmp_path / "site" / "00_start_here.html").read_text(encoding="utf-8")
    assert "<mfrac><mrow><mi>&#x003B1;</mi></mrow><mrow><mi>r</mi></mrow></mfrac>" in start and r"\frac" not in start
    assert not any("formula0formula" in page.read_text(encoding="utf-8") for page in pages)
