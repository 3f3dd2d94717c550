"""What other people's tables and pictures hold is read rightly, or refused in a sentence with its file and row."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import struct
import unicodedata
import warnings
import zlib
from pathlib import Path

import fuzz_tables
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from PIL import Image

from mmlora.problems import parquet
from mmlora.problems.load import licence, load_problems
from mmlora.problems.pictures import rgb
from mmlora.problems.record import Problem
from mmlora.problems.rows import DataError

ROW = {"question": "Which?", "choices": ["x", "y"], "answer": 0}
HEAD = "question,choice_a,choice_b,answer"


@settings(max_examples=100, deadline=None, derandomize=True, phases=[Phase.generate])  # a seed does not get smaller
@given(seed=fuzz_tables.SEEDS)
def test_a_made_table_is_read_or_refused_in_a_sentence(seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    fuzz_tables.write(folder, seed)
    fuzz_tables.outcome(folder, seed)


def test_the_made_tables_are_of_both_ends(tmp_path):
    ends = set()
    for seed in range(12):
        fuzz_tables.write(tmp_path / str(seed), seed)
        ends.add(fuzz_tables.outcome(tmp_path / str(seed), seed))
    assert ends == {"read", "refused"}


def picture(form: str = "PNG", size: tuple[int, int] = (4, 3), mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, "red" if mode == "RGB" else 0).save(file, form, **options)
    return file.getvalue()


def as_jsonl(folder: Path, row: dict):
    (folder / "test.jsonl").write_text(json.dumps(row))


def as_list(folder: Path, row: dict):
    (folder / "problems.json").write_text(json.dumps([row]))


def as_official(folder: Path, row: dict):
    row = {"split": "test", **row}
    (folder / "problems.json").write_text(json.dumps({row.get("id", "7"): row}))
    (folder / "pid_splits.json").write_text(json.dumps({"test": [row.get("id", "7")]}))


def as_parquet(folder: Path, row: dict):
    more = {name: "" for name in parquet.FEATURES if name not in ("image", *ROW, *parquet.OWN)}
    more |= {"grade": "grade2", "subject": "natural science", "image": None}
    pq.write_table(pa.Table.from_pylist([{**more, **row}]), folder / "test.parquet")


FORMATS = [as_jsonl, as_list, as_official, as_parquet]


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize(("change", "message"), [
    ({"choices": ["x", "x"]}, "choices A and B are both 'x'; make them differ"),
    ({"choices": ["é", "e\u0301"]}, "choices A and B are both"),
    ({"choices": ["x", ""]}, "choice B is empty"),
    ({"choices": ["x", "\u200b"]}, "choice B is empty"),
    ({"choices": [["x"], ["y"]]}, "choices are .*, not a list of texts"),
    ({"choices": [1, 2]}, "choices are .*, not a list of texts"),
    ({"choices": "x or y"}, "choices is 'x or y', not a list of texts"),
    ({"question": " "}, "question should not be empty"),
    ({"answer": 2}, "answer 2 is no index"),
    ({"answer": -1}, "answer -1 is no index"),
    ({"answer": 0.5}, "answer is 0.5, not an index"),
    ({"answer": float("nan")}, "no answer"),
    ({"answer": True}, "answer is True, not an index"),
    ({"answer": "C"}, "answer 'C' is no letter A to B"),
    ({"hint": 5}, "hint is 5, not text"),
    ({"grade": "grade²"}, "grade 'grade²' should read like 'grade4'"),
    ({"image": ["a.png", "b.png"]}, "its picture is .* names several, and a problem has one"),
    ({"image": "https://example.com/a.png"}, "is an address, and nothing is fetched: download it"),
])  # fmt: skip
def test_every_reader_refuses_the_same_rows(write, change, message, tmp_path):
    write(tmp_path, {**ROW, **change})
    with pytest.raises(
        DataError, match=f"{re.escape(str(tmp_path / 'x'))[:-1]}[a-z]+.[a-z]+[ :](.|\n)*problem (7|test-0): .*{message}"
    ):
        load_problems(tmp_path)


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("change", [
    {"answer": 1.0}, {"answer": "B"}, {"answer": " y "}, {"choices": '["x", "y"]', "answer": 1}, {"answer": 1, "hint": float("nan")},
])  # fmt: skip
def test_every_reader_takes_what_can_mean_one_thing_only(write, change, tmp_path):
    write(tmp_path, {**ROW, **change})
    (problem,) = load_problems(tmp_path)
    assert (problem.choices, problem.answer, problem.hint) == (("x", "y"), 1, "")


@pytest.mark.parametrize("write", FORMATS[:3])
@pytest.mark.parametrize("change", [
    {"question": "\ud800"}, {"choices": ["x", "a\udc00"]}, {"hint": "\udfff"}, {"solution": "\ud83e"}, {"id": "\ud800"}, {"image": "\ud800.png"},
])  # fmt: skip
def test_texts_that_cannot_be_stored_are_refused_where_they_are_read(write, change, tmp_path):
    write(tmp_path, {**ROW, **change})
    with pytest.raises(DataError, match="half of a surrogate pair, which UTF-8 cannot encode") as caught:
        load_problems(tmp_path)
    assert str(caught.value).encode() and str(tmp_path) in str(caught.value)


def test_ids_are_texts_or_whole_numbers(tmp_path):
    rows = [{**ROW, "id": each} for each in ("a", 7, 8.0, "", " ", None)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [problem.id for problem in load_problems(tmp_path)] == ["a", "7", "8", "test-3", "test-4", "test-5"]
    for wrong, message in (
        (True, "id is True, not text"),
        (["a"], "id is"),
        (7.5, "id is 7.5"),
        (7, "line 2 has this id already"),
    ):
        (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, [*rows, {**ROW, "id": wrong}])))
        with pytest.raises(DataError, match=f"line 7: problem (test-6|7): {message}"):
            load_problems(tmp_path)
    as_jsonl(tmp_path, {**ROW, "id": "two\nlines" * 99, "answer": 5})
    with pytest.raises(DataError) as caught:
        load_problems(tmp_path)
    assert len(str(caught.value)) < 400 and "two\\nlines" in str(caught.value)


def test_parquet_as_pandas_writes_it(tmp_path):
    as_parquet(tmp_path, {**ROW, "answer": np.float64(1), "id": 3})
    table = pq.read_table(tmp_path / "test.parquet")
    column = table.schema.get_field_index("choices")
    table = table.set_column(column, "choices", pa.array([np.array(["x", "y"])]))
    pq.write_table(table, tmp_path / "test.parquet")
    assert [(p.id, p.choices, p.answer) for p in load_problems(tmp_path)] == [("3", ("x", "y"), 1)]
    broken = pa.array([b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.schema.get_field_index("hint"), "hint", broken), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="test.parquet, row 0: it cannot be read .*utf-8"):
        load_problems(tmp_path)


@pytest.mark.parametrize(("files", "message"), [
    ({"problems": {"7": None}}, "problems.json: problem 7: it is None, not an object"),
    ({"problems": {"7": {**ROW, "image": "a.png"}}}, "problems.json: problem 7: it has a picture but no split"),
    ({"pid_splits": ["7"]}, "pid_splits.json holds no JSON object"),
    ({"pid_splits": {"test": {"7": 1}}}, "pid_splits.json: test is {'7': 1}, not a list of ids"),
    ({"pid_splits": {"test": [["7"]]}}, "pid_splits.json: test is .*, not a list of ids"),
    ({"captions": {"captions": ["a"]}}, "captions.json: captions is .*, not an object"),
    ({"captions": {"7": 5}}, "problems.json: problem 7: caption is 5, not text"),
])  # fmt: skip
def test_official_files_of_another_shape_are_refused(files, message, tmp_path):
    as_official(tmp_path, ROW)
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        load_problems(tmp_path)


def test_official_files_with_marks_and_null_captions_are_read(tmp_path):
    as_official(tmp_path, ROW)
    (tmp_path / "captions.json").write_text('{"captions": null}')
    for path in tmp_path.iterdir():
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert load_problems(tmp_path) == [Problem("7", "Which?", ("x", "y"), 0)]


@pytest.mark.parametrize("name", ["problems.json", "pid_splits.json", "captions.json"])
def test_official_files_in_another_encoding_or_with_a_name_twice_are_named(name, tmp_path):
    as_official(tmp_path, ROW)
    (tmp_path / "captions.json").write_text("{}")
    text = (tmp_path / name).read_text()
    for encoding in ("utf-16", "utf-16-le"):
        (tmp_path / name).write_text(text, encoding=encoding)
        with pytest.raises(DataError, match=f"{name} is in UTF-16 or UTF-32, not in UTF-8; save it in UTF-8"):
            load_problems(tmp_path)
    for wrong, message in (
        ('{"a": 1, "a": 2}', "the name 'a' is there twice"),
        ("[" * 99_999, "nested too deeply|is not in"),
    ):
        (tmp_path / name).write_text(wrong if wrong[0] == "{" else '{"a": ' + wrong)
        with pytest.raises(DataError, match=f"{name} cannot be read as JSON .*{message}"):
            load_problems(tmp_path)


@pytest.mark.parametrize("name", ["problems.json", "test.json", "test.jsonl"])
def test_a_list_of_problems_is_a_table(name, tmp_path, capsys):
    rows = [ROW, {**ROW, "id": "b", "answer": "y"}]
    (tmp_path / name).write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    first, second = load_problems(tmp_path)
    assert (first.id, first.answer, second.id, second.answer) == ("test-0", 0, "b", 1)
    assert licence(tmp_path, [Problem("1", "Which?", ("x", "y"), 0)]) == "other", "a list is not ScienceQA's own file"
    (tmp_path / name).write_text(json.dumps([*rows, {**ROW, "answer": "z"}], indent=1))
    with pytest.raises(DataError, match=f"{name} has 1 faulty row:\n  line 19: problem test-2: answer 'z'"):
        load_problems(tmp_path)
    for cut, message in (
        (-2, "line 18: the list is not valid JSON|neither a comma nor its end"),
        (None, "goes on after the end"),
    ):
        (tmp_path / name).write_text((json.dumps(rows, indent=1) + "]")[:cut] + "]" * (cut is None))
        with pytest.raises(DataError, match=f"{name}.*({message})"):
            load_problems(tmp_path)


def test_a_json_list_of_all_splits_tells_them_apart(tmp_path):
    rows = [{**ROW, "split": split, "id": split} for split in ("train", " test ", "train")]
    (tmp_path / "problems.json").write_text(json.dumps([{**row, "id": i} for i, row in enumerate(rows)]))
    assert [problem.id for problem in load_problems(tmp_path, "train")] == ["0", "2"]
    (tmp_path / "problems.json").write_text(json.dumps([{**ROW, "split": ["test"]}, {**ROW, "split": "test"}]))
    with pytest.raises(DataError, match="line 1: problem test-0: its split is .*; it can be train, validation"):
        load_problems(tmp_path)


def test_an_object_over_several_lines_is_named(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW, indent=1))
    with pytest.raises(
        DataError, match="test.jsonl, line 2: this object goes on to line 9; write each problem on one line"
    ):
        load_problems(tmp_path)
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW)[:-1] + ', "answer": 1}')
    with pytest.raises(
        DataError, match="line 2: problem test-1: it is not valid JSON .the name 'answer' is there twice"
    ):
        load_problems(tmp_path)


@pytest.mark.parametrize("table", [
    f",{HEAD}\n0,Which?,x,y,A\n", f"Unnamed: 0,{HEAD}\n17,Which?,x,y,A\n", f"{HEAD},,\nWhich?,x,y,A,,\n", f"{HEAD},,\nWhich?,x,y,A\n",
    f"{HEAD}\nWhich?,x,y,A,,\n", f"{HEAD}\nWhich?,x,y,A \n", f"{HEAD}\nWhich?,x,y, y\n", f"{HEAD.replace(',', ';')}\nWhich?;x;y;A\n",
    HEAD.replace(",", "\t") + "\nWhich?\tx\ty\tA\n", f"sep=;\n{HEAD.replace(',', ';')}\nWhich?;x;y;A\n", "Question, Choice A ,choice-b,ANSWER \nWhich?,x,y,A\n",
    f"\n,,,\n{HEAD}\n\n,,,\n , ,,\nWhich?,x,y,A\n\n", f"{HEAD}\rWhich?,x,y,A\r", f"\ufeff{HEAD}\r\n\r\nWhich?,x,y,A", f'"{HEAD.replace(",", chr(34) + "," + chr(34))}"\nWhich?,x,y,A\n',
])  # fmt: skip
def test_a_csv_as_other_programs_save_it(table, tmp_path):
    (tmp_path / "test.csv").write_text(table, newline="", encoding="utf-8")
    (problem,) = load_problems(tmp_path)
    assert (problem.id, problem.question, problem.choices) == ("test-0", "Which?", ("x", "y"))
    assert problem.answer == (1 if ", y\n" in table else 0)


def test_a_tsv_file_is_a_table_where_there_is_no_other(tmp_path):
    (tmp_path / "test.tsv").write_text(HEAD.replace(",", "\t") + "\nWhich?\tx, or so\ty;z\tB\n")
    assert load_problems(tmp_path)[0].choices == ("x, or so", "y;z")
    (tmp_path / "test.csv").write_text(f"{HEAD}\nWhere?,x,y,A\n")
    assert load_problems(tmp_path)[0].question == "Where?"


@pytest.mark.parametrize(("table", "message"), [
    (f"{HEAD},\nWhich?,x,y,A,more\n", "line 1: column 5 has no name and holds 'more'; name it or delete it"),
    (f",{HEAD}\n1,Which?,x,y,A\n1,Where?,x,y,A\n", "line 1: column 1 has no name and holds '1'"),
    (f"{HEAD}\nWhich?,x,y,A,more\n", "line 2: problem test-0: it has 5 cells for 4 columns"),
    (f"{HEAD},Answer\nWhich?,x,y,A,B\n", "line 1: two columns are called 'answer'"),
    ("question,choices,answer\nWhich?,x y,A\n", "line 1: unknown column 'choices': write each choice into a column of"),
    ("Which?|x|y|A\n", "line 1: it names no column such as question, choice_a"),
    ("", "line 1: it names no column such as question, choice_a"),
    (f'{HEAD}\nWhich?,x,y,A\n"Where?,x,y,A\n' + "Which?,x,y,A\n" * 900, "line 3: the quote that opens here is never closed"),
    (f'{HEAD}\n"Two\nlines?",x,"y,A\n' + "Which?,x,y,A\n" * 9, "line 3: the quote that opens here is never closed"),
    (f'{HEAD}\nWhich?,x,y,A\n"Where?,x,y,A\nWhich?,"x",y,A\n', "line 3: the quote that opens here closes in line 4 before its cell ends"),
    (f"{HEAD}\nWhich?,x,y,A\nWhe\0re?,x,y,A\n", "line 3: it has a NUL"),
])  # fmt: skip
def test_faults_of_a_csv_are_told_where_they_begin(table, message, tmp_path):
    (tmp_path / "test.csv").write_text(table, newline="")
    with pytest.raises(DataError, match=f"test.csv(,| has 1 faulty row:\n )? {message}"):
        load_problems(tmp_path)


def test_a_cell_may_be_longer_than_csv_allows(tmp_path):
    hint = "word " * 40_000
    (tmp_path / "test.csv").write_text(f"{HEAD},hint\nWhich?,x,y,A,{hint}\n")
    assert load_problems(tmp_path)[0].hint == hint


def test_a_csv_in_utf_16_says_how_to_save_it(tmp_path):
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        (tmp_path / "test.csv").write_text(f"{HEAD}\nWhich?,x,y,A\n", encoding=encoding)
        with pytest.raises(DataError, match="test.csv is in UTF-16 or UTF-32, not in UTF-8; save it as “CSV UTF-8”"):
            load_problems(tmp_path)


ACCENT = unicodedata.normalize("NFD", "é.png")


@pytest.mark.parametrize("cell", [
    "img\\a.png", ".\\img\\a.png", "./img/a.png", " img/a.png ", "IMG/A.png", "file://img/a.png", "file:img/a.png", ["img/a.png"],
    '["img/a.png"]', ACCENT, "É.png", "URI", "BASE64", "DATA", "data:image/png;base64,BASE64",
])  # fmt: skip
def test_a_picture_may_be_named_in_other_ways(cell, tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "a.png").write_bytes(picture())
    (tmp_path / "é.png").write_bytes(picture())
    code = base64.b64encode(picture()).decode()
    if isinstance(cell, str):
        cell = (
            cell.replace("URI", (tmp_path / "img" / "a.png").as_uri())
            .replace("DATA", f"data:image/png;base64,{code}")
            .replace("BASE64", code)
        )
    as_jsonl(tmp_path, {**ROW, "image": cell})
    (problem,) = load_problems(tmp_path)
    assert problem.image is not None and problem.image.getpixel((0, 0)) == (255, 0, 0)


def test_a_name_with_a_backslash_is_its_own_first(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "a.png").write_bytes(picture())
    try:
        (tmp_path / "img\\a.png").write_bytes(picture(size=(9, 9)))
    except OSError:
        pytest.skip("no file can be called so here")
    as_jsonl(tmp_path, {**ROW, "image": "img\\a.png"})
    assert load_problems(tmp_path)[0].image.size == ((4, 3) if os.name == "nt" else (9, 9))


@pytest.mark.parametrize(("cell", "message"), [
    ("https://example.com/a.png", "is an address, and nothing is fetched: download it into the folder"),
    ("s3://bucket/a.png", "is an address"), ("C:\\data\\a.png", "lies outside the folder"), ("\\\\server\\a.png", "lies outside the folder"),
    ("..\\a.png", "lies outside the folder"), ("file:///etc/hostname", "lies outside the folder"),
    ("a.png;b.png", "names several"), ("a.png, b.png", "names several"), ("['a.png', 'b.png']", "names several"),
    ("a,1.png;b.png", "names several"), ("img", "is a folder; name a file in it"), (".", "is a folder"),
    ("x" * 300 + ".png", "has a name of 304 characters, longer than a file's can be"), ("a/" * 900 + "a.png", "has a name of 1805 characters"),
    ("a\x00.png", "has a NUL in its name"), (5, "image is 5, not the name of a file"), (True, "image is True"),
    ({"bytes": None, "path": "a.png"}, "its picture has no bytes, only the name 'a.png'"),
    ("data:image/png;base64,!!", "is not complete base64"), ("data:image/png,x", "is a data: URL without base64"),
    ("data:image/png;base64,", "its picture is empty, 0 bytes"), ("iVBORw0KGgo" + "A" * 60, "its picture "), ("empty.png", "is empty, 0 bytes"),
])  # fmt: skip
def test_what_can_be_no_picture_of_the_folder_is_told(cell, message, tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "test.jsonl").write_text(
        json.dumps({**ROW, "image": "a.png"}) + "\n" + json.dumps({**ROW, "image": cell})
    )
    for missing in ("error", "text-only"):
        with pytest.raises(DataError, match=f"line 2: problem test-1: .*{message}") as caught:
            load_problems(tmp_path, missing_images=missing)
        assert len(str(caught.value)) < 600


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, size: tuple[int, int] = (4, 3)) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


PIXELS = zlib.compress(bytes(3 * 13))
LONG_TEXT = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 2_000_000))


@pytest.mark.parametrize("data", [
    png(), png(chunk(b"IDAT", PIXELS[:-8])), png(chunk(b"IDAT", b"no stream at all")), png(chunk(b"IDAT", PIXELS), LONG_TEXT),
    png(LONG_TEXT, chunk(b"IDAT", PIXELS)), png(chunk(b"IDAT", PIXELS), size=(0, 3)), png(chunk(b"IDAT", PIXELS), size=(60_000, 60_000)),
    picture("JPEG", (90, 90))[:-60], picture("GIF")[:-8], picture("TIFF")[:-20], picture("JPEG")[:30], picture("TIFF", mode="F"),
], ids=range(12))  # fmt: skip
@pytest.mark.parametrize("write", [as_jsonl, as_official, as_parquet])
def test_a_picture_whose_content_is_unsound_is_refused_while_it_is_read(data, write, tmp_path):
    (tmp_path / "test" / "7").mkdir(parents=True)
    for place in (tmp_path / "a.png", tmp_path / "test" / "7" / "a.png"):
        place.write_bytes(data)
    write(tmp_path, {**ROW, "image": {"bytes": data, "path": "a.png"} if write is as_parquet else "a.png"})
    with pytest.raises(DataError, match="problem (7|test-0): its picture .*(cannot be read|not an image file)"):
        load_problems(tmp_path)


@pytest.mark.parametrize("data", [
    picture("JPEG", mode="CMYK"), picture("GIF", save_all=True, append_images=[Image.new("RGB", (4, 3), "blue")]),
    picture("PNG", save_all=True, append_images=[Image.new("RGB", (4, 3), "blue")]), picture("PNG", mode="P"), picture("PNG", mode="I;16"),
    picture("PNG", mode="1"), picture("WEBP", lossless=True), picture("BMP"), picture("TIFF", mode="LA"),
], ids=range(9))  # fmt: skip
def test_pictures_of_other_kinds_are_read(data, tmp_path):
    (tmp_path / "a.png").write_bytes(data)
    as_jsonl(tmp_path, {**ROW, "image": "a.png"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (problem,) = load_problems(tmp_path)
    assert problem.image.mode == "RGB" and rgb(problem.image).size == (4, 3)
    assert problem.image.fp is not None, "it is not kept decoded"


def test_a_run_without_any_picture_stops_whatever_was_asked(tmp_path):
    rows = [{**ROW, "image": f"{number}.png"} for number in range(3)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for missing in ("error", "text-only"):
        with pytest.raises(
            DataError, match="test.jsonl: 3 of 3 pictures are missing: .*; not one was found, so probably"
        ):
            load_problems(tmp_path, missing_images=missing)
    (tmp_path / "2.png").write_bytes(picture())
    for limit in (None, 1, 2):  # a draw that has none of them is no reason to stop
        assert load_problems(tmp_path, limit=limit, missing_images="text-only")


def test_names_of_missing_pictures_stay_on_one_line(tmp_path):
    as_jsonl(tmp_path, {**ROW, "image": "two\nlines" * 20})
    with pytest.raises(DataError, match="1 of 1 pictures are missing") as caught:
        load_problems(tmp_path)
    assert str(caught.value).isprintable()


def test_official_pictures_that_are_all_missing_stop_too(tmp_path):
    as_official(tmp_path, {**ROW, "image": "image.png"})
    with pytest.raises(DataError, match="1 of 1 pictures are missing: problem 7 .*; not one was found, so probably"):
        load_problems(tmp_path, missing_images="text-only")


def test_what_the_disk_objects_to_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="x is no source of problems|cannot read"):
        load_problems("x" * 5000)
    with pytest.raises(DataError, match="names the home folder of a user whom this machine does not know"):
        load_problems("~nobody-of-this-name/problems")
    for split in ("/train", "../train", "a/b", ""):
        with pytest.raises(
            DataError, match="the split is .*, which cannot name a file|has no problems of the split ''"
        ):
            load_problems(tmp_path, split)
    if not Path("/proc/self/mem").exists():
        pytest.skip("no file here that exists and cannot be read")
    (tmp_path / "a.png").symlink_to("/proc/self/mem")  # its owner may open it, and reading it is an error of the disk
    as_jsonl(tmp_path, {**ROW, "image": "a.png"})
    with pytest.raises(DataError, match="problem test-0: its picture .*a.png cannot be read .Input/output error"):
        load_problems(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    (tmp_path / "test.csv").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match="cannot read .*test.csv: Input/output error"):
        load_problems(tmp_path)


@pytest.mark.parametrize(("names", "message"), [
    (["test-00000-of-00002"], "has 1 of the 2 files of the split 'test'"),
    (["test-00000-of-00003", "test-00002-of-00003"], "has 2 of the 3 files"),
    (["test", "test-00000-of-00001"], "different sets"),
    (["test-00000-of-00001", "test-00000-of-00002", "test-00001-of-00002"], "different sets"),
    (["test-00000-of-00001", "test-00000-of-00001-0123abcd"], "different sets"),
])  # fmt: skip
def test_a_part_of_the_numbered_files_of_a_split_is_never_all(names, message, tmp_path):
    as_parquet(tmp_path, ROW)
    table = (tmp_path / "test.parquet").read_bytes()
    (tmp_path / "test.parquet").unlink()
    for name in names:
        (tmp_path / f"{name}.parquet").write_bytes(table)
    with pytest.raises(DataError, match=message):
        load_problems(tmp_path)


def test_all_numbered_files_of_a_split_are_read(tmp_path):
    as_parquet(tmp_path, ROW)
    table = (tmp_path / "test.parquet").read_bytes()
    (tmp_path / "test.parquet").unlink()
    for name in ("test-00000-of-00002", "test-00001-of-00002-0123abcd"):
        (tmp_path / f"{name}.parquet").write_bytes(table)
    assert [problem.id for problem in load_problems(tmp_path)] == ["test-0", "test-1"]


@pytest.mark.parametrize(("asked", "message"), [
    ({"limit": -1}, "limit is -1; give a whole number"), ({"limit": 1.5}, "limit is 1.5"), ({"limit": "2"}, "limit is '2'"),
    ({"split": None}, "the split is None"), ({"data": None}, "None is no source"), ({"data": " "}, "' ' is no source"),
])  # fmt: skip
def test_what_is_no_number_no_split_and_no_place_is_refused(asked, message, tmp_path):
    as_jsonl(tmp_path, ROW)
    with pytest.raises(DataError, match=message):
        load_problems(**{"data": tmp_path, **asked})


def test_two_columns_of_one_name_are_refused(tmp_path):
    as_parquet(tmp_path, ROW)
    table = pq.read_table(tmp_path / "test.parquet")
    pq.write_table(table.append_column("question", pa.array(["another"])), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="several columns called question"):
        load_problems(tmp_path)
