"""Problems survive every format unchanged, and what a source lacks is named with its file and row."""

from __future__ import annotations

import hashlib
import io
import json
import random
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmlora.minisqa import generate
from mmlora.problems import load, official, parquet
from mmlora.problems.load import licence, load_problems
from mmlora.problems.pictures import decoded, digest, encoded, rgb
from mmlora.problems.record import SUBJECTS, WORDINGS, Problem
from mmlora.problems.rows import DataError

ODD = ["\r\n", "\x00", "\u2028", "\ufeff", "é", "e\u0301", "Ω", "水", "🧲", "\u200fש"]
TEXT = [*"abcXYZ 012.,;:'\"\\/{}[]<>&%$\n\r\t", *ODD]


def text(rng: random.Random, least: int = 0) -> str:
    beyond = chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))  # all but the surrogates
    return "".join(rng.choices([*TEXT, beyond], k=rng.randint(least, 12)))


def picture(rng: random.Random) -> Image.Image:
    size = rng.randint(1, 9), rng.randint(1, 9)
    return Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))


def records(rng: random.Random, count: int = 6) -> list[Problem]:
    """Problems of random texts, numbers of choices and pictures; every second field is empty now and then."""
    problems = []
    for number in range(count):
        choices = tuple(text(rng, 1) for _ in range(rng.randint(2, 5)))
        names = ("hint", "task", "topic", "category", "skill", "lecture", "solution", "caption")
        problems.append(Problem(
            id=f"é {number}", question=text(rng, 1), choices=choices, answer=rng.randrange(len(choices)),
            image=picture(rng) if rng.random() < 0.5 else None, grade=f"grade{rng.randint(1, 12)}",
            subject=rng.choice(SUBJECTS), wording=rng.choice(WORDINGS), **{name: text(rng) for name in names},
        ))  # fmt: skip
    return problems


def own(problem: Problem) -> Problem:
    """The same with texts as they can be read: no question and no choice is blank and no two choices are alike."""
    choices = tuple(f"{choice} {number}" for number, choice in enumerate(problem.choices))
    return replace(problem, question=f"{problem.question}?", choices=choices)


def shown(problem: Problem) -> dict:
    """All that a problem says and shows."""
    image = problem.image and (problem.image.mode, problem.image.size, problem.image.tobytes())
    return {**{field.name: getattr(problem, field.name) for field in fields(problem)}, "image": image}


def assert_same(found: list[Problem], expected: list[Problem]):
    assert list(map(shown, found)) == list(map(shown, expected))


@pytest.fixture(scope="module")
def new_folder(tmp_path_factory):
    """`new_folder()`: an empty one each time, for one test tries many records."""
    return lambda: tmp_path_factory.mktemp("records")


def any_records(test):
    """The test holds whatever `records` makes of the random numbers; hypothesis looks for the smallest that breaks it."""
    return settings(max_examples=60, deadline=None, derandomize=True)(
        given(rng=st.randoms(use_true_random=False))(test)
    )


@pytest.fixture
def splits() -> dict[str, list[Problem]]:
    return {"train": list(generate("train", 40)), "validation": list(generate("validation", 20))}


@pytest.fixture
def numbered(splits, tmp_path):
    """An export whose ids are numbers, as ScienceQA's own are."""
    problems = [replace(problem, id=str(i)) for i, problem in enumerate(splits["train"])]
    return official.write({"test": problems}, tmp_path / "numbered"), problems


@any_records
def test_the_official_layout_gives_back_every_record(rng, new_folder):
    problems, out = list(map(own, records(rng))), new_folder() / "out"
    official.write({"train": problems[:3], "test": problems[3:]}, out)
    assert_same(load_problems(out, "train"), problems[:3])
    some = load_problems(out, "test", limit=2)  # by lot
    assert len(some) == 2
    assert_same(some, [problem for problem in problems[3:] if problem.id in {each.id for each in some}])


@any_records
def test_parquet_gives_back_every_record(rng, new_folder):
    problems, folder = list(map(own, records(rng))), new_folder()
    parquet.write(folder / "test.parquet", problems)
    assert_same(load_problems(folder, "test"), problems)
    assert_same(load_problems(folder / "test.parquet", "test", limit=3), problems[:3])
    with pytest.raises(DataError, match="test.parquet is one file, so .* not learned from: .*; put train.parquet and"):
        load_problems(folder / "test.parquet", "train")


def test_parquet_gives_back_several_row_groups(tmp_path):
    problems = list(map(own, records(random.Random(0), count=120)))
    parquet.write(tmp_path / "test.parquet", problems)
    assert pq.ParquetFile(tmp_path / "test.parquet").num_row_groups > 1
    assert_same(load_problems(tmp_path, "test"), problems)


@any_records
def test_jsonl_gives_back_every_record(rng, new_folder):
    problems, lines, folder = list(map(own, records(rng))), [], new_folder()
    for number, problem in enumerate(problems):
        row = {field.name: getattr(problem, field.name) for field in fields(problem)}
        if problem.image is not None:
            problem.image.save(folder / f"{number}.png")
        lines.append(json.dumps({**row, "image": problem.image and f"{number}.png"}, ensure_ascii=number % 2))
    (folder / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert_same(load_problems(folder, "test"), problems)


def test_minisqa_survives_the_official_layout(splits, tmp_path):
    folder = official.write(splits, tmp_path / "out")
    assert set(json.loads((folder / "pid_splits.json").read_text())) == {"train", "val"}
    for split, problems in splits.items():
        assert any(p.image for p in problems) and any(p.caption for p in problems)
        assert_same(load_problems(folder, split), problems)


def test_the_official_layout_is_read_as_its_users_have_it(splits, tmp_path):
    folder, problems = official.write(splits, tmp_path / "out"), splits["validation"]
    for each in (folder / "images").iterdir():
        each.rename(folder / each.name)
    captions = json.loads((folder / "captions.json").read_text())["captions"]
    (folder / "captions.json").write_text(json.dumps(captions))
    assert_same(load_problems(folder, "val"), problems)
    (folder / "captions.json").unlink()
    assert_same(load_problems(folder, "val"), [replace(problem, caption="") for problem in problems])


def test_missing_pictures_are_counted_and_named_or_left_out(splits, tmp_path, capsys):
    folder, problems = official.write(splits, tmp_path / "out"), splits["train"]
    pictured = [problem for problem in problems if problem.image]
    gone = {problem.id for problem in pictured[:7]}
    for name in gone:
        (folder / "images" / "train" / name / "image.png").unlink()
    counted = f"7 of {len(pictured)} pictures are missing"
    with pytest.raises(DataError, match=f"{counted}: problem {pictured[0].id} .*text-only"):
        load_problems(folder, "train")
    found = load_problems(folder, "train", missing_images="text-only")
    assert_same(found, [replace(p, image=None) if p.id in gone else p for p in problems])
    said = capsys.readouterr().out
    assert counted in said and said.count("image.png") == 5
    assert_same(load_problems(folder, "validation"), splits["validation"])
    with pytest.raises(DataError, match='missing_images is \'skip\'; it can be "error" or "text-only"'):
        load_problems(folder, missing_images="skip")


def test_faults_of_the_official_files_are_named(splits, tmp_path):
    folder = official.write(splits, tmp_path / "out")
    with pytest.raises(DataError, match=r"pid_splits\.json has no split 'test'; it has train, val"):
        load_problems(folder, "test")
    rows = json.loads((folder / "problems.json").read_text())
    name = next(iter(rows))
    for change, message in (
        ({"choices": ["only"], "answer": 0}, "has 1 choices"), ({"question": None}, "has no question"),
        ({"answer": "Z"}, "answer 'Z' is no letter A to"), ({"grade": 4}, "grade is 4, not text"),
    ):  # fmt: skip
        (folder / "problems.json").write_text(json.dumps({**rows, name: {**rows[name], **change}}))
        with pytest.raises(DataError, match=rf"problems\.json: problem {name}: {message}"):
            load_problems(folder, "train")
    (folder / "problems.json").write_text(json.dumps({pid: row for pid, row in rows.items() if pid != name}))
    with pytest.raises(DataError, match=rf"problems\.json has no problem {name}"):
        load_problems(folder, "train")
    (folder / "problems.json").write_text("{")
    with pytest.raises(DataError, match=r"problems\.json cannot be read as JSON"):
        load_problems(folder, "train")
    (folder / "pid_splits.json").unlink()
    (folder / "problems.json").write_text("{}")
    with pytest.raises(DataError, match=r"pid_splits\.json is missing"):
        load_problems(folder, "train")


@pytest.mark.parametrize("path", ["/etc/hostname", "../../../x.png", "../../../../../../../../etc/hostname"])
def test_a_picture_of_the_official_layout_lies_in_its_folder(path, splits, tmp_path):
    folder = official.write(splits, tmp_path / "a" / "out")
    Image.new("RGB", (2, 2)).save(tmp_path / "a" / "x.png")  # beside the folder: a picture that is somebody else's
    rows = json.loads((folder / "problems.json").read_text())
    name = next(iter(rows))
    rows[name]["image"] = path
    (folder / "problems.json").write_text(json.dumps(rows))
    for missing in ("error", "text-only"):
        with pytest.raises(DataError, match=rf"problems\.json: problem {name}: its picture .* lies outside the folder"):
            load_problems(folder, "train", missing_images=missing)


def test_an_export_destroys_nothing_and_leaves_its_folder_for_no_id(splits, tmp_path):
    problem = splits["train"][0]
    official.write(splits, tmp_path / "out")
    with pytest.raises(DataError, match="out holds a data set already"):
        official.write(splits, tmp_path / "out")
    for name in ("../there", "a/b", "..", ""):
        with pytest.raises(DataError, match="its id names no folder"):
            official.write({"test": [replace(problem, id=name)]}, tmp_path / "new")
    with pytest.raises(DataError, match=f"problem {problem.id}: is there twice"):
        official.write({"train": [problem], "test": [problem]}, tmp_path / "new")
    assert not (tmp_path / "new" / "problems.json").exists()


def test_the_licence_is_said_once_and_only_for_scienceqa(splits, numbered, tmp_path, capsys):
    load._say_licence.cache_clear()
    load_problems(official.write(splits, tmp_path / "minisqa"), "train")
    assert capsys.readouterr().out == ""
    assert_same(load_problems(numbered[0]), numbered[1])
    assert "CC BY-NC-SA 4.0" in capsys.readouterr().out
    load_problems(numbered[0])
    assert capsys.readouterr().out == ""


def test_the_licence_of_each_source(splits, numbered, tmp_path, monkeypatch):
    own_folder = tmp_path / "own"
    own_folder.mkdir()
    (own_folder / "test.csv").write_text("question,choice_a,choice_b,answer\nWhy?,yes,no,A\n")
    exported = official.write(splits, tmp_path / "exported")
    assert licence("minisqa", splits["train"]) == "apache-2.0"
    assert licence(numbered[0], numbered[1]) == licence(str(numbered[0]), numbered[1]) == "cc-by-nc-sa-4.0"
    assert licence("derek-thomas/ScienceQA", splits["train"]) == "cc-by-nc-sa-4.0"
    assert licence(own_folder, load_problems(own_folder)) == "other"
    assert licence(exported, splits["train"]) == "other"  # ScienceQA's layout, but not its problems
    assert licence("someone/questions", splits["train"]) == "other"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-scienceqa").mkdir()
    assert licence("my-scienceqa", splits["train"]) == "other"  # a folder is its owner's, whatever it is called


def test_rows_without_id_are_counted_through_all_files_of_a_split(tmp_path):
    problems = list(map(own, records(random.Random(0), 30)))
    (tmp_path / "data").mkdir()  # where the hub's data sets have them
    for number, part in enumerate((problems[:10], problems[10:])):
        path = tmp_path / "data" / f"train-0000{number}-of-00002.parquet"
        parquet.write(path, part)
        pq.write_table(pq.read_table(path).drop_columns(["id", "caption", "wording"]), path)
    parquet.write(tmp_path / "data" / "trainval.parquet", problems)  # another split
    expected = [replace(problem, id=f"train-{i}", caption="", wording="") for i, problem in enumerate(problems)]
    assert_same(load_problems(tmp_path, "train"), expected)


def test_pictures_are_rgb_and_upright_and_decoded_when_they_are_used(tmp_path):
    palette = Image.new("P", (4, 6))
    palette.putpalette([200, 10, 30])
    palette.save(tmp_path / "palette.png")
    camera = Image.new("RGB", (40, 60), "white")
    exif = camera.getexif()
    exif[0x0112] = 6  # turn a quarter to the right
    camera.save(tmp_path / "camera.jpg", exif=exif)
    row = {"question": "Which?", "choices": ["a", "b"], "answer": 0}
    lines = [json.dumps({**row, "image": name}) for name in ("palette.png", "camera.jpg")]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    first, second = (problem.image for problem in load_problems(tmp_path))
    assert first.tile and second.tile  # nothing is decoded yet
    assert first.mode == second.mode == "RGB" and second.size == (60, 40)
    assert set(first.get_flattened_data()) == {(200, 10, 30)}


def test_a_photograph_taken_with_the_phone_upright_stays_a_small_file():
    noise = Image.effect_noise((600, 400), 40).convert("RGB")
    exif = noise.getexif()
    exif[0x0112] = 6
    noise.save(file := io.BytesIO(), "JPEG", quality=85, exif=exif)
    found = decoded(file.getvalue())
    assert found.size == (400, 600) and len(encoded(found)) < 3 * len(file.getvalue())
    expected = np.asarray(rgb(Image.open(file)), dtype=float)
    assert np.abs(np.asarray(found) - expected).mean() < 2


def test_sixteen_bits_are_read_as_grey_and_thirty_two_are_refused():
    levels = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    for form, options in (("PNG", {}), ("TIFF", {})):
        Image.fromarray(levels).save(file := io.BytesIO(), form, **options)
        assert [r for r, _, _ in decoded(file.getvalue()).get_flattened_data()] == [0, 0, 1, 128, 255]
    Image.fromarray(levels.astype(np.float32) / 65535).save(file := io.BytesIO(), "TIFF")
    with pytest.raises(ValueError, match="its pixels are numbers of 32 bits, mode F; save it with 8 or 16 bits"):
        decoded(file.getvalue())


def transparent(mode: str) -> Image.Image:
    """Two pixels: the left one is transparent, the right one solid; what is hidden is not white."""
    if mode == "P":
        picture = Image.new("P", (2, 1))
        picture.putpalette([9, 99, 9, 200, 10, 30])
        picture.info["transparency"] = 0
    elif mode == "RGB":
        picture = Image.new("RGB", (2, 1), (9, 99, 9))
        picture.info["transparency"] = (9, 99, 9)
    else:
        hidden, shown = {"RGBA": ((9, 99, 9, 0), (200, 10, 30, 255)), "LA": ((9, 0), (77, 255))}[mode]
        picture = Image.new(mode, (2, 1), hidden)
        picture.putpixel((1, 0), shown)
        return picture
    picture.putpixel((1, 0), 1 if mode == "P" else (200, 10, 30))
    return picture


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_a_transparent_picture_is_read_on_white(mode, tmp_path):
    transparent(mode).save(tmp_path / "x.png")
    (tmp_path / "test.jsonl").write_text('{"question": "Which?", "choices": ["a", "b"], "answer": 0, "image": "x.png"}')
    (problem,) = load_problems(tmp_path)
    expected = [(255, 255, 255), (77, 77, 77) if mode == "LA" else (200, 10, 30)]
    assert problem.image.mode == "RGB" and list(problem.image.get_flattened_data()) == expected
    in_memory = transparent(mode)  # from somebody's own code, not from a file
    assert list(rgb(in_memory).get_flattened_data()) == expected
    assert in_memory.mode == mode and in_memory.tobytes() == transparent(mode).tobytes(), "what came in stays as it is"


def test_a_half_transparent_picture_is_blended_with_white():
    file = io.BytesIO()
    Image.new("RGBA", (3, 2), (0, 100, 200, 128)).save(file, "PNG")
    blended = [round(255 + (colour - 255) * 128 / 255) for colour in (0, 100, 200)]
    for pixel in decoded(file.getvalue()).get_flattened_data():
        assert pixel == pytest.approx(blended, abs=1)


def test_a_png_that_nobody_touched_stays_the_same_file():
    for level in (0, 9):  # neither is what `encoded` writes itself
        file = io.BytesIO()
        picture(random.Random(0)).resize((40, 30)).save(file, "PNG", compress_level=level)
        read = decoded(file.getvalue())
        assert encoded(read) == encoded(read) == file.getvalue()
        assert rgb(read).size == (40, 30) and encoded(read) == file.getvalue(), "a copy was decoded, not the picture"
    read.load()
    assert encoded(read) != file.getvalue() and decoded(encoded(read)).tobytes() == read.tobytes()


def test_a_picture_is_told_apart_by_its_file_and_a_changed_copy_by_its_pixels():
    files = []
    for number in range(2):
        file = io.BytesIO()
        picture(random.Random(number)).resize((40, 30)).save(file, "PNG")
        files.append(file.getvalue())
    first, again, other = decoded(files[0]), decoded(files[0]), decoded(files[1])
    before = digest(first)
    first.load()
    assert digest(first) == before == digest(again) == hashlib.sha256(files[0]).digest() != digest(other)
    turned = first.rotate(180)
    assert len({before, digest(turned), digest(first.rotate(90)), digest(first.convert("L"))}) == 4
    assert digest(turned) == digest(turned.copy()) and len(digest(turned)) == len(before) == 32


def test_a_writer_whose_problems_break_off_is_closed_and_leaves_nothing(tmp_path, monkeypatch):
    closed, close = [], pq.ParquetWriter.close

    def spy(writer):
        closed.append(sorted(path.suffix for path in tmp_path.iterdir()))
        close(writer)

    def breaking_off():
        yield from records(random.Random(0), parquet.ROWS + 5)
        raise KeyError("the cause")

    monkeypatch.setattr(pq.ParquetWriter, "close", spy)
    with pytest.raises(KeyError, match="the cause"):
        parquet.write(tmp_path / "test.parquet", breaking_off())
    assert closed and closed[0] == [".part"], "closed before its file was deleted, as Windows needs it"
    assert not list(tmp_path.iterdir())


CSV = """\ufeffquestion,choice_a,choice_b,choice_c,choice_d,choice_e,answer,hint,image
"Which, of ""these""
is metal?",iron,wood,,,,A,,pictures/metal.png
What is 1 + 1?,1,2,3,,,B,Count.,
Which is a planet?,the sun,Mars,,,,Mars,,
,,,,,,,,
Which is last?,a,b,c,d,e,4,,
"""


def test_a_csv_and_a_jsonl_file_of_your_own(tmp_path):
    image = picture(random.Random(1))
    (tmp_path / "pictures").mkdir()
    image.save(tmp_path / "pictures" / "metal.png")
    (tmp_path / "test.csv").write_text(CSV, encoding="utf-8", newline="")
    expected = [
        Problem("test-0", 'Which, of "these"\nis metal?', ("iron", "wood"), 0, image),
        Problem("test-1", "What is 1 + 1?", ("1", "2", "3"), 1, hint="Count."),
        Problem("test-2", "Which is a planet?", ("the sun", "Mars"), 1),
        Problem("test-3", "Which is last?", tuple("abcde"), 4),
    ]
    assert_same(load_problems(tmp_path), expected)
    (tmp_path / "test.csv").unlink()
    answers = ("A", 1, "Mars", "4")
    rows = [{"question": p.question, "choices": p.choices, "answer": answer, "hint": p.hint,
             "image": p.image and "pictures/metal.png"} for p, answer in zip(expected, answers)]  # fmt: skip
    (tmp_path / "test.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    assert_same(load_problems(tmp_path), expected)
    assert_same(load_problems(tmp_path, limit=2), [expected[1], expected[3]])  # by lot


TEN = tuple("0123456789")


def test_a_problem_has_up_to_26_choices(tmp_path):
    """Ten digits is what many a small data set asks for."""
    columns = [f"choice_{letter}" for letter in "abcdefghij"]
    rows = [f"Which digit?,{','.join(TEN)},{answer}" for answer in ("J", "3")]
    (tmp_path / "test.csv").write_text("\n".join([f"question,{','.join(columns)},answer", *rows]))
    expected = [Problem(f"test-{i}", "Which digit?", TEN, answer) for i, answer in enumerate((9, 3))]
    assert_same(load_problems(tmp_path), expected)
    (tmp_path / "test.csv").unlink()
    lines = [{"question": "Which digit?", "choices": TEN, "answer": answer} for answer in ("J", 3)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert_same(load_problems(tmp_path), expected)


def test_the_27th_choice_is_refused(tmp_path):
    many = [f"number {i}" for i in range(27)]
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "Which?", "choices": many[:26], "answer": "Z"}))
    assert load_problems(tmp_path)[0].answer_text == "number 25"
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "Which?", "choices": many, "answer": 0}))
    with pytest.raises(DataError, match="line 1: problem test-0: has 27 choices; give 2 to 26"):
        load_problems(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    letters = [*"abcdefghijklmnopqrstuvwxyz", "aa"]
    for count in (26, 27):
        head = f"question,answer,{','.join(f'choice_{letter}' for letter in letters[:count])}"
        (tmp_path / "test.csv").write_text(f"{head}\nWhich?,Z,{','.join(many[:count])}\n")
        if count == 26:
            assert load_problems(tmp_path)[0].answer_text == "number 25"
    with pytest.raises(DataError, match="line 1: unknown column 'choice_aa'"):
        load_problems(tmp_path)


def test_one_file_holds_all_splits_and_a_missing_column_is_said(tmp_path, capsys):
    rows = [("train", "x"), ("test", "y"), ("train", "z")]
    lines = ["id,question,choice_a,choice_b,answer,split", *(f"{name},Why?,yes,no,B,{split}" for split, name in rows)]
    (tmp_path / "problems.csv").write_text("\n".join(lines))
    assert [problem.id for problem in load_problems(tmp_path, "train")] == ["x", "z"]
    assert capsys.readouterr().out == ""
    with pytest.raises(DataError, match="problems.csv has no problem of the split 'dev'; it has train, test"):
        load_problems(tmp_path, "dev")
    (tmp_path / "problems.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines))
    assert [problem.id for problem in load_problems(tmp_path, "test")] == ["x", "y", "z"]
    assert "has no column 'split': all its problems are read as 'test'" in capsys.readouterr().out
    with pytest.raises(
        DataError, match="problems.csv has no column 'split', so .* not learned from: .*; add the column"
    ):
        load_problems(tmp_path, "train")
    (tmp_path / "problems.csv").write_text("\n".join([*lines, "q,Why?,yes,no,B,"]))
    with pytest.raises(DataError, match="line 5: problem test-1: it has no split, but others have one"):
        load_problems(tmp_path, "test")
    (tmp_path / "problems.csv").write_text("\n".join([*lines, "q,Why?,yes,no,B,Train"]))
    with pytest.raises(DataError, match="line 5: problem test-1: its split is 'Train'; it can be train, validation, t"):
        load_problems(tmp_path, "test")


def test_a_part_of_a_sorted_table_is_drawn_by_lot(tmp_path, capsys):
    lines = [
        "question,choice_a,choice_b,answer,skill",
        *(f"Why {i}?,yes,no,B,{'old' if i < 50 else 'new'}" for i in range(100)),
    ]
    (tmp_path / "test.csv").write_text("\n".join(lines))
    some = load_problems(tmp_path, "test", 20)
    assert {problem.skill for problem in some} == {"old", "new"} and len(some) == 20
    assert "test.csv has 100 problems of the split 'test'; 20 were drawn by lot" in capsys.readouterr().out
    assert [p.id for p in some] == sorted((p.id for p in some), key=lambda id: int(id.partition("-")[2]))
    assert all(p.question == f"Why {p.id.partition('-')[2]}?" for p in some), "a row keeps its number"
    assert some == load_problems(tmp_path, "test", 20) and load_problems(tmp_path, "test", 100) == load_problems(
        tmp_path
    )


HEAD = "id,question,choice_a,choice_b,choice_c,answer\n"
SHORT = "id,question,choice_a,choice_b,answer,"
GOOD = "g,Why?,yes,no,,A\n"


@pytest.mark.parametrize(("content", "message"), [
    ("id,question,choice_a,choice_b,anser\n", "line 1: unknown column 'anser'; the nearest is 'answer'"),
    ("id,question,choice_a,answer\n", "line 1: there is no column choice_b"),
    ("question,question,choice_a,choice_b,answer\n", "line 1: two columns are called 'question'"),
    ("question;choice_a;choice_b;answr\n", "line 1: unknown column 'answr'; the nearest is 'answer'"),
    (HEAD + GOOD + "x,Why?,yes,no,,F\n", "line 3: problem x: answer 'F' is no letter A to B, no choice's exact text"),
    (HEAD + GOOD + "x,Why?,yes,no,,C\n", "line 3: problem x: answer 'C' is no letter A to B"),
    (HEAD + GOOD + "x,Why?,yes,no,,2\n", "line 3: problem x: answer '2' is no letter"),
    (HEAD + GOOD + "x,Why?,1,2,3,2\n", "line 3: problem x: answer '2' may mean choice B or choice C; write its letter"),
    (HEAD + GOOD + "x,Why?,no,yes,no,no\n", "line 3: problem x: choices A and C are both 'no'; make them differ"),
    (HEAD + GOOD + "x,Why?,no,yes,no ,B\n", "line 3: problem x: choices A and C are both 'no '; make them differ"),
    (HEAD + GOOD + "x,Why?,yes,,no,A\n", "line 3: problem x: choice B is empty"),
    (HEAD + GOOD + "x,Why?,yes,  ,no,A\n", "line 3: problem x: choice B is empty"),
    (HEAD + GOOD + "x,\t ,yes,no,,A\n", "line 3: problem x: question should not be empty"),
    (HEAD + GOOD + "x,Why?,yes,,,A\n", "line 3: problem x: has 1 choices"),
    (HEAD + GOOD + "x,,yes,no,,\n", "line 3: problem x: question and answer should not be empty"),
    (HEAD + GOOD + "x,Why?,yes\n", "line 3: problem test-1: it has 3 cells for 6 columns"),
    (HEAD + GOOD + '"g","Why\n?",yes,no,,A\n', "line 3: problem g: line 2 has this id already"),
    (HEAD + GOOD + 'x,"Why?" he asked,yes,no,,A\n', "line 3: .*a quote inside a cell is written twice"),
    (SHORT + "grade\nx,Why?,yes,no,A,four\n", "line 2: problem x: grade 'four' should read"),
    (SHORT + "image\nx,Why?,yes,no,A,no.png\n", "1 of 1 pictures are missing: line 2: problem x "),
    (SHORT + "image\nx,Why?,yes,no,A,/etc/hostname\n", "line 2: problem x: its picture '/etc/hostname' lies outside"),
    (SHORT + "image\nx,Why?,yes,no,A,../../x.png\n", r"line 2: problem x: its picture '\.\./\.\./x\.png' lies outside the folder"),
    (SHORT + "image\nx,Why?,yes,no,A,a/../../x.png\n", "line 2: problem x: its picture 'a/../../x.png' lies outside"),
    (SHORT + "image\nx,Why?,yes,no,A,test.csv\n", "line 2: problem x: its picture is not an image"),
    (HEAD, "has no problem in the split 'test'"),
])  # fmt: skip
def test_faults_of_a_csv_file_are_named_with_their_line(content, message, tmp_path):
    (tmp_path / "test.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_problems(tmp_path)


WHY = '{"id": "x", "question": "Why?", '


@pytest.mark.parametrize(("line", "message"), [
    ('{"question": "Why?"', "line 2: problem test-1: it is not valid JSON"),
    ('["Why?"]', "line 2: problem test-1: it is not a JSON object"),
    (WHY + '"answer": 0}', "line 2: problem x: choices should not be empty"),
    (WHY + '"choices": "yes", "answer": 0}', "line 2: problem x: choices is 'yes', not a list of texts"),
    (WHY + '"choices": ["1", 2], "answer": 0}', r"line 2: problem x: choices are \['1', 2\], not a list of texts"),
    (WHY + '"choices": ["no", "yes", "no"], "answer": 1}', "line 2: problem x: choices A and C are both 'no'; make"),
    (WHY + '"choices": ["yes", "\\u00a0\\n"], "answer": 0}', "line 2: problem x: choice B is empty"),
    (WHY.replace("Why?", " \\t") + '"choices": ["yes", "no"], "answer": 0}', "line 2: problem x: question should not be"),
    (WHY + '"choices": ["yes", "no"], "answer": 0, "image": "../x.png"}', "line 2: problem x: its picture .* lies outside"),
    (WHY + '"choices": ["yes", "no"], "answer": 2}', "line 2: problem x: answer 2 is no index"),
    (WHY + '"choices": ["yes", "no"], "answer": true}', "line 2: problem x: answer is True, not an index"),
    (WHY + '"choices": ["yes", "no"], "answer": 1, "hnt": ""}', "line 2: problem x: .*'hnt'; the nearest is 'hint'"),
])  # fmt: skip
def test_faults_of_a_jsonl_file_are_named_with_their_line(line, message, tmp_path):
    (tmp_path / "test.jsonl").write_text('{"question": "Why?", "choices": ["1", "0"], "answer": 1}\n' + line)
    with pytest.raises(DataError, match=message):
        load_problems(tmp_path)


def test_ten_faulty_rows_are_reported_together(tmp_path):
    (tmp_path / "test.csv").write_text(HEAD + GOOD + "".join(f"x{i},Why?,yes,no,,maybe\n" for i in range(14)))
    with pytest.raises(DataError) as caught:
        load_problems(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path / 'test.csv'} has 14 faulty rows (the first 10):" and len(lines) == 11
    assert lines[1].startswith("  line 3: problem x0: answer 'maybe'")
    assert lines[10].startswith("  line 12: problem x9: answer 'maybe'")


def test_a_csv_file_in_another_encoding_says_how_to_save_it(tmp_path):
    (tmp_path / "test.csv").write_bytes((HEAD + "x,Où?,yes,no,,A\n").encode("cp1252"))
    with pytest.raises(DataError, match="test.csv is not in UTF-8 .*save it as “CSV UTF-8”"):
        load_problems(tmp_path)


def test_a_missing_picture_of_your_own_can_be_left_out(tmp_path, capsys):
    table = "question,choice_a,choice_b,answer,image\nWhy?,yes,no,A,no.png\nWhy?,yes,no,A,there.png\n"
    (tmp_path / "test.csv").write_text(table)
    picture(random.Random(0)).save(tmp_path / "there.png")
    first, second = load_problems(tmp_path, missing_images="text-only")
    assert first.image is None and second.image is not None
    said = capsys.readouterr().out
    assert "1 of 2 pictures are missing: line 2: problem test-0 (" in said and "read as text only" in said


def test_a_folder_of_two_kinds_or_none_and_an_unknown_source_are_named(tmp_path):
    with pytest.raises(DataError, match="no problems of the split 'test', only other files; give \"minisqa\", a data"):
        load_problems(tmp_path)
    (tmp_path / "train.csv").write_text(HEAD + GOOD)
    with pytest.raises(DataError, match="has no problems of the split 'test', only train.csv"):
        load_problems(tmp_path)
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="has both train.csv and train.jsonl"):
        load_problems(tmp_path, "train")
    (tmp_path / "train.jsonl").rename(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="has both train.parquet and train.csv"):
        load_problems(tmp_path, "train")
    for source in ("minisqua", tmp_path / "nowhere", tmp_path / "train.csv"):
        with pytest.raises(DataError, match=f'{source} is no source of problems; give "minisqa"'):
            load_problems(source)


def test_a_damaged_picture_names_its_file_and_row(tmp_path):
    problems = list(map(own, records(random.Random(3), 30)))
    parquet.write(tmp_path / "test.parquet", problems)
    table = pq.read_table(tmp_path / "test.parquet")
    rows = table.to_pylist()
    bad = next(row for row in rows if row["image"])
    whole = bad["image"]["bytes"]
    jpeg = io.BytesIO()
    picture(random.Random(0)).resize((90, 90)).save(jpeg, "JPEG")
    for damaged in (whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], jpeg.getvalue()[:-500], None, b"GIF?"):
        bad["image"] = {"bytes": damaged, "path": "x.png"}
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "test.parquet")
        with pytest.raises(DataError, match=rf"test\.parquet: problem {bad['id']}: its picture "):
            load_problems(tmp_path)


def test_broken_and_foreign_parquet_files_say_what_to_do(tmp_path):
    (tmp_path / "test.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="test.parquet cannot be read as parquet"):
        load_problems(tmp_path)
    pq.write_table(pa.table({"question": ["Why?"]}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="has no column image, choices"):
        load_problems(tmp_path)
    problem = own(records(random.Random(0), 1)[0])
    parquet.write(tmp_path / "test.parquet", [problem, problem])
    with pytest.raises(DataError, match=f"has 2 problems called '{problem.id}'"):
        load_problems(tmp_path)
