"""Tables and pictures as other people might have them, made from a seed: sound ones, and such as have any fault.

`write(folder, seed)` makes a folder; `outcome(folder, seed)` reads it and says how that ended. Only two ends are right: it was read,
or it was refused by an `MMLoraError` that is one sentence and names the file.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import random
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

from mmlora.errors import MMLoraError
from mmlora.problems.load import load_problems
from mmlora.problems.pictures import rgb

SEEDS = st.integers(0, 2**32 - 1)
FAULT = 0.03  # how likely a cell, a row or a file is spoilt

TEXTS = ("Which?", "Where, then?", 'the "tallest"', "two\nlines", "tab\there", "semi;colon", "été", "e\u0301te\u0301", "水", "🧲", "{}",
         "\ufeffmark", "\u2028line", "=1+1", "'", "a\\b", " padded ", "\u200fש", "<image>", "NaN", "null")  # fmt: skip
BAD_TEXTS = (
    "",
    "   ",
    "\u200b",
    "\ud800",
    "a\udcffb",
    "\x00",
    7,
    1.5,
    float("nan"),
    True,
    None,
    [],
    ["a"],
    {"a": 1},
    10**400,
    "x" * 140_000,
)
BAD_CHOICES = ("yes", ["yes"], [], ["yes", "yes"], ["yes", "yes "], ["yes", ""], ["yes", None], ["yes", 2], [["yes"], ["no"]],
               '["yes", "no"]', "['yes', 'no']", "[" * 3000, None, {"A": "yes", "B": "no"}, [str(i) for i in range(27)],
               ["é", "e\u0301"], ["yes", "\ud800"], 5, "yes;no")  # fmt: skip
BAD_ANSWERS = (-1, 9, 0.0, 1.0, 1.5, float("nan"), float("inf"), True, None, "", " A ", "a", "Z", "0", "-1", "yes", [0], {"answer": 0}, "²",
               10**30)  # fmt: skip
BAD_FIELDS = {
    "grade": ("4", "grade0", "grade²", "four", "", "grade" + "9" * 5000, 4, None), "subject": ("Natural Science", "", 3, None),
    "id": (7, 7.0, 7.5, "", " ", True, None, "same", "same", "../x", "a\nb", "\ud800", ["x"], "x" * 5000, "\x1b[31m"),
    "split": ("train", "Test", "", None, 3, ["test"], {}, "dev", " test "), "wording": ("seen", "no", 1), "hint": BAD_TEXTS,
    "solution": BAD_TEXTS, "caption": BAD_TEXTS, "hnt": ("x",), "Hint": ("x",), "": ("", "x"), "Unnamed: 0": (0, "x"), "\ud800": ("x",),
}  # fmt: skip
NAMES = ("a.png", "B.PNG", "two words.png", "é.png", "img/c.jpg", "d", "e.txt", "empty.png", "comma,name.png")


def write(folder: Path, seed: int) -> None:
    """Make a folder with a table and pictures, the same ones from the same seed."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "img").mkdir(exist_ok=True)
    names = rng.sample(NAMES, rng.randint(1, 4))
    for name in names:
        (folder / name).write_bytes(_picture_file(rng))
    rows = [_row(rng, folder, names) for _ in range(rng.randint(1, 4))]
    kind = rng.choice((_csv, _csv, _jsonl, _json, _official, _parquet))
    kind(rng, folder, rows)
    if rng.random() < 2 * FAULT:
        _damage(rng, rng.choice([path for path in folder.rglob("*") if path.is_file()]))


def outcome(folder: Path, seed: int) -> str:
    """ "read" or "refused". Raises `AssertionError` for any other end, with the seed."""
    try:
        problems = load_problems(folder, "test", missing_images=random.Random(seed).choice(("error", "text-only")))
    except MMLoraError as error:
        said = str(error)
        assert str(folder) in said, f"seed {seed}: no file is named: {said}"
        assert said.isprintable() or "faulty row" in said, f"seed {seed}: no sentence: {said!r}"
        assert 20 < len(said) < 6000 and said.encode(), f"seed {seed}: {len(said)} characters: {said[:300]}"
        return "refused"
    except Exception as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    for problem in problems:
        texts = (problem.id, problem.question, *problem.choices, problem.hint, problem.solution, problem.caption)
        assert all(text.encode() is not None for text in texts) and problem.question.strip(), f"seed {seed}: {texts}"
        assert len({choice.strip() for choice in problem.choices} - {""}) == len(problem.choices), (
            f"seed {seed}: {problem.choices}"
        )
        assert problem.image is None or rgb(problem.image).size == problem.image.size, f"seed {seed}: {problem.id}"
        assert problem.categories and 0 <= problem.answer < len(problem.choices)
    return "read"


def _row(rng: random.Random, folder: Path, names: list[str]) -> dict[str, Any]:
    choices = rng.sample(TEXTS, rng.randint(2, 4))
    row: dict[str, Any] = {
        "question": rng.choice(TEXTS), "choices": choices, "answer": rng.choice((0, 1, "A", "B")), "hint": rng.choice(("", "Look."))
    }  # fmt: skip
    if rng.random() < 0.6:
        row["image"] = rng.choice(names)
        if rng.random() < 4 * FAULT:
            row["image"] = _image_cell(rng, folder, row["image"])
    for name, bad in {"question": BAD_TEXTS, "choices": BAD_CHOICES, "answer": BAD_ANSWERS, **BAD_FIELDS}.items():
        if rng.random() < FAULT / 2:
            row[name] = rng.choice(bad)
    if rng.random() < FAULT:
        row.pop(rng.choice(list(row)))
    return row


def _image_cell(rng: random.Random, folder: Path, name: str) -> Any:
    """The picture named in another way, or not at all."""
    data = (folder / name).read_bytes()
    code = base64.b64encode(data).decode()
    return rng.choice((
        name.replace("/", "\\"), f".\\{name}", f"./{name}", f" {name} ", name.upper(), name.lower(), unicodedata.normalize("NFD", name),
        (folder / name).as_uri(), f"file://{name}", str(folder / name), f"https://example.com/{name}", f"s3://bucket/{name}", code,
        code[: len(code) // 2], f"data:image/png;base64,{code}", "data:image/png;base64,!!", "data:image/png,x", "data:", f"{name};{name}",
        f"{name},{name}", [name], [name, name], json.dumps([name]), [], "img", ".", "..", "/", f"../{name}", f"img\\..\\..\\{name}",
        f"C:\\{name}", f"\\\\server\\{name}", "x" * 5000 + ".png", "no.png", "a\x00.png", "\ud800.png", 5, True, {"bytes": None, "path": name},
        {"bytes": code}, data, float("nan"), "iVBORw0KGgo" + "A" * 60, "/9j/" + "A" * 300, "file://[", "~/" + name, "a/" * 800,
    ))  # fmt: skip


def _picture_file(rng: random.Random) -> bytes:
    """A picture, sound in four of five."""
    size = rng.randint(1, 12), rng.randint(1, 12)
    noise = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
    if rng.random() < 0.7:
        return _saved(noise, rng.choice(("PNG", "JPEG", "GIF", "WEBP", "BMP")))
    whole, exif = _saved(noise, "PNG"), noise.getexif()
    exif[0x0112] = rng.randint(0, 9)
    other = noise.rotate(180)
    deep = Image.fromarray(np.full((size[1], size[0]), 40_000, np.uint16))
    head = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + rng.randbytes(3 * size[0]) for _ in range(size[1])))
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 2_000_000))
    return rng.choice((
        lambda: _saved(noise.quantize(4), "PNG"), lambda: _saved(noise.convert("LA"), "PNG"), lambda: _saved(noise.convert("CMYK"), "JPEG"),
        lambda: _saved(deep, "PNG"), lambda: _saved(deep, "TIFF"), lambda: _saved(noise.convert("F"), "TIFF"),
        lambda: _saved(noise.convert("1"), "PNG"), lambda: _saved(noise, "GIF", save_all=True, append_images=[other]),
        lambda: _saved(noise, "PNG", save_all=True, append_images=[other]), lambda: _saved(noise, "JPEG", exif=exif),
        lambda: _saved(noise, "PNG", exif=exif), lambda: _saved(noise, "JPEG", exif=b"Exif\0\0broken"), lambda: b"", lambda: b"no picture",
        lambda: whole[: rng.randrange(len(whole))], lambda: _saved(noise, "JPEG")[:-20], lambda: _flipped(rng, whole),
        lambda: _flipped(rng, _saved(noise, "JPEG")), lambda: _flipped(rng, _saved(noise, "TIFF")), lambda: _flipped(rng, _saved(noise, "GIF")),
        lambda: _png(head), lambda: _png(head, _chunk(b"IDAT", data[:-9])), lambda: _png(head, _chunk(b"IDAT", data), text),
        lambda: _png(head, text, _chunk(b"IDAT", data)), lambda: _png(head, _chunk(b"IDAT", rng.randbytes(20))),
        lambda: _png(struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0), _chunk(b"IDAT", data)),
        lambda: _png(struct.pack(">IIBBBBB", 0, size[1], 8, 2, 0, 0, 0), _chunk(b"IDAT", data)),
        lambda: _png(struct.pack(">IIBBBBB", *size, 8, 9, 0, 0, 0), _chunk(b"IDAT", data)),
    ))()  # fmt: skip


def _saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def _png(head: bytes, *chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + b"".join(chunks) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _flipped(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _damage(rng: random.Random, path: Path) -> None:
    data = path.read_bytes() or b"x"
    path.write_bytes(rng.choice((data[: rng.randrange(len(data))], _flipped(rng, data), data + rng.randbytes(8))))


def _csv(rng: random.Random, folder: Path, rows: list[dict]) -> None:
    separator, end = rng.choice((",", ",", ";", "\t")), rng.choice(("\n", "\r\n", "\r"))
    spread = [_spread(row) for row in rows]
    columns = list(dict.fromkeys(name for row in spread for name in row))
    file = io.StringIO(newline="")
    writer = csv.writer(
        file, delimiter=separator, lineterminator=end, quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    )
    index = rng.random() < 0.1
    writer.writerow([""] * index + [_header(rng, name) for name in columns])
    for number, row in enumerate(spread):
        writer.writerow([number] * index + [row.get(name, "") for name in columns])
        if rng.random() < 0.1:
            file.write(rng.choice((end, separator * (len(columns) - 1 + index) + end)))
    text = file.getvalue()
    if rng.random() < FAULT:
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice(('"', "\0", separator, "\n", "é")) + text[place:]
    name = rng.choice(("test", "problems")) + (".tsv" if separator == "\t" and rng.random() < 0.5 else ".csv")
    (folder / name).write_bytes(_encoded(rng, text))


def _spread(row: dict) -> dict:
    """The row with its choices in columns of their own."""
    choices = row.get("choices")
    if not isinstance(choices, list):
        return row
    return {
        **{k: v for k, v in row.items() if k != "choices"},
        **{f"choice_{chr(97 + i)}": each for i, each in enumerate(choices)},
    }


def _header(rng: random.Random, name: str) -> str:
    return rng.choice((name, name, name, name.title(), f" {name} ", name.replace("_", " ")))


def _encoded(rng: random.Random, text: str) -> bytes:
    encoding = (
        "utf-8"
        if rng.random() < 0.8
        else rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1"))
    )
    return text.encode(encoding, "replace")


def _jsonl(rng: random.Random, folder: Path, rows: list[dict]) -> None:
    lines = [
        json.dumps(row, default=repr, indent=2 if rng.random() < FAULT else None, ensure_ascii=True) for row in rows
    ]
    if rng.random() < FAULT:
        lines.insert(
            rng.randrange(len(lines) + 1),
            rng.choice(("[]", "5", "{", "null", "[" * 5000, '{"question": 1, "question": 2}')),
        )
    text = rng.choice(("\n", "\r\n", "\n\n")).join(lines)
    (folder / rng.choice(("test.jsonl", "problems.jsonl"))).write_bytes(
        _encoded(rng, text if rng.random() < 0.9 else f"[{','.join(lines)}]")
    )


def _json(rng: random.Random, folder: Path, rows: list[dict]) -> None:
    text = json.dumps(
        rows if rng.random() < 0.9 else rows[0], default=repr, indent=rng.choice((None, 1)), ensure_ascii=True
    )
    (folder / rng.choice(("test.json", "problems.json"))).write_bytes(_encoded(rng, text))


def _official(rng: random.Random, folder: Path, rows: list[dict]) -> None:
    problems: dict[str, Any] = {str(number): {"split": "test", **row} for number, row in enumerate(rows)}
    for pid, row in problems.items():
        if isinstance(row.get("image"), str) and rng.random() < 0.8:
            place = folder / rng.choice(("", "images")) / "test" / pid
            place.mkdir(parents=True, exist_ok=True)
            (place / "image.png").write_bytes(_picture_file(rng))
            row["image"] = "image.png"
    splits: Any = {"test": list(problems), "train": []}
    captions: Any = {"captions": {pid: "A picture." for pid in problems}}
    if rng.random() < 2 * FAULT:
        problems[rng.choice(list(problems))] = rng.choice((None, [], "x", 5))
    if rng.random() < 2 * FAULT:
        splits = rng.choice(
            (
                [],
                {"test": None},
                {"test": {"1": 1}},
                {"test": [None]},
                {"test": [["1"]]},
                {"test": ["no"]},
                {"test": ["0", 0]},
                None,
            )
        )
    if rng.random() < 2 * FAULT:
        captions = rng.choice(({"captions": None}, {"captions": []}, [], None, {"0": 5}, {"0": "\ud800"}))
    for name, content in (("problems", problems), ("pid_splits", splits), ("captions", captions)):
        if rng.random() > FAULT:
            (folder / f"{name}.json").write_bytes(_encoded(rng, json.dumps(content, default=repr)))


def _parquet(rng: random.Random, folder: Path, rows: list[dict]) -> None:
    texts = ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    defaults = {"task": "closed choice", "grade": "grade2", "subject": "natural science"}
    table = {}
    for name in ("image", "question", "choices", "answer", *texts, "id"):
        values = [row.get(name, defaults.get(name, "" if name in texts else None)) for row in rows]
        if name == "image" and rng.random() < 0.8:
            values = [
                {"bytes": (folder / v).read_bytes(), "path": v} if isinstance(v, str) and v in NAMES else None
                for v in values
            ]
        if name == "answer" and rng.random() < 0.8:
            values = ["AB".index(v) if v in ("A", "B") else v for v in values]
        table[name] = _column(values)
    if rng.random() < FAULT:
        table.pop(rng.choice(list(table)))
    if rng.random() < FAULT:
        table["hint"] = pa.array([b"\xff"] * len(rows), pa.binary()).view(pa.string())
    pq.write_table(pa.table(table), folder / "test.parquet")


def _column(values: list) -> pa.Array:
    """As whatever type Arrow finds for all of them, or else as texts."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return pa.array(
            [value if value is None or isinstance(value, str) and value.isascii() else ascii(value) for value in values]
        )
