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
    records = [training(who, answers, "bfloat16") for who in ("a", "e", "e")]
    records += [
        training("e", answers, numbers, minutes=minutes)
        for numbers, minutes in (("bfloat16", 30), ("float32", 10), ("float32", 30))
    ]
    figure = pictures.learning_by_the_clock(records)
    lines = [[line for line in axes.lines if list(line.get_ydata()) == [50, 80]] for axes in figure.axes]
    assert [len(drawn) for drawn in lines] == [3, 1, 1, 1]
    assert {axes.get_subplotspec().get_geometry()[:2] for axes in figure.axes} == {(2, 2)}, (
        "four titles in a row collide"
    )
    assert [axes.get_title() for axes in figure.axes] == [
        "bfloat16, 10 minutes",
        "bfloat16, 30 minutes",
        "float32, 10 minutes",
        "float32, 30 minutes",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [pictures.NAMES["a"], pictures.NAMES["e"]]


def training(who, answers, numbers, seed=0, reached=None, minutes=10.0):
    machine, settings = {"precision": numbers}, {"seed": seed, "minutes": minutes}
    return {"contender": who, "answers": answers, "machine": machine, "settings": settings, "samples_seen": 1000,
            "reached": reached or {}}  # fmt: skip


def test_minutes_until_a_mark_stand_in_the_order_of_the_seeds():
    answers = [{"minutes": 5, "correct": 66, "n": 100}]
    second = training("e", answers, "bfloat16", 1, {"60": 4.0, "70": None, "80": None})
    first = training("e", answers, "bfloat16", 0, {"60": 5.0, "70": 6.0, "80": None})
    longer = training("e", answers, "bfloat16", 0, {"60": 5.0, "70": 6.0, "80": 9.0}, minutes=30.0)
    row, last = pictures.table(sorted([longer, second, first], key=pictures.place)).splitlines()[-2:]
    assert "30 minutes" in last and "| 9.0 |" in last
    assert "| 0, 1 |" in row and "| 5.0, 4.0 | 6.0, never | not reached | 66.0, 66.0 |" in row


def point(value, step=0.06):
    return {"value": value, "step_seconds": step, "cache_seconds": 0.02, "memory_gb": 3.0, "tokens": 89.0}


def test_what_was_not_measured_is_on_paper():
    sweeps = {"problems": [point(1000), point(2000)], "rank": [point(4, 0.05), point(16)]}
    paper = {
        "problems": {"4000": {"cache_seconds": 80.0, "step_seconds": 240.0}},
        "machines": {"T4": {"peak_tflops": 65, "source": "a data sheet", "step_seconds": 0.002}},
    }
    said = pictures.scaling_tables({"sweeps": sweeps, "on_paper": paper})
    assert (
        "| 2,000 | 0.7 | 2.0 | cache measured, steps from a few |" in said
        and "| 4,000 | 1.3 | 4.0 | on paper |" in said
    )
    assert "| rank: 4 | 89 | 50 | 20 | 3.0 GB |" in said and "| T4 (on paper) | 65 | a data sheet | 2 |" in said
    (field,) = [axes for axes in pictures.cost_by_size(sweeps).axes if axes.get_visible()]
    assert list(field.lines[0].get_ydata()) == [50, 60] and field.get_xlabel() == "rank"
    fields = pictures.cost_by_size({"rank": [point(4, 0.01)], "cores": [point(1, 0.09), point(2, 0.01)]}).axes
    assert all(axes.get_ylim()[1] > 90 for axes in fields if axes.get_visible())
