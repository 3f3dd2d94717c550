"""MiniSQA is reproducible, disjoint, honest and well-formed, and its files survive the disk."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image as ImageFeature
from datasets import load_dataset
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

from mmlora.minisqa import SKILLS, UNTRAINED, UnknownSkill, core, dataset, generate, wordings
from mmlora.minisqa.dataset import build
from mmlora.minisqa.wordings import WORDINGS, reworded
from mmlora.paths import DATA, PACKAGE
from mmlora.problems.load import load_problems
from mmlora.problems.record import SUBJECTS, Problem
from mmlora.problems.rows import DataError
from tools.honesty import text_only

SIZES = {"train": 240, "validation": 60, "test": 120, "transfer": 24}
FIELDS = ["image", "question", "choices", "answer", "hint", "task", "grade", "subject", "topic", "category", "skill",
          "lecture", "solution"]  # fmt: skip


def marks(problem: Problem) -> str:
    """Everything a problem says and shows, as one hash."""
    pixels = problem.image.tobytes() if problem.image else b""
    return hashlib.sha256(repr(replace(problem, image=None)).encode() + pixels).hexdigest()


def text(problem: Problem) -> tuple:
    return problem.question, problem.hint, tuple(sorted(problem.choices))


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Problem]]:
    return {split: list(generate(split, size)) for split, size in SIZES.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("minisqa"), sizes=SIZES)


@pytest.fixture(scope="module")
def image_problems():
    """Train and test problems that have pictures, without them: (3,000, 1,500)."""
    with_image = [
        name for name in SKILLS if name not in UNTRAINED and next(generate("train", 1, skills=[name])).image is not None
    ]
    return tuple([replace(problem, image=None) for problem in generate(split, count, skills=with_image)]
                 for split, count in (("train", 3000), ("test", 1500)))  # fmt: skip


def test_the_same_seed_gives_the_same_problems_in_another_process(splits):
    program = "from test_minisqa import marks, generate; print(*[marks(p) for p in generate('test', 120)])"
    command, here = [sys.executable, "-c", program], Path(__file__).parent
    run = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [marks(problem) for problem in splits["test"]]
    assert marks(next(generate("test", 1, seed=1))) != marks(next(generate("test", 1)))


def test_no_problem_is_there_twice(splits):
    everything = [problem for problems in splits.values() for problem in problems]
    assert len({problem.id for problem in everything}) == len(everything)
    shown = Counter((text(p), p.image.tobytes() if p.image else b"") for p in everything)
    assert max(shown.values()) == 1


def test_every_text_skill_has_texts_for_the_default_sizes_and_shares_none_between_splits():
    trained = {name: skill for name, skill in SKILLS.items() if name not in UNTRAINED}
    total = sum(skill.weight for skill in trained.values())
    for name, skill in trained.items():
        if next(generate("train", 1, skills=[name])).image is not None:
            continue
        needed = {
            split: int(size * skill.weight / total) + 1
            for split, size in core.SPLIT_SIZES.items()
            if split != "transfer"
        }
        drawn = {split: {text(p) for p in generate(split, size, skills=[name])} for split, size in needed.items()}
        assert {split: len(texts) for split, texts in drawn.items()} == needed, name
        assert not drawn["train"] & drawn["test"] and not drawn["train"] & drawn["validation"], name
        assert not drawn["validation"] & drawn["test"], name


def test_skills_cover_the_subjects_the_kinds_of_context_and_both_grade_bands(splits):
    assert len(SKILLS) >= 24
    assert {skill.subject for skill in SKILLS.values()} == set(SUBJECTS)
    problems = [problem for each in splits.values() for problem in each]
    columns = Counter(column for problem in problems for column in problem.categories)
    assert min(columns[name] for name in ("TXT", "IMG", "NO")) > 0.1 * len(problems)
    assert 0.25 < columns["G7-12"] / len(problems) < 0.6
    assert 0.45 < columns["IMG"] / len(problems) < 0.65


def test_three_skills_are_asked_in_the_split_transfer_alone(splits):
    assert {problem.skill for problem in splits["transfer"]} == set(UNTRAINED)
    kinds = {(problem.skill, problem.subject, problem.image is not None) for problem in splits["transfer"]}
    assert sorted(seen for *_, seen in kinds) == [False, True, True] and len({subject for _, subject, _ in kinds}) == 3
    for split in ("train", "validation", "test"):
        assert not {problem.skill for problem in splits[split]} & set(UNTRAINED), split
    assert {problem.skill for problem in splits["train"]} == set(SKILLS) - set(UNTRAINED)


@pytest.mark.parametrize("name", SKILLS)
def test_every_skill_asks_in_other_words_too(name):
    problems = list(generate("train", 40, skills=[name]))
    plain = problems[::3] if name not in UNTRAINED else problems
    others = [(problem, other) for problem in plain for words in [reworded(problem.question)]
              for other in (words.test, *words.train)]  # fmt: skip
    for problem, other in others:
        fitting = [asked for asked in WORDINGS if wordings._pattern(asked).fullmatch(problem.question)]
        assert len(fitting) == 1, f"{problem.question} is asked in {fitting}"
        assert len(f"{other} {problem.hint}".split()) <= 60 and "{" not in other
        common = SequenceMatcher(None, problem.question.split(), other.split())
        varied = max((len(value.split()) for value in wordings._pattern(fitting[0]).fullmatch(problem.question).groups()),
                     default=0)  # fmt: skip
        assert common.find_longest_match().size <= max(5, varied), f"{other} repeats {problem.question}"


def test_a_third_of_each_skill_is_asked_in_words_that_no_other_split_has():
    test = list(generate("test", 330))
    unseen = [problem for problem in test if problem.wording == "unseen"]
    assert {problem.wording for problem in test} == {"seen", "unseen"} and 0.3 < len(unseen) / len(test) < 0.36
    assert {problem.skill for problem in unseen} == set(SKILLS) - set(UNTRAINED)
    for problem in test:
        asked = any(wordings._pattern(pattern).fullmatch(problem.question) for pattern in WORDINGS)
        assert asked == (problem.wording == "seen"), problem.question
    asked_in_test = {re.sub(r"\W", "", words.test) for words in WORDINGS.values()}
    assert not asked_in_test & {re.sub(r"\W", "", each) for words in WORDINGS.values() for each in words.train}
    for split in ("train", "validation"):
        assert {problem.wording for problem in generate(split, 64)} == {"seen"}
    with pytest.raises(ValueError, match="no other words for 'Why\\?'; add an entry"):
        reworded("Why?")


def test_training_asks_two_of_three_problems_of_a_skill_in_words_of_its_own():
    train = [p for p in generate("train", 330) if p.skill == "Which words rhyme?"]
    plain = [any(wordings._pattern(pattern).fullmatch(problem.question) for pattern in WORDINGS) for problem in train]
    assert plain == [at % 3 == 0 for at in range(len(train))]
    assert len({re.sub(r"with \w+|rhymes", "", problem.question) for problem in train}) == 3
    assert {problem.question.split()[0] for problem in generate("validation", 64, skills=["Which words rhyme?"])} == {
        "Which"
    }


def test_a_name_that_comes_twice_in_a_question_is_the_same_twice():
    asked = "The bars show the {things} that each team {done}. Which team {done} the {kind} {things}?"
    pattern = wordings._pattern(asked)
    assert pattern.fullmatch("The bars show the cans that each team sold. Which team sold the most cans?")
    assert not pattern.fullmatch("The bars show the cans that each team sold. Which team ate the most cans?")


def test_the_positions_of_right_answers_are_balanced(image_problems):
    for problems in image_problems:
        for size in (2, 3, 4):
            places = Counter(problem.answer for problem in problems if len(problem.choices) == size)
            expected = sum(places.values()) / size
            slack = size * len(SKILLS)  # one deck of each skill may be unfinished
            assert all(abs(places[place] - expected) < min(slack, 4 * expected**0.5) for place in range(size))


@pytest.mark.parametrize("name", SKILLS)
def test_each_skill_reads_well(name):
    problems = list(generate("train", 12, skills=[name]))
    for problem in problems:
        assert len(set(problem.choices)) == len(problem.choices)
        assert len(f"{problem.question} {problem.hint}".split()) <= 60
        assert 8 <= len(problem.solution.split()) <= 30 and problem.lecture
        assert problem.answer_text.lower().rstrip(".") in problem.solution.lower()
        assert "  " not in problem.question + problem.hint + problem.solution + problem.caption
        if problem.image is not None:
            assert problem.image.mode == "RGB" and problem.image.size == (256, 256)
            assert 4 <= len(problem.caption.split()) <= 24
        else:
            assert not problem.caption


def test_the_key_is_true():
    """Told from what the problem shows, not from the variable that wrote answer and solution alike."""
    for problem in generate("train", 40, skills=["Identify magnets that attract or repel"]):
        (one, two) = re.search(r"facing: (?:left|upper) (\w+), (?:right|lower) (\w+)\.", problem.caption).groups()
        assert problem.answer_text == ("repel" if one == two else "attract"), problem.caption
    for problem in generate("train", 40, skills=["Use guide words"]):
        first, last = re.search(r"(\w+) (?:-|and) (\w+)", problem.question).groups()
        between = [choice for choice in problem.choices if first < choice < last]
        assert between == [problem.answer_text], problem.question


def test_text_alone_is_at_chance_on_image_problems(image_problems):
    found = text_only(*image_problems)  # 4 points are 3.3 standard errors of 1,500 problems
    guess = max(found.majority, found.chance)
    assert abs(found.accuracy - guess) < 0.04, f"text alone reaches {found.accuracy:.3f}, a guess {guess:.3f}"
    for name, (accuracy, chance, n) in found.by_skill.items():
        error = (chance * (1 - chance) / n) ** 0.5  # among some 25 skills, 4 standard errors happen once in 1,000 seeds
        assert accuracy < chance + 4 * error, f"{name}: text alone reaches {accuracy:.2f}, chance is {chance:.2f}"


def test_a_classifier_of_positions_is_at_chance_on_image_problems(image_problems):
    """The plain bag of words: which position is right, given all words and where they stand?"""

    def words(problem):
        choices = [f"{place}:{word}" for place, choice in enumerate(problem.choices) for word in choice.split()]
        return dict.fromkeys([*problem.question.split(), *problem.hint.split(), *choices], 1)

    (train, test), vectors = image_problems, DictVectorizer()
    model = LogisticRegression(C=0.1, max_iter=200)
    model.fit(vectors.fit_transform(map(words, train)), [problem.answer for problem in train])
    accuracy = model.score(vectors.transform(map(words, test)), [p.answer for p in test])
    chance = sum(1 / len(problem.choices) for problem in test) / len(test)
    assert abs(accuracy - chance) < 0.04


def test_the_text_classifier_finds_a_planted_shortcut(image_problems):
    def planted(problems):
        """Every fourth problem's right answer is the first of its choices in the alphabet."""
        return [replace(p, answer=p.choices.index(min(p.choices))) if i % 4 == 0 else p for i, p in enumerate(problems)]

    found = text_only(*(planted(problems[:1200]) for problems in image_problems))
    assert found.accuracy > max(found.majority, found.chance) + 0.04


def test_parquet_has_scienceqas_schema_and_is_read_by_datasets(folder):
    schema = pq.read_schema(folder / "test.parquet")
    assert schema.names == [*FIELDS, "id", "caption", "wording"]
    assert schema.field("answer").type == pa.int8() and schema.field("choices").type == pa.list_(pa.string())
    rows = load_dataset("parquet", data_files=str(folder / "test.parquet"), split="train", cache_dir=str(folder / "hf"))
    assert isinstance(rows.features["image"], ImageFeature) and len(rows) == SIZES["test"]
    assert next(row for row in rows if row["image"])["image"].size == (256, 256)


def test_parquet_gives_back_what_was_generated(folder, splits):
    for split, problems in splits.items():
        assert list(map(marks, load_problems(folder, split))) == list(map(marks, problems))


def test_a_second_build_returns_at_once_and_a_changed_setting_builds_anew(folder, monkeypatch):
    sizes = {"test": 20}
    first = build(folder / "again", sizes=sizes)
    before = (first / "test.parquet").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "generate", None)
        build(folder / "again", sizes=sizes)
    build(folder / "again", sizes=sizes, seed=1)
    assert (first / "test.parquet").read_bytes() != before
    (first / "test.parquet").write_bytes(before[:1000])
    build(folder / "again", sizes=sizes)
    assert (first / "test.parquet").read_bytes() == before
    assert not list(first.glob("*.part"))


def test_a_part_of_a_split_is_built_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "home", lambda: tmp_path)
    assert list(map(marks, load_problems("minisqa", "test", 7))) == list(map(marks, generate("test", 7)))
    assert [path.name for path in tmp_path.iterdir()] == ["test-7"]


def test_the_version_covers_all_that_a_problem_follows_from(monkeypatch):
    hashed = []
    monkeypatch.setattr(dataset, "sha256_of_all", lambda paths: hashed.extend(paths) or "0" * 64)
    dataset.version()
    names = {path.relative_to(PACKAGE.parent).as_posix() for path in hashed}
    assert {f"mmlora/problems/{name}.py" for name in ("record", "rows", "pictures", "parquet")} <= names
    assert {f"mmlora/minisqa/{name}.py" for name in ("core", "draw", "words", "dataset")} <= names
    assert {Path(sys.modules[skill.draw.__module__].__file__) for skill in SKILLS.values()} <= set(hashed)
    assets = [path for path in (DATA / "assets").rglob("*") if path.is_file() and path.suffix != ".md"]
    assert len(assets) > 10 and set(assets) <= set(hashed)
    assert len(hashed) == len(names), "none twice"


def test_a_change_of_code_or_asset_builds_anew(tmp_path, monkeypatch):
    before, code = dataset.version(), shutil.copytree(Path(dataset.__file__).parent, tmp_path / "minisqa")
    assets = shutil.copytree(DATA / "assets", tmp_path / "assets")
    monkeypatch.setattr(dataset, "__file__", str(code / "dataset.py"))
    monkeypatch.setattr(dataset, "DATA", tmp_path)
    assert dataset.version() == before, "where it lies does not matter"
    asset = next(path for path in sorted(assets.rglob("*")) if path.suffix == ".png")
    for changed in (code / "skills" / "animals.py", asset):
        original, built = changed.read_bytes(), build(tmp_path / "out", sizes={"test": 3})
        changed.write_bytes(original + b"\n")
        assert dataset.version() != before
        with monkeypatch.context() as patch, pytest.raises(TypeError):
            patch.setattr(dataset, "generate", None)
            build(built, sizes={"test": 3})
        changed.write_bytes(original)
    assert dataset.version() == before


def test_an_unknown_skill_is_answered_with_the_nearest_names(tmp_path):
    with pytest.raises(UnknownSkill, match="'Use guide wrods'.*'Use guide words'"):
        build(tmp_path, skills=["Use guide wrods"])
    with pytest.raises(DataError, match="no split is called 'dev'"):
        next(generate("dev"))
    with pytest.raises(
        DataError, match="skill 'Identify the verb tense' has no new problem left for 'validation'; ask"
    ):
        list(generate("validation", 100_000, skills=["Identify the verb tense"]))


def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(DataError, match=rf"cannot write {tmp_path}/test\.parquet: No space left on device; free"):
        build(tmp_path, sizes={"test": 5})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write .*minisqa: Not a directory; free some disk space"):
        build(tmp_path / "file" / "minisqa", sizes={"test": 5})


def test_the_data_card_names_every_skill():
    card = (DATA / "README.md").read_text()
    assert [name for name in SKILLS if f"| {name} |" not in card] == []
    assert (DATA / "preview.png").stat().st_size < 600_000
