"""A run's charts. Each function returns a matplotlib `Figure` and shows nothing by itself.

Colours are Okabe and Ito's eight, which people with any colour vision can tell apart; series also differ by hatch,
marker or order. Sizes suit a notebook's column at 100 dpi.
"""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from mmlora.evaluation import controls
from mmlora.evaluation.scores import Scores, Share
from mmlora.problems.record import CATEGORIES, Problem
from mmlora.reporting.explanations import KINDS

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY, DARK = "#999999", "#333333"
STYLES = ((BLUE, ""), (ORANGE, "//"), (GREY, ".."), (SKY, "xx"), (PURPLE, "\\\\"), (GREEN, "--"))  # colour, hatch
DPI = 100
FONT = 9
SKILLS = 50  # the most bars of one figure
WORST = 12  # the most skills whose faults are told apart


class Picture(Figure):
    """A `Figure` that a notebook shows when it is a cell's last line, whether pyplot was imported or not."""

    def _repr_png_(self) -> bytes:
        return compact_png(self)

    def _ipython_display_(self) -> None:
        """Once pyplot is imported its own printer comes before `_repr_png_`, but not before this."""
        from IPython.display import display

        png = base64.b64encode(self._repr_png_()).decode()
        display({"image/png": png, "text/plain": repr(self)}, raw=True)


def compact_png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as a PNG of at most 256 colours chosen for it: a quarter of the bytes, and hard to tell apart."""
    data, small = io.BytesIO(), io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi)
    with Image.open(data) as drawn:
        palette = drawn.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
    palette.save(small, format="png", optimize=True)
    return small.getvalue()


def sized(width: float, height: float) -> Picture:
    """An empty `Picture` of so many inches that makes room for its own labels."""
    return Picture(figsize=(width, height), dpi=DPI, layout="constrained")


def words_only(words: str) -> Picture:
    """A small figure that says why there is nothing to draw."""
    figure = Picture(figsize=(6, 0.5), dpi=DPI)
    figure.text(0.5, 0.5, words, ha="center", va="center", fontsize=FONT + 1, color=DARK, parse_math=False)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def learning_curve(records: Sequence[Mapping]) -> Figure:
    """Loss per supervised token over minutes, with its running mean, and the learning rate below.

    `records` are the training log's lines: `seconds`, `loss` and `learning_rate` are read, and `validation` where a probe
    was taken: its accuracies with their 95 % intervals stand on an axis of their own.
    """
    minutes = np.array([r["seconds"] for r in records]) / 60
    loss = np.array([r["loss"] for r in records], dtype=float)
    figure = sized(8, 4.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot(minutes, loss, color=SKY, linewidth=0.8, alpha=0.7, label="each log line")
    upper.plot(minutes, _smooth(loss), color=BLUE, linewidth=2, label="running mean")
    upper.set(ylabel="loss (nats per token)", yscale="log", title="Learning curve")
    upper.yaxis.set_major_formatter("{x:g}")
    upper.grid(axis="y", which="both", alpha=0.25)
    upper.legend(frameon=False, loc="lower left")  # where neither a loss nor an accuracy comes by
    if probes := [(r["seconds"] / 60, r["validation"]) for r in records if "validation" in r]:
        right = upper.twinx()
        shares = [Share(probe["correct"], probe["n"]) for _, probe in probes]
        right.errorbar(
            [minute for minute, _ in probes], [_accuracy(s) for s in shares], _reach(shares), fmt="o-", color=ORANGE
        )
        right.set(ylim=(0, 100), ylabel=f"right of {shares[0].n} validation problems (%)")
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


def chance_by_column(problems: Sequence[Problem]) -> dict[str, float]:
    """What blind guessing gives in each of ScienceQA's columns, in percent; a column without problems is left out."""
    found = {column: controls.guessing([p for p in problems if column in p.categories]) for column in CATEGORIES}
    return {column: share for column, share in found.items() if share is not None}


def category_bars(scores: Mapping[str, Scores], chance: Mapping[str, float] | None = None) -> Figure:
    """Accuracy in the nine columns with 95 % intervals, one series per entry of `scores` (trained, base, …).

    The columns' n are the first series'. Another has a bar only where it was scored on as many problems, and a control
    on some of the pictures in "IMG"; its name says where ("200 of IMG only"). `chance`, in percent by column, adds a
    dashed line.
    """
    n = {column: next(iter(scores.values())).columns[column].n for column in CATEGORIES}
    asked = [c for c in CATEGORIES if n[c]]
    beside = {c: [name for name, result in scores.items() if _comparable(result, c, n[c])] for c in asked}
    figure = sized(9, 4)
    axes = figure.subplots()
    width = 0.84 / len(scores)
    for (name, result), (colour, hatch) in zip(scores.items(), cycle(STYLES)):
        shown = [c for c in asked if name in beside[c]]
        x = [CATEGORIES.index(c) + width * (beside[c].index(name) - (len(beside[c]) - 1) / 2) for c in shown]
        shares = [result.columns[c] for c in shown]
        height = [_accuracy(share) for share in shares]
        parts = ", ".join(c if share.n == n[c] else f"{share.n} of {c}" for c, share in zip(shown, shares))
        label = name if shown == asked else f"{name} ({parts} only)" if shown else f"{name} (other problems)"
        axes.bar(x, height, width * 0.94, label=label, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
        _whiskers(axes, x, height, yerr=_reach(shares))
    for column in set(CATEGORIES) - set(asked):
        axes.text(CATEGORIES.index(column), 1, "–", ha="center", va="bottom", color=GREY)
    if chance:
        at = np.array([i for i, column in enumerate(CATEGORIES) if column in chance])
        level = [chance[CATEGORIES[i]] for i in at]
        axes.hlines(level, at - 0.46, at + 0.46, colors="black", linestyles="dashed", linewidth=1.2, label="chance")
    axes.set_xticks(range(len(CATEGORIES)), [f"{column}\nn={n[column]}" for column in CATEGORIES])
    axes.set(ylabel="accuracy (%)", ylim=(0, 100), xlim=(-0.6, len(CATEGORIES) - 0.4))
    axes.set_title("Accuracy by ScienceQA's categories, 95 % intervals")
    axes.grid(axis="y", alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    order = np.roll(np.arange(len(labels)), -bool(chance))  # lines come first, and chance should be last
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    _plain(axes)
    return figure


def _comparable(result: Scores, column: str, n: int) -> bool:
    """Whether a series' share of a column may stand beside others': of as many problems, or of some of its pictures."""
    own = result.columns[column].n
    return own == n or (column == "IMG" and own == result.n > 0)


def _accuracy(share: Share) -> float:
    """In percent, and not a number without a problem: nothing is drawn there."""
    return math.nan if share.accuracy is None else share.accuracy


def _reach(shares: Sequence[Share]) -> np.ndarray:
    """How far each interval reaches below and above its accuracy, (2, shares)."""
    bounds = np.array([share.ci95 or (math.nan, math.nan) for share in shares]).reshape(-1, 2).T
    middle = np.array([_accuracy(share) for share in shares])
    return np.clip([middle - bounds[0], bounds[1] - middle], 0, None)


def _whiskers(axes: Axes, x: Sequence[float], y: Sequence[float], **reach: Any) -> None:
    axes.errorbar(x, y, fmt="none", ecolor=DARK, elinewidth=1, capsize=2, **reach)


def skill_bars(by_skill: Mapping[str, Share], base: Mapping[str, Share] | None = None) -> Figure:
    """Accuracy of every skill, best on top, with 95 % intervals; `base` adds a mark for the untrained model.

    Of more than fifty skills (ScienceQA has 379) the most frequent fifty are shown, and the title says so.
    """
    names = sorted(_most_frequent(by_skill), key=lambda name: _accuracy(by_skill[name]))
    title = f"Accuracy by skill{_part(names, by_skill)}"
    figure, axes, y = _rows(title, [f"{_short(name)} (n={by_skill[name].n})" for name in names])
    shares = [by_skill[name] for name in names]
    accuracy = [_accuracy(share) for share in shares]
    axes.barh(y, accuracy, color=SKY, label="trained")
    _whiskers(axes, accuracy, range(len(names)), xerr=_reach(shares))
    if base:
        known = [i for i, name in enumerate(names) if name in base]
        untrained = [_accuracy(base[names[i]]) for i in known]
        axes.plot(untrained, known, "D", color=VERMILION, markersize=5, label="base", clip_on=False)
    axes.set(xlabel="accuracy (%)", xlim=(0, 100))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def looking_bars(seen: Mapping[str, Share], unseen: Mapping[str, Share], label: str = "grey picture") -> Figure:
    """What the picture is worth by skill: a mark with it and one without it (`label`), the largest difference on top.

    Both must be of the same problems. Of more than fifty skills the most frequent fifty are shown.
    """
    if not seen:
        return words_only("none of these problems has a picture")
    names = sorted(_most_frequent(seen), key=lambda name: _accuracy(seen[name]) - _accuracy(unseen[name]))
    title = f"What looking is worth{_part(names, seen)}"
    figure, axes, y = _rows(title, [f"{_short(name)} (n={seen[name].n})" for name in names])
    without, looking = ([_accuracy(shares[name]) for name in names] for shares in (unseen, seen))
    axes.hlines(y, without, looking, color=GREY, linewidth=1)
    axes.plot(without, y, "s", color=ORANGE, markersize=7, label=label)
    axes.plot(looking, y, "o", color=BLUE, markersize=5, label="the picture")
    axes.set(xlabel="accuracy (%)", xlim=(-2, 102))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def departures(faults: Mapping[tuple[str, str], int]) -> Figure:
    """Wrong answers by skill, the most on top, in parts by the place where their text first leaves the reference.

    `faults` counts them by (skill, kind), the kind being one of `explanations.KINDS`. Twelve skills are shown at most.
    """
    total: Counter[str] = Counter()
    for (skill, _), count in faults.items():
        total[skill] += count
    names = [skill for skill, count in total.most_common(WORST) if count][::-1]
    if not names:
        return words_only("there is no wrong answer")
    part = f", the {WORST} skills with most of {len(total)}" if len(total) > WORST else ""
    title = f"Where wrong answers first leave the reference{part}"
    figure, axes, y = _rows(title, [_short(name) or "no skill named" for name in names])
    start, looks = np.zeros(len(names)), dict(zip(KINDS, ((ORANGE, ""), (SKY, "//"), (PURPLE, ".."))))
    kinds = [kind for kind in KINDS if any(faults.get((name, kind)) for name in names)]
    for kind in kinds:
        counts, (colour, hatch) = np.array([faults.get((name, kind), 0) for name in names]), looks[kind]
        bars = axes.barh(y, counts, left=start, label=kind, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
        start += counts
    axes.bar_label(bars, [str(total[name]) for name in names], padding=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.06)
    axes.set_xlabel("wrong answers")
    figure.legend(loc="outside lower center", ncols=len(kinds), frameon=False)
    return figure


def parameter_squares(parts: Mapping[str, int], each: int = 100_000) -> Figure:
    """How many parameters each part of a model has: a small square for every `each` of them, a colour for every part."""
    across, colours = 80, [GREEN, ORANGE, "#D8D8D8", VERMILION, BLUE, PURPLE][: len(parts)]
    squares: np.ndarray = np.repeat(range(len(parts)), [round(count / each) for count in parts.values()])
    squares = np.pad(squares, (0, -len(squares) % across), constant_values=len(parts)).reshape(-1, across)[::-1]
    figure = sized(9, 0.6 + 0.1 * len(squares))
    axes = figure.subplots()
    axes.pcolormesh(squares, cmap=ListedColormap([*colours, "white"]), vmin=0, vmax=len(parts), edgecolors="white")
    for (name, count), colour in zip(parts.items(), colours):
        axes.scatter([], [], marker="s", color=colour, label=f"{name}: {count / 1e6:.1f} million")
    axes.set_axis_off()
    figure.legend(loc="outside upper center", ncols=len(parts), frameon=False)
    return figure


def _most_frequent(by_skill: Mapping[str, Share]) -> list[str]:
    return sorted(by_skill, key=lambda name: -by_skill[name].n)[:SKILLS]


def _part(names: Sequence[str], by_skill: Mapping[str, Share]) -> str:
    return f", the {len(names)} most frequent of {len(by_skill)} skills" if len(names) < len(by_skill) else ""


def _short(name: str) -> str:
    return name if len(name) <= 75 else f"{name[:74]}…"


def _rows(title: str, labels: Sequence[str]) -> tuple[Picture, Axes, np.ndarray]:
    """A figure with a labelled row for each skill, its axes and the rows' heights, (labels,)."""
    y = np.arange(len(labels))
    figure = sized(9, 1.4 + 0.26 * len(labels))
    figure.suptitle(title)  # over the labels too: they leave the axes half of the width
    axes = figure.subplots()
    axes.set_yticks(y, labels, parse_math=False)
    axes.set_ylim(-0.7, len(labels) - 0.3)
    axes.grid(axis="x", alpha=0.25)
    _plain(axes)
    return figure, axes, y
