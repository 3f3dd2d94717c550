"""How well does a run learn pictures that its base never saw? Three sets, written as anybody's own folder with a spreadsheet.

    python benchmarks/own_pictures.py digits                # scikit-learn's handwritten digits, real ones: ten choices
    python benchmarks/own_pictures.py signs                 # lesson 08's road signs: four choices
    python benchmarks/own_pictures.py stamps --source /usr/share/tuxpaint/stamps    # Tux Paint's, some photographs: four kinds

Up to a thousand problems to train on, 200 to answer, all with a caption, which holds the answer: seeing is what is measured.
The same again where text is all there is, for as many minutes as the run aligned and trained. Writes results/own/SET.json.
Digits need scikit-learn, stamps Debian's tuxpaint-stamps-default.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from controls import TRAINED, text_only
from PIL import Image

from mmlora import Experiment, Settings
from mmlora.evaluation.scores import score
from mmlora.files import sha256_of_all
from mmlora.lessons import signs
from mmlora.paths import RESULTS
from mmlora.reporting import machine

SIDE = 256  # pixels
TRAIN, TEST = 1000, 200
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Row:
    """One line of the spreadsheet, and its picture."""

    image: Image.Image
    caption: str
    question: str
    choices: tuple[str, ...]
    answer: str


def digits(lot: random.Random, source: Path | None) -> Iterator[Row]:
    """Eight by eight pixels each, written by 13 people, the same ones in training and test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for at in lot.sample(range(len(found.images)), TRAIN + TEST):
        ink = Image.fromarray((255 - found.images[at] * 255 / 16).astype("uint8"))
        name = NUMBERS[found.target[at]]
        yield Row(ink.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB"), f"the digit {name}", "Which digit is this?",
                  NUMBERS, name)  # fmt: skip


def road_signs(lot: random.Random, source: Path | None) -> Iterator[Row]:
    """Lesson 08's: a sign in a colour and of a shape, with a mark on it, somewhere before a sky."""
    return (Row(*each) for each in signs.questions(lot, TRAIN + TEST))


def stamps(lot: random.Random, source: Path | None) -> Iterator[Row]:
    """A thing and which of four kinds it is; the kinds are the folders that hold the most stamps with an English name."""
    if source is None or not source.is_dir():
        raise typer.BadParameter("stamps need --source, Tux Paint's folder of stamps")
    by_kind: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(source.glob("*/**/*.png")):
        told = path.with_suffix(".txt")
        if told.is_file() and (name := told.read_text(encoding="utf-8").splitlines()[0].strip(" .!")):
            by_kind.setdefault(path.relative_to(source).parts[0], []).append((name.lower(), path))
    kinds = tuple(sorted(sorted(by_kind, key=lambda kind: -len(by_kind[kind]))[:4]))
    found = [(kind, *each) for kind in kinds for each in by_kind[kind]]
    for kind, name, path in lot.sample(found, len(found)):
        with Image.open(path) as stamp:
            drawn = stamp.convert("RGBA")
        drawn.thumbnail((SIDE, SIDE))
        paper = Image.new("RGBA", (SIDE, SIDE), "white")
        paper.alpha_composite(drawn, ((SIDE - drawn.width) // 2, (SIDE - drawn.height) // 2))
        yield Row(paper.convert("RGB"), f"{name}, which belongs to {kind}", "To what does this belong?", kinds, kind)


SETS: dict[str, Callable[[random.Random, Path | None], Iterator[Row]]] = {
    "digits": digits,
    "signs": road_signs,
    "stamps": stamps,
}


def write(name: str, folder: Path, source: Path | None) -> dict[str, int]:
    """The set as a folder that `load_problems` takes; how many problems each split has."""
    lot = random.Random(0)
    rows = list(SETS[name](lot, source))
    rows = lot.sample(rows, min(len(rows), TRAIN + TEST))
    splits, counts = {"test": rows[:TEST], "train": rows[TEST:]}, {}
    for split, some in splits.items():
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            letters = [f"choice_{chr(97 + i)}" for i in range(len(some[0].choices))]
            table = csv.writer(file)
            table.writerow(["question", *letters, "answer", "image", "caption", "solution"])
            for number, row in enumerate(some):
                image = f"{split}-{number}.png"
                row.image.save(folder / image)
                shown = lot.sample(row.choices, len(row.choices))
                solution = f"The picture shows {row.caption}."
                table.writerow([row.question, *shown, row.answer, image, row.caption, solution])
        counts[split] = len(some)
    return counts


def main(
    name: Annotated[str, typer.Argument(help="digits, signs or stamps")],
    minutes: Annotated[float, typer.Option(help="of the whole run")] = 15,
    source: Annotated[Path | None, typer.Option(help="where stamps are")] = None,
):
    """Learn one set, with its pictures and without."""
    if name not in SETS:
        raise typer.BadParameter(f"no set is called {name!r}; there are {', '.join(SETS)}")
    state = machine.git_state()
    with TemporaryDirectory() as place:
        folder, run = Path(place) / "pictures", Path(place) / "run"
        folder.mkdir()
        counts = write(name, folder, source)
        settings = Settings.of({"data": str(folder), "minutes": minutes, "train_problems": counts["train"],
                                "test_problems": counts["test"], "probe_problems": 0})  # fmt: skip
        seen = Experiment(settings, run)
        metrics = seen.run()
        alone = sum(metrics.minutes[part] for part in TRAINED)
        blind, told = text_only(metrics, seen.test, seen.train, alone)
        record = {
            "set": name,
            "problems": counts,
            "sha256": sha256_of_all(
                sorted(folder.iterdir())
            ),  # tables and pictures: whether somebody else's are the same
            "align": json.loads((run / "align.json").read_text(encoding="utf-8")),
            "run": asdict(metrics),
            "text_only": {**score(*blind).to_dict(), **told},
            **machine.circumstances(state),
        }
    target = RESULTS / "own" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print({"accuracy": record["run"]["accuracy"]["avg"], "base": record["run"]["base"]["avg"],
           "text_only": record["text_only"]["avg"]}, f"-> {target}")  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
