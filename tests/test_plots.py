"""Charts show the numbers they were given, galleries show whole texts, and both stay small in a notebook."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from mmlora.evaluation.scores import Prediction, Scores, Share, score
from mmlora.problems.record import CATEGORIES, Problem
from mmlora.reporting import galleries, plots
from mmlora.reporting.explanations import KINDS


def drawing(seed: int, size: tuple[int, int] = (256, 256)) -> Image.Image:
    """Random shapes on a plain ground."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(150, 255, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        (x, y), (w, h) = rng.integers(0, size), rng.integers(10, 80, 2)
        pen.ellipse((x, y, x + w, y + h), tuple(rng.integers(0, 255, 3).tolist()), "black")
    return image


def problems() -> list[Problem]:
    """Six without a picture, then twelve with one, in two skills; texts that need wrapping and hold dollars."""
    return [
        Problem(
            f"p{i}",
            "A long question: is 3 < 5 & does $x$ cost $5? " * (1 + i % 3),
            ("yes, <b>it</b> is", "no", "perhaps " * 20, "never")[: 3 + i % 2],
            i % 3,
            drawing(i, (60, 40 + 10 * i)) if i >= 6 else None,
            hint="a | b\n1 | 2" * (i % 2),
            grade=f"grade{i % 5 + 4}",
            skill=("magnets", "guide words")[i % 2],
        )
        for i in range(18)
    ]


def predictions(step: int) -> list[Prediction]:
    """Every `step`-th answer is wrong, and the first wrong one names no choice."""
    return [
        Prediction(
            p.id,
            (None if i == 0 else (p.answer + 1) % 3) if i % step == 0 else p.answer,
            i % step != 0,
            "It is so. " * 12,
        )
        for i, p in enumerate(problems())
    ]


@pytest.fixture
def scores() -> dict[str, Scores]:
    made = problems()
    return {
        "trained": score(made, predictions(6)),
        "base": score(made, predictions(2)),
        "blank": score(made[6:], predictions(3)[6:]),
    }


def bars(axes) -> dict[str, list]:
    """The drawn bars by their series' name."""
    return {c.get_label(): list(c) for c in axes.containers if hasattr(c, "patches")}


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def rows(axes) -> list[str]:
    """The tick labels from the top down."""
    return [label.get_text() for label in axes.get_yticklabels()][::-1]


def texts_inside(figure) -> bool:
    """No text of the figure or its axes is cut by the figure's border."""
    figure.draw_without_rendering()
    texts = [*figure.texts, *(text for axes in figure.axes for text in [*axes.texts, axes.title, *tick_labels(axes)])]
    boxes = [text.get_window_extent() for text in texts if text.get_text().strip()]
    page = figure.bbox
    return bool(boxes) and all(b.x0 >= -1 and b.y0 >= -1 and b.x1 <= page.x1 + 1 and b.y1 <= page.y1 + 1 for b in boxes)


def tick_labels(axes) -> list:
    """Those that are drawn: matplotlib keeps some beyond the ends of an axis."""
    sides = ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())) if axes.axison else ()
    return [
        tick.label1 for axis, (low, high) in sides for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
    ]


# -- what a notebook shows ---------------------------------------------------------------------------------------------


def test_a_figure_is_a_small_palette_png_that_looks_like_itself():
    figure = galleries.contact_sheet([Problem(f"p{i}", "?", ("a", "b"), 0, drawing(i)) for i in range(18)])
    png, whole = figure._repr_png_(), io.BytesIO()
    figure.savefig(whole, format="png")
    small, large = Image.open(io.BytesIO(png)), Image.open(whole)
    assert small.mode == "P" and len(small.getcolors()) > 100 and small.size == large.size
    assert len(png) < 150_000 and len(png) < len(whole.getvalue()) / 2
    distance = np.abs(np.asarray(small.convert("RGB"), float) - np.asarray(large.convert("RGB"), float))
    assert distance.mean() < 2 and np.percentile(distance, 99) < 24
    assert small.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_a_gallery_and_a_map_are_small():
    made = [Problem(f"p{i}", "?", ("a", "b"), 0, drawing(i, (512, 512))) for i in range(4)]
    answers = [Prediction(p.id, 0, True, "It is a.") for p in made]
    assert len(galleries.gallery(made, answers)._repr_png_()) < 150_000
    drops = np.random.default_rng(0).normal(size=(8, 8))
    assert len(galleries.occlusion_map(made[0], answers[0], drops)._repr_png_()) < 150_000


def test_pyplot_does_not_bring_the_large_png_back(monkeypatch):
    """Its printer for notebooks comes before `_repr_png_`, so a figure publishes itself."""
    published, formatter = [], DisplayFormatter()
    formatter.formatters["image/png"].for_type(Figure, lambda figure: b"the large one")
    monkeypatch.setattr("IPython.display.display", lambda data, raw: published.append(data))
    figure = plots.words_only("nothing")
    assert formatter.format(figure) == ({}, {})
    assert [base64.b64decode(data["image/png"]) for data in published] == [figure._repr_png_()]


def test_plots_import_without_torch():
    code = "import sys, mmlora.reporting.galleries, mmlora.reporting.explanations; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


# -- categories --------------------------------------------------------------------------------------------------------


def test_bars_are_as_high_as_the_accuracy_and_n_is_the_first_series(scores):
    (axes,) = plots.category_bars(scores).axes
    for name in ("trained", "base"):
        accuracy = [scores[name].columns[column].accuracy for column in CATEGORIES]
        assert [bar.get_height() for bar in bars(axes)[name] if bar.get_height()] == [a for a in accuracy if a]
        assert [round(bar.get_center()[0]) for bar in bars(axes)[name]] == [
            i for i, a in enumerate(accuracy) if a is not None
        ]
    n = [scores["trained"].columns[column].n for column in CATEGORIES]
    assert n[CATEGORIES.index("SOC")] == 0 and n[CATEGORIES.index("IMG")] == 12
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [f"{column}\nn={count}" for column, count in zip(CATEGORIES, n)]
    dashes = [round(text.get_position()[0]) for text in axes.texts if text.get_text() == "–"]
    assert sorted(dashes) == [CATEGORIES.index("SOC"), CATEGORIES.index("LAN")]


def test_a_control_on_fewer_problems_has_a_bar_only_where_n_is_the_same(scores):
    figure = plots.category_bars(scores)
    (bar,) = bars(figure.axes[0])["blank (IMG only)"]
    assert round(bar.get_center()[0]) == CATEGORIES.index("IMG")
    assert bar.get_height() == scores["blank"].columns["IMG"].accuracy != scores["trained"].columns["IMG"].accuracy
    assert legend(figure) == ["trained", "base", "blank (IMG only)"]
    assert texts_inside(figure)


def test_a_control_on_some_of_the_pictures_has_its_bar_there_and_says_of_how_many(scores):
    some = {column: Share(0, 0) for column in CATEGORIES} | {column: Share(1, 5) for column in ("IMG", "Avg")}
    some["NAT"] = Share(1, 3)
    figure = plots.category_bars({"trained": scores["trained"], "swapped": Scores(some, {}, 0)})
    (bar,) = bars(figure.axes[0])["swapped (5 of IMG only)"]
    assert round(bar.get_center()[0]) == CATEGORIES.index("IMG") and bar.get_height() == pytest.approx(20)


def test_bars_of_a_column_stand_beside_each_other_in_its_middle(scores):
    drawn = sorted(
        (bar.get_x(), bar.get_x() + bar.get_width())
        for each in bars(plots.category_bars(scores).axes[0]).values()
        for bar in each
    )
    assert all(right <= left for (_, right), (left, _) in zip(drawn, drawn[1:]))
    for i, column in enumerate(CATEGORIES):
        mine = [(left, right) for left, right in drawn if round((left + right) / 2) == i]
        assert len(mine) == (0 if column in ("SOC", "LAN") else 3 if column == "IMG" else 2)
        assert not mine or mine[0][0] + mine[-1][1] == pytest.approx(2 * i)


def test_a_series_on_other_problems_says_so(scores):
    none = {column: Share(0, 0) for column in CATEGORIES}
    figure = plots.category_bars({"trained": scores["trained"], "blank": Scores(none, {}, 0)})
    assert legend(figure) == ["trained", "blank (other problems)"]
    assert bars(figure.axes[0])["blank (other problems)"] == []


def test_chance_is_a_line_across_each_column(scores):
    chance = plots.chance_by_column(problems())
    assert set(chance) == set(CATEGORIES) - {"SOC", "LAN"}
    assert chance["Avg"] == pytest.approx((100 / 3 + 25) / 2)  # every second problem has four choices
    assert chance["TXT"] == pytest.approx(25) and chance["NO"] == pytest.approx(100 / 3)  # and a hint
    figure = plots.category_bars(scores, chance)
    assert legend(figure) == ["trained", "base", "blank (IMG only)", "chance"]
    (lines,) = [c for c in figure.axes[0].collections if c.get_label() == "chance"]
    at = {round(x.mean()): (y[0], y[1]) for x, y in (segment.T for segment in lines.get_segments())}
    assert at == {CATEGORIES.index(column): (value, value) for column, value in chance.items()}
    for x, _ in (segment.T for segment in lines.get_segments()):
        assert all(
            x.min() <= bar.get_x() and bar.get_x() + bar.get_width() <= x.max()
            for each in bars(figure.axes[0]).values()
            for bar in each
            if round(bar.get_center()[0]) == round(x.mean())
        )
    assert plots.chance_by_column([]) == {}


# -- skills ------------------------------------------------------------------------------------------------------------


def test_skills_are_sorted_and_the_base_has_its_marks():
    by_skill = {"rhymes $x$": Share(1, 4), "maps": Share(9, 10), "magnets": Share(1, 2)}
    figure = plots.skill_bars(by_skill, {"maps": Share(2, 10), "rhymes $x$": Share(0, 4)})
    (axes,) = figure.axes
    assert rows(axes) == ["maps (n=10)", "magnets (n=2)", "rhymes $x$ (n=4)"]
    assert [bar.get_width() for bar in bars(axes)["trained"]] == [25, 50, 90]
    (marks,) = [line for line in axes.lines if line.get_label() == "base"]
    assert marks.get_xydata().tolist() == [[0, 0], [20, 2]]
    assert texts_inside(figure)
    assert legend(plots.skill_bars(by_skill)) == ["trained"]


def test_whiskers_are_the_intervals():
    share = Share(9, 10)
    (axes,) = plots.skill_bars({"maps": share}).axes
    ((low, high),) = [segment[:, 0] for collection in axes.collections for segment in collection.get_segments()]
    assert (low, high) == pytest.approx(share.ci95)


def test_hundreds_of_skills_are_the_most_frequent_ones():
    by_skill = {f"skill {i}": Share(i % 7, 10 + i) for i in range(379)}
    for figure, title in (
        (plots.skill_bars(by_skill), "Accuracy by skill"),
        (plots.looking_bars(by_skill, by_skill), "What looking is worth"),
    ):
        assert figure.get_figheight() < 20
        assert figure.get_suptitle() == f"{title}, the 50 most frequent of 379 skills"
        assert {row.partition(" (")[0] for row in rows(figure.axes[0])} == {f"skill {i}" for i in range(329, 379)}


def test_looking_is_sorted_by_what_it_is_worth():
    seen = {"maps": Share(9, 10), "rhymes": Share(3, 4), "magnets": Share(3, 8)}
    unseen = {"maps": Share(8, 10), "rhymes": Share(0, 4), "magnets": Share(4, 8)}
    figure = plots.looking_bars(seen, unseen, "black picture")
    (axes,) = figure.axes
    assert rows(axes) == ["rhymes (n=4)", "maps (n=10)", "magnets (n=8)"]
    marks = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert marks == {"the picture": [[37.5, 0], [90, 1], [75, 2]], "black picture": [[50, 0], [80, 1], [0, 2]]}
    assert legend(figure) == ["black picture", "the picture"]
    assert texts_inside(figure)
    assert words(plots.looking_bars({}, {})) == "none of these problems has a picture"


def test_departures_stack_the_worst_skills():
    faults = {(f"skill {i}", kind): i + place for i in range(14) for place, kind in enumerate(KINDS)}
    del faults["skill 13", KINDS[1]]
    figure = plots.departures(faults)
    (axes,) = figure.axes
    assert rows(axes) == [f"skill {i}" for i in (12, 11, 10, 9, 13, 8, 7, 6, 5, 4, 3, 2)]
    assert "the 12 skills with most of 14" in figure.get_suptitle()
    drawn = bars(axes)
    assert list(drawn) == legend(figure) == list(KINDS)
    fifth = {kind: (drawn[kind][-5].get_x(), drawn[kind][-5].get_width()) for kind in KINDS}
    assert fifth == {KINDS[0]: (0, 13), KINDS[1]: (13, 0), KINDS[2]: (13, 15)}
    totals = [text.get_text() for text in axes.texts]
    assert totals == ["9", "12", "15", "18", "21", "24", "27", "28", "30", "33", "36", "39"]
    assert texts_inside(figure)
    assert words(plots.departures({("maps", KINDS[0]): 0})) == "there is no wrong answer"


def test_long_names_leave_room_for_the_bars():
    figure = plots.departures({("very " * 60, KINDS[0]): 3, ("", KINDS[1]): 2})
    (axes,) = figure.axes
    assert legend(figure) == list(KINDS[:2])  # no key without a bar
    assert axes.get_yticklabels()[0].get_text() == "no skill named"
    axes.figure.draw_without_rendering()
    assert axes.get_window_extent().width > 200


def test_the_learning_curve_is_smooth_in_minutes():
    records = [{"seconds": 60 * i, "loss": 2.0 + (-1) ** i, "learning_rate": 0.1 * i} for i in range(4)]
    upper, lower = plots.learning_curve(records).axes
    each, mean = upper.lines
    assert each.get_xdata().tolist() == [0, 1, 2, 3] and each.get_ydata().tolist() == [3, 1, 3, 1]
    assert mean.get_ydata() == pytest.approx([2, 7 / 3, 5 / 3, 2])
    assert lower.lines[0].get_ydata() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert plots.learning_curve(records[:1]).axes[0].lines[1].get_ydata().tolist() == [3]


def test_accuracies_on_the_way_stand_on_the_learning_curve():
    records = [{"seconds": 60 * i, "loss": 2.0, "learning_rate": 0.1} for i in range(4)]
    records[1]["validation"], records[3]["validation"] = {"correct": 5, "n": 20}, {"correct": 15, "n": 20}
    upper, _, right = plots.learning_curve(records).axes
    (line,) = [line for line in right.lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
    assert line.get_xdata().tolist() == [1, 3] and line.get_ydata().tolist() == [25, 75]
    assert right.get_ylabel() == "right of 20 validation problems (%)"
    low, high = right.collections[0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx(Share(5, 20).ci95)


# -- galleries ---------------------------------------------------------------------------------------------------------


def test_gallery_text_overlaps_nothing_and_stays_inside():
    figure = galleries.gallery(problems()[6:10], predictions(3)[6:10])
    assert texts_inside(figure)
    boxes = [text.get_window_extent() for text in figure.texts if text.get_text().strip()]
    assert len(boxes) > 20
    pairs = ((a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert not any(a.overlaps(b) and min(a.y1, b.y1) - max(a.y0, b.y0) > 3 for a, b in pairs)
    pictures = [axes.get_window_extent() for axes in figure.axes]
    assert not any(box.overlaps(picture) for box in boxes for picture in pictures)


def test_a_gallery_leaves_no_word_out_and_marks_the_choices():
    problem = Problem("p", "A cat or a dog, " * 30, ("a cat", "a dog", "neither"), 1, drawing(0))
    figure = galleries.gallery([problem], [Prediction("p", 2, False, "supercalifragilistic" * 20 + " end.")])
    lines = [text.get_text() for text in figure.texts]
    joined = " ".join(" ".join(lines).split())
    assert problem.question.strip() in joined
    assert "A. a cat ✓ B. a dog ✗ C. neither ← the model" in joined
    assert f"“{'supercalifragilistic' * 20}end.”" in "".join(lines).replace(" ", "")
    assert not any(line.startswith(" ") for line in lines if "or a dog" in line)  # only choices hang
    assert texts_inside(figure)
    silent = galleries.gallery([problem], [Prediction("p", None, False, "")])
    assert [text.get_text() for text in silent.texts][-2:] == ["✗ the model named none of the choices", "“”"]


def test_a_gallery_shows_problems_with_a_picture_first():
    made = [Problem(f"p{i}", f"Question {i}?", ("a", "b"), 0, drawing(i) if i in (2, 5) else None) for i in range(6)]
    answers = [Prediction(p.id, 0, True, "It is a.") for p in made][::-1]

    def asked(n: int) -> list[str]:
        return [t.get_text() for t in galleries.gallery(made, answers, n).texts if t.get_text().startswith("Question")]

    assert asked(1) == ["Question 2?"]
    assert asked(4) == ["Question 2?", "Question 5?", "Question 0?", "Question 1?"]
    mixed = galleries.gallery(made, answers, 3)
    assert [len(axes.images) for axes in mixed.axes] == [1, 1, 0]
    assert mixed.axes[2].texts[0].get_text() == "(no picture)"


def test_without_any_picture_the_text_takes_the_whole_width():
    made = problems()[:6]
    wide, narrow = galleries.gallery(made, predictions(6)[:6]), galleries.gallery(problems(), predictions(6), 6)
    assert wide.axes == [] and len(narrow.axes) == 6
    assert texts_inside(wide)
    right = max(text.get_window_extent().x1 for text in wide.texts)
    left = min(text.get_window_extent().x0 for text in wide.texts)
    assert left < 20 and right > 800
    assert words(galleries.gallery([], [])) == "there is no problem to show"


def test_pictures_are_drawn_with_the_pixels_shown():
    problem = Problem("p", "?", ("a", "b"), 0, drawing(0, (2000, 1000)))
    answer = Prediction("p", 0, True, "It is a.")
    figures = (
        galleries.gallery([problem], [answer]),
        galleries.contact_sheet([problem]),
        galleries.occlusion_map(problem, answer, np.eye(4)),
    )
    for figure in figures:
        figure.draw_without_rendering()
        for axes in figure.axes[:2]:
            height, width = axes.images[0].get_array().shape[:2]
            box = axes.get_window_extent()
            assert abs(width - 2 * height) <= 1
            assert box.width * 0.95 < width < box.width * 1.1
    assert problem.image.size == (2000, 1000)  # the problem keeps its own


# -- maps --------------------------------------------------------------------------------------------------------------


def mapped(drops: np.ndarray) -> Figure:
    problem = Problem("p", "Is this a very long question? " * 6, ("yes", "no"), 0, drawing(1, (200, 100)))
    return galleries.occlusion_map(problem, Prediction("p", 1, False, "No, it is not. The answer is no."), drops)


def words(figure) -> str:
    """All that is written on the figure, in one line."""
    texts = [*figure.texts, *(text for axes in figure.axes for text in [axes.title, *axes.texts])]
    return " ".join(" ".join(text.get_text() for text in texts).split())


def test_a_map_has_one_scale_for_all():
    weak, strong = mapped(np.diag([0.1, 0.0, -0.3])), mapped(np.diag([7.0, 1.0, -5.0]))
    for figure in (weak, strong):
        left, right, bar = figure.axes
        _, heat = right.images
        assert heat.get_clim() == (-2, 2) and heat.colorbar.extend == "both"
        assert heat.get_extent() == right.images[0].get_extent() == left.images[0].get_extent()
        assert (
            " ".join(bar.get_ylabel().split())
            == "fall in log-likelihood when covered (nats; 0.7 halves the likelihood)"
        )
        assert "no effect" not in words(figure)
        assert texts_inside(figure)
    strong_heat = strong.axes[1].images[1]
    assert strong_heat.to_rgba(2.5)[:3] == strong_heat.to_rgba(7.0)[:3] != strong_heat.to_rgba(1.0)[:3]
    purple, orange = strong_heat.to_rgba(2.0), strong_heat.to_rgba(-2.0)
    assert purple[2] > purple[1] and orange[0] > orange[2]  # a fall is purple


def test_cells_below_the_threshold_have_no_colour():
    (_, heat) = mapped(np.array([[0.049, -0.049], [0.051, -0.06]])).axes[1].images
    assert np.ma.getmaskarray(heat.get_array()).tolist() == [[True, True], [False, False]]


def test_a_map_of_noise_says_that_there_is_no_effect():
    figure = mapped(np.random.default_rng(0).uniform(-0.049, 0.049, (8, 8)))
    left, right = figure.axes  # and no colour bar
    assert len(left.images) == len(right.images) == 1
    assert "no effect: no patch changes the answer's likelihood by more than 0.05 nats" in words(figure)
    grey = np.asarray(right.images[0].get_array())
    assert (grey == grey[..., :1]).all()
    assert texts_inside(figure)


def test_a_map_names_question_answer_and_verdict():
    said = words(mapped(np.eye(2)))
    assert (
        f"{'Is this a very long question? ' * 6}The model said: “No, it is not. The answer is no.” (a wrong answer)"
        in said
    )


# -- contact sheets ----------------------------------------------------------------------------------------------------


def test_a_contact_sheet_shows_each_picture_over_its_skill():
    made = problems()
    figure = galleries.contact_sheet(made, 5)
    assert len(figure.axes) == 12 and all(len(axes.images) == 1 for axes in figure.axes)
    assert [text.get_text() for text in figure.texts] == [p.skill for p in made[6:]]
    assert texts_inside(figure)
    for axes, text in zip(figure.axes, figure.texts):
        picture, label = axes.get_window_extent(), text.get_window_extent()
        assert picture.y0 - 12 < label.y1 < picture.y0 and picture.x0 < (label.x0 + label.x1) / 2 < picture.x1
    assert len({round(axes.get_window_extent().y0) for axes in figure.axes}) == 3


def test_long_labels_of_a_contact_sheet_are_not_cut():
    skill = "Use Punnett squares to calculate probabilities of offspring types"
    figure = galleries.contact_sheet([Problem(f"p{i}", "?", ("a", "b"), 0, drawing(i), skill=skill) for i in range(12)])
    assert texts_inside(figure)
    boxes = [text.get_window_extent() for text in figure.texts] + [axes.get_window_extent() for axes in figure.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(" ".join(text.get_text().split()) == skill for text in figure.texts)


def test_a_contact_sheet_without_pictures_says_so():
    figure = galleries.contact_sheet(problems()[:6])
    assert words(figure) == "none of these problems has a picture"
    assert figure.axes == [] and figure.get_figheight() < 1 and texts_inside(figure)


def test_a_square_stands_for_a_hundred_thousand_parameters():
    figure = plots.parameter_squares({"vision": 2_900_000, "language": 134_500_000, "adapter": 1_600_000})
    squares = figure.axes[0].collections[0].get_array().astype(int).ravel().tolist()
    assert [squares.count(part) for part in range(3)] == [29, 1345, 16]
    assert len(squares) % 80 == 0 and squares.count(3) == len(squares) - 1390
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["vision: 2.9 million", "language: 134.5 million", "adapter: 1.6 million"]
