"""The pictures of docs/speed.md say what their records say."""

import pytest

from tools import speed_pictures as pictures

PLAIN = {"matrix products": 0.2, "attention": 0.05, "calls": 0.05}
FUSED = {"matrix products": 0.15, "attention": 0.02, "calls": 0.03}


def test_bars_are_as_long_as_steps_and_name_each_kind_once():
    figure = pictures.time_bars({"plain": PLAIN, "fused": FUSED})
    (axes,) = figure.axes
    ends = {round(bar.get_y() + bar.get_height() / 2): bar.get_x() + bar.get_width() for bar in axes.patches}
    assert ends == {0: pytest.approx(300), 1: pytest.approx(200)}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(PLAIN)


def test_a_contender_with_several_seeds_has_one_name_and_a_line_for_each():
    answers = [{"minutes": 1, "correct": 50, "n": 100}, {"minutes": 2, "correct": 80, "n": 100}]
    records = [{"contender": who, "answers": answers} for who in ("a", "e", "e")]
    (axes,) = pictures.learning_by_the_clock(records).axes
    lines = [line for line in axes.lines if list(line.get_ydata()) == [50, 80]]
    assert len(lines) == 3
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [pictures.NAMES["a"], pictures.NAMES["e"]]
