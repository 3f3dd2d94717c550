"""The clock of the one-hour run, and what it refuses."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from mmlora import headless, paths
from mmlora.budget import WHOLE_SPLITS, Budget
from mmlora.evaluation import answering as evaluate
from mmlora.headless import RunError, scoring_minutes, tidied


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `clock.sleep(minutes)` moves."""

    class Clock:
        now = 1000.0

        def sleep(self, minutes):
            self.now += 60 * minutes

    clock = Clock()
    monkeypatch.setattr(headless, "perf_counter", lambda: clock.now)
    return clock


def budget(clock, minutes: float) -> Budget:
    return Budget(minutes, started=clock.now)


# The budget.


@pytest.mark.parametrize("minutes, train, test", [(0.1, 64, 48), (6, 720, 180), (15, 1800, 450), (60, None, None)])
def test_sizes_follow_from_the_minutes(minutes, train, test):
    assert (Budget(minutes).train_problems, Budget(minutes).test_problems) == (train, test)


def test_what_an_earlier_session_spent_is_counted(clock):
    resumed = budget(clock, 10)
    with resumed.watch("train"):
        clock.now += 60
    resumed.add("train", 2.5)
    assert resumed.to_dict() == {"data": 0, "cache": 0, "train": 3.5, "score": 0, "total": 3.5}


def test_a_run_on_parts_has_less_than_minisqas_own_sizes():
    from mmlora.minisqa.core import SPLIT_SIZES

    parts = Budget(WHOLE_SPLITS - 0.1)
    assert 0.9 * SPLIT_SIZES["train"] < parts.train_problems < SPLIT_SIZES["train"]
    assert 0.9 * SPLIT_SIZES["test"] < parts.test_problems < SPLIT_SIZES["test"]


def test_training_gets_what_is_left_beside_scoring(clock, capsys):
    hour = budget(clock, 60)
    clock.sleep(12)
    assert hour.elapsed() == pytest.approx(12) and hour.training_minutes(8) == pytest.approx(40)
    clock.sleep(30)
    assert hour.training_minutes(8) == pytest.approx(10) and not capsys.readouterr().out


@pytest.mark.parametrize("slept, scoring", [(47, 8), (70, 0), (1, 100)])
def test_a_slow_machine_trains_a_tenth_all_the_same_and_says_so(clock, capsys, slept, scoring):
    hour = budget(clock, 60)
    clock.sleep(slept)
    assert hour.training_minutes(scoring) == pytest.approx(6)
    assert f"this machine needs {slept + scoring:.1f} of 60 minutes" in capsys.readouterr().out


def test_a_part_that_comes_twice_is_added_up(clock):
    hour = budget(clock, 60)
    for minutes in (1, 2):
        with hour.watch("score"):
            clock.sleep(minutes)
    with hour.watch("data"):
        clock.sleep(4)
    clock.sleep(0.5)
    assert hour.to_dict() == {"data": 4.0, "cache": 0.0, "train": 0.0, "score": 3.0, "total": 7.5}


def test_scoring_minutes_come_from_a_timed_batch(clock, monkeypatch):
    asked = []

    def answering(vlm, problems, *_, **__):
        asked.append(problems)
        clock.sleep(0.5)

    monkeypatch.setattr(evaluate, "evaluate", answering)
    assert scoring_minutes(None, list(range(100)), list(range(60)), 40, trial=10) == pytest.approx(1.1 * 0.5 * 160 / 10)
    assert len(asked) == 1 and asked[0] == list(range(0, 100, 10))
    assert scoring_minutes(None, [1, 2], [3], 40, trial=10) == pytest.approx(1.1 * 0.5 * 3 / 2)


# The notebook that is left.


@pytest.mark.parametrize("written, kept", [
    ("\r 10%\r 50%\r100%\n", "100%\n"),
    ("  0%|  |\r100%|##|\nnext\n", "100%|##|\nnext\n"),
    ("one\n 1/2\r 2/2\n\nthree\rfour", "one\n 2/2\n\nfour"),
    ("\r100%\r", "100%"),
    ("\r 50%|# |\r        \rdone\n\r 90%\r    \r", "done\n"),
    ("Windows\r\nlines\r\n", "Windows\nlines\n"),
    ("plain\n", "plain\n"),
])
def test_of_a_progress_bar_the_last_state_is_kept(written, kept):
    cell = new_code_cell("1", outputs=[new_output("stream", name="stderr", text=written),
                                       new_output("execute_result", {"text/plain": "a\rb"}, execution_count=1)])
    outputs = tidied(new_notebook(cells=[cell])).cells[0].outputs
    assert outputs[0].text == kept and outputs[1].data["text/plain"] == "a\rb"


# Starting and failing.


@pytest.fixture
def no_notebook(monkeypatch):
    import papermill

    monkeypatch.setattr(papermill, "execute_notebook", None)


def test_a_folder_with_something_in_it_is_not_written_to(no_notebook, tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(RunError, match="is not empty; choose another folder, or .*--resume"):
        headless.run(1, out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_a_file_is_no_folder_for_a_run(no_notebook, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(RunError, match="notes is a file; name a folder"):
        headless.run(1, out=tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"


def test_there_must_be_something_to_resume(no_notebook, tmp_path):
    with pytest.raises(RunError, match="does not exist, so there is nothing to resume"):
        headless.run(1, out=tmp_path / "missing", resume=True)
    assert not any(tmp_path.iterdir())


def test_a_cell_that_fails_is_named_with_the_way_to_go_on(tmp_path, monkeypatch):
    first = new_code_cell("MINUTES, SEED, OUT, RESUME = 60, 0, '', False", metadata={"tags": ["parameters"]})
    second = new_code_cell("print(MINUTES, SEED, OUT, RESUME)\nraise ValueError('the disk is on fire.')")
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=[first, second], metadata=kernel), tmp_path / headless.NOTEBOOK)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    folder = tmp_path / "run"
    with pytest.raises(RunError) as caught:
        headless.run(2.5, seed=7, out=folder)
    message = str(caught.value)
    assert "with ValueError: the disk is on fire." in message
    assert message.endswith(f"mmlora run --minutes 2.5 --out {folder} --resume")
    printed = [o.text for c in nbformat.read(folder / headless.NOTEBOOK, 4).cells for o in c.get("outputs", ())
               if o.output_type == "stream"]
    assert printed == [f"2.5 7 {folder} False\n"]
