"""Road signs for lesson 08: pictures that no base has seen, drawn in a moment, with a spreadsheet beside them."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 256  # pixels
COLOURS = {"red": "#c1121f", "blue": "#0353a4", "yellow": "#f9c80e", "green": "#2b9348"}
SHAPES = {"round": 0, "triangular": 3, "square": 4, "octagonal": 8}  # corners
MARKS = {  # lines from and to, the sign's radius being 3
    "a bar": (((-1, 0), (1, 0)),),
    "a cross": (((-1, -1), (1, 1)), ((-1, 1), (1, -1))),
    "an arrow to the left": (((-1, 0), (1, 0)), ((-1, 0), (0, -0.7)), ((-1, 0), (0, 0.7))),
    "an arrow to the right": (((-1, 0), (1, 0)), ((1, 0), (0, -0.7)), ((1, 0), (0, 0.7))),
}
QUESTIONS = ("What colour is this sign?", "Which shape has this sign?", "What is drawn on this sign?")
COLUMNS = ["question", "choice_a", "choice_b", "choice_c", "choice_d", "answer", "image", "caption", "solution"]


def sign(lot: random.Random, colour: str, shape: str, mark: str) -> Image.Image:
    """RGB: a sign on its pole, anywhere before a sky of any light colour."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(lot.randint(150, 240) for _ in range(3)))
    pen, radius = ImageDraw.Draw(image), lot.uniform(55, 95)
    x, y = (lot.uniform(radius + 5, SIDE - radius - 5) for _ in range(2))
    pen.rectangle((x - 5, y, x + 5, SIDE), fill="#6c757d")
    if SHAPES[shape]:
        pen.regular_polygon((x, y, radius), SHAPES[shape], lot.uniform(-8, 8), COLOURS[colour], "white", 4)
    else:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), COLOURS[colour], "white", 4)
    for ends in MARKS[mark]:
        line = [(x + right * radius / 3, y + down * radius / 3) for right, down in ends]
        pen.line(line, "black" if colour == "yellow" else "white", max(5, round(radius / 10)))
    return image


def questions(lot: random.Random, count: int) -> Iterator[tuple[Image.Image, str, str, tuple[str, ...], str]]:
    """`count` times a sign, its caption, a question about it, the four choices, and the right one."""
    kinds = [tuple(each) for each in (COLOURS, SHAPES, MARKS)]
    for number in range(count):
        said, asked = [lot.choice(each) for each in kinds], number % len(QUESTIONS)
        caption = f"a {said[0]} {said[1]} sign with {said[2]}"
        yield sign(lot, *said), caption, QUESTIONS[asked], kinds[asked], said[asked]


def write(folder: Path, train: int, test: int, seed: int = 0) -> None:
    """`train.csv` and `test.csv` in the folder, and a picture for each row."""
    lot = random.Random(seed)
    for split, count in (("train", train), ("test", test)):
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for number, (picture, caption, question, choices, answer) in enumerate(questions(lot, count)):
                image = f"{split}-{number}.png"
                picture.save(folder / image)
                shown = lot.sample(choices, len(choices))
                table.writerow([question, *shown, answer, image, caption, f"The picture shows {caption}."])
