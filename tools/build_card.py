"""Bring the data card up to date: `python -m tools.build_card` (some minutes).

It builds MiniSQA, fills the parts of data/README.md between `<!-- name -->` and `<!-- /name -->`, and draws
data/preview.png.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from mmlora.minisqa import SKILLS, SPLIT_SIZES, UNTRAINED, dataset, generate
from mmlora.minisqa.draw import font
from mmlora.minisqa.wordings import WORDINGS, reworded
from mmlora.paths import DATA
from tools.honesty import text_only

TRAIN, TEST = 16_000, 8_000  # image problems for the honesty figures: a standard error of half a point
COLUMNS, CELL, PICTURE = 7, (184, 262), 160  # of the preview, in pixels


def rows() -> dict[str, list[dict]]:
    """The built problems of each split without their pictures."""
    folder = dataset.build()
    fields = ["skill", "subject", "hint", "grade", "choices", "answer", "caption", "wording"]
    return {split: pq.read_table(folder / f"{split}.parquet", columns=fields).to_pylist() for split in SPLIT_SIZES}


def context(problems: list[dict]) -> str:
    """ "image", "image, hint", "hint" or "none", as a skill's problems have them."""
    kinds = (("image", "caption"), ("hint", "hint"))
    return ", ".join(name for name, field in kinds if any(row[field] for row in problems)) or "none"


def skill_table(splits: dict[str, list[dict]]) -> str:
    counts = {split: Counter(row["skill"] for row in problems) for split, problems in splits.items()}
    header = ["skill", "subject", "context", "grades", "choices", *splits]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, skill in sorted(SKILLS.items(), key=lambda item: (item[1].subject, item[1].draw.__module__)):
        problems = [row for row in splits["transfer" if name in UNTRAINED else "train"] if row["skill"] == name]
        choices = sorted({len(row["choices"]) for row in problems})
        grades, numbers = "{}-{}".format(*skill.grades), " or ".join(map(str, choices))
        cells = [name, skill.subject.split()[0], context(problems), grades, numbers, *(counts[s][name] for s in splits)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def column_table(splits: dict[str, list[dict]]) -> str:
    def columns(row: dict) -> list[str]:
        band = "G1-6" if int(row["grade"].removeprefix("grade")) <= 6 else "G7-12"
        none = ["NO"] * (not row["hint"] and not row["caption"])
        subject = {"natural": "NAT", "social": "SOC", "language": "LAN"}[row["subject"].split()[0]]
        return [subject, *["TXT"] * bool(row["hint"]), *["IMG"] * bool(row["caption"]), *none, band]

    names = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12")
    lines = [f"| split | problems | {' | '.join(names)} | chance |", "|---" * (len(names) + 3) + "|"]
    for split, problems in splits.items():
        counts = Counter(name for row in problems for name in columns(row))
        chance = sum(1 / len(row["choices"]) for row in problems) / len(problems)
        shares = " | ".join(f"{counts[name] / len(problems):.1%}" for name in names)
        lines.append(f"| {split} | {len(problems):,} | {shares} | {chance:.1%} |")
    return "\n".join(lines)


def wording_table(splits: dict[str, list[dict]]) -> str:
    unseen = Counter(row["skill"] for row in splits["test"] if row["wording"] == "unseen")
    example = next(generate("train", 1, skills=["Interpret line graphs"]))
    words = reworded(example.question)
    return (
        f"{unseen.total()} of the {len(splits['test']):,} test problems ask in such words, {min(unseen.values())} to "
        f"{max(unseen.values())} of a skill; {len(WORDINGS)} kinds of question have them. “{example.question}” becomes "
        f"“{words.test}” in the test, and “{words.train[0]}” or “{words.train[1]}” in training."
    )


def honesty(with_image: list[str]) -> str:
    problems = ([replace(problem, image=None) for problem in generate(split, count, skills=with_image)]
                for split, count in (("train", TRAIN), ("test", TEST)))  # fmt: skip
    found = text_only(*problems)
    worst = max(found.by_skill, key=lambda name: _sigmas(found.by_skill[name]))
    accuracy, chance, n = found.by_skill[worst]
    return (
        f"Trained on {TRAIN:,} and tested on {TEST:,} image problems, the text-only classifier reaches "
        f"**{found.accuracy:.1%}** (standard error {found.standard_error:.1%}). Always taking the majority position "
        f"gives {found.majority:.1%}, any position {found.chance:.1%}. Of the {len(found.by_skill)} image skills the "
        f"one farthest above chance is “{worst}”: {accuracy:.1%} against {chance:.1%} on {n} problems, "
        f"{_sigmas(found.by_skill[worst]):.1f} standard errors."
    )


def _sigmas(result: tuple[float, float, int]) -> float:
    accuracy, chance, n = result
    return (accuracy - chance) / (chance * (1 - chance) / n) ** 0.5


def preview(with_image: list[str]) -> Image.Image:
    """One picture of each image skill, with its question and choices; 256 colours keep it small."""
    width, height = CELL
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(with_image) // COLUMNS) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, name in enumerate(with_image):
        problem = next(generate("test", 1, seed=3, skills=[name]))
        left, top = place % COLUMNS * width, place // COLUMNS * height
        sheet.paste(problem.image.resize((PICTURE, PICTURE), Image.LANCZOS), (left + (width - PICTURE) // 2, top + 6))
        lines = textwrap.wrap(problem.question, 29)[:4] + textwrap.wrap(" / ".join(problem.choices), 29)[:3]
        for number, line in enumerate(lines):
            draw.text((left + 12, top + PICTURE + 10 + 13 * number), line, fill="black", font=font(11))
    return sheet.quantize(256, kmeans=1, dither=Image.Dither.NONE)


def main():
    splits = rows()
    asked = [row for split in ("train", "transfer") for row in splits[split]]
    with_image = list(dict.fromkeys(row["skill"] for row in asked if row["caption"]))
    with_image.sort(key=list(SKILLS).index)
    preview(with_image).save(DATA / "preview.png", optimize=True)
    card = (DATA / "README.md").read_text()
    parts = {
        "skills": skill_table(splits),
        "columns": column_table(splits),
        "wordings": wording_table(splits),
        "honesty": honesty([name for name in with_image if name not in UNTRAINED]),
    }
    for name, part in parts.items():
        before, rest = card.split(f"<!-- {name} -->\n")
        after = rest.split(f"<!-- /{name} -->")[1]
        card = f"{before}<!-- {name} -->\n{part}\n<!-- /{name} -->{after}"
    (DATA / "README.md").write_text(card)


if __name__ == "__main__":
    main()
