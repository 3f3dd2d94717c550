"""Problems as figures: answers beside their pictures, what an answer depends on, a sheet of pictures.

Each function returns a matplotlib `Figure` and shows nothing by itself. Pictures are drawn at the size they are shown.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from mmlora.evaluation.scores import Prediction, by_id
from mmlora.problems.record import LETTERS, Problem
from mmlora.reporting.plots import BLUE, DARK, DPI, FONT, GREEN, GREY, VERMILION, Picture, sized, words_only

WIDTH = 9.0  # inches of a gallery and a contact sheet
MARGIN = 0.12  # inches around each of their parts
PICTURE = 2.1  # inches of a gallery's pictures
LEADING = 1.4 / 72  # inches from one line of text to the next, per point of its size
LABEL = 7.5  # points of a contact sheet's labels
HANG = " " * 9  # what a choice's second line begins with
SCALE = 2.0  # nats at which a map's colours end: covered, the answer is seven times less likely
THRESHOLD = 0.05  # nats below which a cell gets no colour: the answer is 5 % less likely, rounding errors reach 1 %


def gallery(problems: Sequence[Problem], predictions: Sequence[Prediction], n: int = 6) -> Figure:
    """The first `n` problems, those with a picture before the others, one a row: picture, question, choices, answer.

    ✓ marks the right choice, ✗ a wrong one that the model chose. Rows are as high as their text, so nothing overlaps
    and nothing is cut. Where no row has a picture the text takes the whole width.
    """
    pairs = sorted(by_id(problems, predictions), key=lambda pair: pair[0].image is None)[:n]
    if not pairs:
        return words_only("there is no problem to show")
    left = PICTURE + 2 * MARGIN if any(problem.image for problem, _ in pairs) else 0.0
    stories = [_story(problem, prediction, WIDTH - left - 2 * MARGIN) for problem, prediction in pairs]
    line = LEADING * FONT
    heights = [
        max(PICTURE if problem.image else line, line * len(story)) + 2 * MARGIN
        for (problem, _), story in zip(pairs, stories)
    ]
    figure = Picture(figsize=(WIDTH, sum(heights)), dpi=DPI)
    top = sum(heights) - MARGIN
    for (problem, _), story, height in zip(pairs, stories, heights):
        if left:
            panel = _panel(figure, MARGIN, top, PICTURE, min(PICTURE, height - 2 * MARGIN), "N")
            _show(panel, problem.image, PICTURE)
        for number, (words, colour, weight) in enumerate(story):
            _write(figure, left + MARGIN, top - line * number, words, color=colour, fontweight=weight)
        top -= height
    return figure


def _story(problem: Problem, prediction: Prediction, inches: float) -> list[tuple[str, str, str]]:
    """The lines of one gallery row as (text, colour, weight), none wider than `inches`."""
    paragraphs = [(problem.hint, "#555555", "normal", ""), (problem.question, "black", "bold", "")]
    for i, choice in enumerate(problem.choices):
        right, chosen = i == problem.answer, i == prediction.choice
        mark = "✓" if right else "✗" if chosen else "   "
        colour = GREEN if right else VERMILION if chosen else "black"
        said = "  ← the model" if chosen else ""
        paragraphs.append((f"{mark} {LETTERS[i]}. {choice}{said}", colour, "bold" if chosen else "normal", HANG))
    if prediction.choice is None:
        paragraphs.append(("✗ the model named none of the choices", VERMILION, "bold", ""))
    paragraphs.append((f"“{prediction.text.strip()}”", BLUE, "normal", ""))
    return [
        (line, colour, weight)
        for text, colour, weight, hang in paragraphs
        for paragraph in text.splitlines()
        for line in _wrap(paragraph, inches, FONT, weight, hang)
    ]


def _printable(text: str) -> str:
    """What an untrained model says may hold anything."""
    return "".join(c if c.isprintable() or c == "\t" else "·" for c in text)


def _wrap(text: str, inches: float, size: float, weight: str = "normal", hang: str = "") -> list[str]:
    """Break `text` where a line is full as matplotlib will draw it: between words, or else inside one.

    `size` is in points; every line but the first begins with `hang`.
    """
    font = FontProperties(size=size, weight=weight)

    def fits(line: str) -> bool:
        return _renderer().get_text_width_height_descent(line, font, False)[0] <= inches * DPI

    lines, line = [], ""
    for word in re.findall(r" *[^ ]+", _printable(text).expandtabs(4)):
        if line and not fits(line + word):
            lines.append(line)
            line, word = "", hang + word.lstrip(" ")
        while not line and len(word) > len(hang) + 1 and not fits(word):
            end = bisect_left(range(len(word)), True, lo=len(hang) + 2, key=lambda i: not fits(word[:i])) - 1  # noqa: B023
            lines.append(word[:end])
            word = hang + word[end:]
        line += word
    return [*lines, line]


@cache
def _renderer():
    return FigureCanvasAgg(Figure(dpi=DPI)).get_renderer()


def _write(figure: Figure, x: float, y: float, words: str, **style: Any) -> None:
    """Text with its top left, or what `ha` says, `x` inches from the left and `y` from the bottom."""
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, words, **{"fontsize": FONT, "va": "top", "parse_math": False, **style})


def _panel(figure: Figure, x: float, top: float, wide: float, high: float, anchor: str) -> Axes:
    """Axes of so many inches; `anchor` is the side, "N" or "S", that a picture of another shape goes to."""
    width, height = figure.get_size_inches()
    return figure.add_axes((x / width, (top - high) / height, wide / width, high / height), anchor=anchor)


def _show(axes: Axes, image: Image.Image | None, inches: float) -> None:
    """The picture, with no more pixels than a side of `inches` shows."""
    axes.set_axis_off()
    if image is None:
        axes.text(0.5, 0.9, "(no picture)", ha="center", va="top", color=GREY, fontsize=FONT, transform=axes.transAxes)
        return
    image = image.copy()
    image.thumbnail((round(inches * DPI), round(inches * DPI)), Image.Resampling.LANCZOS)
    axes.imshow(image, extent=(0, image.width, image.height, 0))


def occlusion_map(problem: Problem, prediction: Prediction, drops: np.ndarray) -> Figure:
    """The picture beside a heat map of `occlusion`: which parts the answer depends on. `drops`: (grid, grid), nats.

    Purple cells lowered the answer's log-likelihood when they were covered, orange cells raised it, by up to `SCALE` on
    every map. Cells below `THRESHOLD` have no colour, and where there are no others the map says so in words.
    """
    if problem.image is None:
        return words_only("this problem has no picture")
    side = 3.45  # inches of either picture
    verdict = "the right answer" if prediction.correct else "a wrong answer"  # "right" alone may name a side
    caption = _wrap(f"{problem.question} The model said: “{prediction.text.strip()}” ({verdict})", 7.8, FONT)
    figure = sized(8, side + 0.55 + LEADING * FONT * len(caption))
    figure.suptitle("\n".join(caption), fontsize=FONT, parse_math=False)
    left, right = figure.subplots(1, 2)
    left.set_title("the picture", fontsize=FONT + 1)
    _show(left, problem.image, side)
    right.set_title("what its words depend on", fontsize=FONT + 1)
    _show(right, _pale(problem.image), side)
    if np.abs(drops).max() < THRESHOLD:
        words = _wrap(f"no effect: no patch changes the answer's likelihood by more than {THRESHOLD} nats", side, FONT)
        right.text(
            0.5, -0.03, "\n".join(words), ha="center", va="top", fontsize=FONT, color=DARK, transform=right.transAxes
        )
    else:
        _heat(figure, right, np.ma.masked_where(np.abs(drops) < THRESHOLD, drops))
    return figure


def _pale(image: Image.Image) -> Image.Image:
    """In light greys, on which every colour looks as on the colour bar."""
    grey = image.convert("L")
    return Image.blend(grey, Image.new("L", grey.size, 255), 0.4).convert("RGB")


def _heat(figure: Figure, axes: Axes, drops: np.ndarray) -> None:
    """Colours over the picture in `axes`; masked cells let it through."""
    place = axes.images[0].get_extent()
    heat = axes.imshow(drops, "PuOr", vmin=-SCALE, vmax=SCALE, alpha=0.6, interpolation="nearest", extent=place)
    bar = figure.colorbar(heat, ax=axes, shrink=0.9, extend="both")
    bar.set_label("fall in log-likelihood when covered\n(nats; 0.7 halves the likelihood)", fontsize=FONT)


def contact_sheet(problems: Sequence[Problem], columns: int = 6) -> Figure:
    """The pictures of `problems` in a grid, each with its skill below; problems without a picture are left out."""
    shown = [(p.image, p.skill or p.id) for p in problems if p.image is not None]
    if not shown:
        return words_only("none of these problems has a picture")
    cell = WIDTH / columns
    side = cell - MARGIN
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    labels = [[_wrap(label, side, LABEL) for _, label in row] for row in rows]
    pictures = [
        max(side * image.height / max(image.size) for image, _ in row) for row in rows
    ]  # the highest of each row
    line = LEADING * LABEL
    heights = [picture + line * max(map(len, texts)) + 2 * MARGIN for picture, texts in zip(pictures, labels)]
    figure = Picture(figsize=(cell * min(columns, len(shown)), sum(heights)), dpi=DPI)
    top = sum(heights) - MARGIN / 2
    for row, texts, picture, height in zip(rows, labels, pictures, heights):
        for place, ((image, _), text) in enumerate(zip(row, texts)):
            _show(_panel(figure, place * cell + MARGIN / 2, top, side, picture, "S"), image, side)
            middle = (place + 0.5) * cell
            _write(figure, middle, top - picture - 0.04, "\n".join(text), fontsize=LABEL, ha="center", linespacing=1.2)
        top -= height
    return figure
