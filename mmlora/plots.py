"""Every picture of a run. Each function returns a matplotlib `Figure` and shows nothing by itself.

Colours are Okabe and Ito's eight, which people with any colour vision can tell apart; series also differ by hatch,
marker or order. Sizes suit a notebook column at 100 dpi.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageFont

from mmlora.scienceqa import CATEGORIES, LETTERS, Problem
from mmlora.scores import Prediction, Scores, Share, by_id

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#999999"
DPI = 100
FONT = 9
LINE = 1.4 * FONT / 72  # inches from one line of text to the next
SKILLS = 50  # the most bars of one figure


class Picture(Figure):
    """A `Figure` that a notebook shows when it is a cell's last line, whether pyplot was imported or not."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png")
        return data.getvalue()


def _figure(width: float, height: float) -> Picture:
    return Picture(figsize=(width, height), dpi=DPI, layout="constrained")


def _plain(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def learning_curve(records: Sequence[Mapping]) -> Figure:
    """Loss per supervised token over minutes, with its running mean, and the learning rate below.

    `records` are the training log's lines: `seconds`, `loss` and `learning_rate` are read.
    """
    minutes = np.array([r["seconds"] for r in records]) / 60
    loss = np.array([r["loss"] for r in records], dtype=float)
    figure = _figure(8, 4.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot(minutes, loss, color=SKY, linewidth=0.8, alpha=0.7, label="each log line")
    upper.plot(minutes, _smooth(loss), color=BLUE, linewidth=2, label="running mean")
    upper.set(ylabel="loss (nats per token)", yscale="log", title="Learning curve")
    upper.yaxis.set_major_formatter("{x:g}")
    upper.grid(axis="y", which="both", alpha=0.25)
    upper.legend(frameon=False)
    lower.plot(minutes, [r["learning_rate"] for r in records], color=GREEN)
    lower.set(xlabel="training time (minutes)", ylabel="learning rate")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (upper, lower):
        _plain(axes)
    return figure


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean of up to a twentieth of the run on either side."""
    reach = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def category_bars(scores: Mapping[str, Scores]) -> Figure:
    """Accuracy in the nine columns with 95 % intervals, one series per entry of `scores` (trained, base, …)."""
    figure = _figure(9, 4)
    axes = figure.subplots()
    width = 0.84 / len(scores)
    styles = [(BLUE, ""), (ORANGE, "//"), (GREY, ".."), (SKY, "xx"), (PURPLE, "\\\\"), (GREEN, "--")]
    for place, ((name, result), (colour, hatch)) in enumerate(zip(scores.items(), styles, strict=False)):
        shares = [result.columns[column] for column in CATEGORIES]
        x = np.arange(len(CATEGORIES)) - 0.42 + width * (place + 0.5)
        height = [s.accuracy or 0 for s in shares]
        axes.bar(x, height, width * 0.94, label=name, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
        measured = [i for i, s in enumerate(shares) if s.n]
        axes.errorbar(x[measured], [height[i] for i in measured], yerr=_reach([shares[i] for i in measured]),
                      fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
        for i, share in enumerate(shares):
            if not share.n:
                axes.text(x[i], 1, "–", ha="center", va="bottom", color=GREY)
    first = next(iter(scores.values()))
    labels = [f"{column}\nn={first.columns[column].n}" for column in CATEGORIES]
    axes.set_xticks(np.arange(len(CATEGORIES)), labels)
    axes.set(ylabel="accuracy (%)", ylim=(0, 100), title="Accuracy by ScienceQA's categories, 95 % intervals")
    axes.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=min(len(scores), 6), frameon=False)
    _plain(axes)
    return figure


def _reach(shares: Sequence[Share]) -> np.ndarray:
    """How far each interval reaches below and above its accuracy, (2, shares)."""
    reach = [(s.accuracy - s.ci95[0], s.ci95[1] - s.accuracy) for s in shares]
    return np.clip(np.array(reach).reshape(-1, 2).T, 0, None)


def skill_bars(by_skill: Mapping[str, Share], base: Mapping[str, Share] | None = None) -> Figure:
    """Accuracy of every skill, best on top, with 95 % intervals; `base` adds a mark for the untrained model.

    Of more than fifty skills (ScienceQA has 379) the most frequent fifty are shown, and the title says so.
    """
    names = sorted(sorted(by_skill, key=lambda name: -by_skill[name].n)[:SKILLS], key=lambda name: by_skill[name].accuracy)
    part = f", the {SKILLS} most frequent of {len(by_skill)} skills" if len(by_skill) > SKILLS else ""
    shares = [by_skill[name] for name in names]
    figure = _figure(8, 1.2 + 0.26 * len(names))
    axes = figure.subplots()
    y = np.arange(len(names))
    axes.barh(y, [s.accuracy for s in shares], color=SKY, label="trained")
    axes.errorbar([s.accuracy for s in shares], y, xerr=_reach(shares), fmt="none", ecolor="#333333", elinewidth=1,
                  capsize=2)
    if base:
        known = [i for i, name in enumerate(names) if name in base]
        axes.plot([base[names[i]].accuracy for i in known], known, "D", color=VERMILION, markersize=5, label="base")
    axes.set_yticks(y, [f"{name} (n={by_skill[name].n})" for name in names])
    axes.set(xlabel="accuracy (%)", xlim=(0, 100), ylim=(-0.7, len(names) - 0.3), title=f"Accuracy by skill{part}")
    axes.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _plain(axes)
    return figure


def gallery(problems: Sequence[Problem], predictions: Sequence[Prediction], n: int = 6) -> Figure:
    """The first `n` problems, one a row: the picture, the question, its choices and what the model said.

    ✓ marks the right choice, ✗ a wrong one that the model chose. Rows are as high as their text, so nothing overlaps
    and nothing is cut.
    """
    pairs = by_id(problems, predictions)[:n]
    stories = [_story(problem, prediction) for problem, prediction in pairs]
    picture, margin = 2.1, 0.12
    heights = [max(picture if p.image else 0, LINE * len(story)) + 2 * margin for (p, _), story in zip(pairs, stories)]
    total = sum(heights)
    figure = Picture(figsize=(9, total), dpi=DPI)
    top = total - margin
    for (problem, _), story, height in zip(pairs, stories, heights):
        panel_height = min(picture, height - 2 * margin)
        panel = figure.add_axes((0.01, (top - panel_height) / total, 0.26, panel_height / total))
        panel.set_anchor("N")
        _show(panel, problem.image)
        for number, (line, colour, weight) in enumerate(story):
            figure.text(2.6 / 9, (top - LINE * number) / total, line, color=colour, fontweight=weight, fontsize=FONT,
                        va="top", parse_math=False)
        top -= height
    return figure


def _story(problem: Problem, prediction: Prediction) -> list[tuple[str, str, str]]:
    """The lines of one gallery row as (text, colour, weight)."""
    paragraphs = [(problem.hint, "#555555", "normal"), (problem.question, "black", "bold")]
    for i, choice in enumerate(problem.choices):
        right, chosen = i == problem.answer, i == prediction.choice
        mark = "✓" if right else "✗" if chosen else "   "
        colour = GREEN if right else VERMILION if chosen else "black"
        said = "  ← the model" if chosen else ""
        paragraphs.append((f"{mark} {LETTERS[i]}. {choice}{said}", colour, "bold" if chosen else "normal"))
    if prediction.choice is None:
        paragraphs.append(("✗ the model named none of the choices", VERMILION, "bold"))
    paragraphs.append((f"“{prediction.text.strip()}”", BLUE, "normal"))
    return [
        (line, colour, weight)
        for text, colour, weight in paragraphs
        for paragraph in text.splitlines()
        for line in _wrap(paragraph, 6.2, weight)
    ]


def _wrap(text: str, inches: float, weight: str) -> list[str]:
    """Break `text` between words where the default font's own widths say that a line is full."""
    font = ImageFont.truetype(findfont(FontProperties(weight=weight)), 100)
    limit = inches * 72 / FONT * 100
    hang = " " * 9 if text[1:2] == " " or text[:1] == " " else ""
    lines, line = [], ""
    for word in text.split(" "):
        if line.strip() and font.getlength(f"{line} {word}") > limit:
            lines.append(line)
            line = f"{hang}{word}"
        else:
            line = f"{line} {word}" if line else word or " "
    return [*lines, line]


def _show(axes, image: Image.Image | None) -> None:
    axes.set_axis_off()
    if image is None:
        axes.text(0.5, 0.9, "(no picture)", ha="center", va="top", color=GREY, fontsize=FONT, transform=axes.transAxes)
    else:
        axes.imshow(image)


def occlusion_map(problem: Problem, prediction: Prediction, drops: np.ndarray) -> Figure:
    """The picture beside a heat map of `evaluate.occlusion`: which parts the answer depends on.

    Purple cells lowered the answer's log-likelihood when they were covered, orange cells raised it.
    """
    figure = _figure(8, 4.3)
    left, right = figure.subplots(1, 2)
    _show(left, problem.image)
    left.set_title("the picture", fontsize=FONT + 1)
    _show(right, problem.image.convert("L").convert("RGB"))
    width, height = problem.image.size
    limit = max(float(np.abs(drops).max()), 1e-6)
    heat = right.imshow(drops, cmap="PuOr", vmin=-limit, vmax=limit, alpha=0.6, interpolation="nearest",
                        extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    right.set_title("what the answer depends on", fontsize=FONT + 1)
    figure.colorbar(heat, ax=right, shrink=0.85, label="fall in log-likelihood when covered (nats)")
    verdict = "right" if prediction.correct else "wrong"
    caption = textwrap.wrap(f"{problem.question} The model said: “{prediction.text.strip()}” ({verdict})", 110)
    figure.suptitle("\n".join(caption), fontsize=FONT, parse_math=False)
    return figure


def contact_sheet(problems: Sequence[Problem], columns: int = 6) -> Figure:
    """The pictures of `problems` in a grid, each with its skill below; problems without a picture are left out."""
    shown = [p for p in problems if p.image is not None]
    rows = max(1, -(-len(shown) // columns))
    figure = _figure(1.55 * columns, 1.95 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, problem in zip(grid, shown, strict=False):
        axes.imshow(problem.image)
        label = "\n".join(textwrap.wrap(problem.skill or problem.id, 22))
        axes.text(0.5, -0.03, label, fontsize=7, ha="center", va="top", transform=axes.transAxes, parse_math=False)
    return figure
