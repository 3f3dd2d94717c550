"""`mmlora run`: what it refuses, how it fails, and what it leaves of a notebook's outputs."""

import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from mmlora import headless
from mmlora.headless import NOTEBOOK, WIDGET, RunError, run, tidied
from mmlora.settings import Settings

# The notebook that is left.


@pytest.mark.parametrize(
    "written, kept",
    [
        ("\r 10%\r 50%\r100%\n", "100%\n"),
        ("  0%|  |\r100%|##|\nnext\n", "100%|##|\nnext\n"),
        ("one\n 1/2\r 2/2\n\nthree\rfour", "one\n 2/2\n\nfour"),
        ("\r100%\r", "100%"),
        ("\r 50%|# |\r        \rdone\n\r 90%\r    \r", "done\n"),
        ("Windows\r\nlines\r\n", "Windows\nlines\n"),
        ("plain\n", "plain\n"),
    ],
)
def test_of_a_progress_bar_the_last_state_is_kept(written, kept):
    cell = new_code_cell(
        "1",
        outputs=[
            new_output("stream", name="stderr", text=written),
            new_output("execute_result", {"text/plain": "a\rb"}, execution_count=1),
        ],
    )
    outputs = tidied(new_notebook(cells=[cell])).cells[0].outputs
    assert outputs[0].text == kept and outputs[1].data["text/plain"] == "a\rb"


def test_of_a_widget_the_words_are_kept_and_of_a_bar_nothing():
    """A widget without its kernel is an error message in JupyterLab, and a bar would stand at 0 % for ever."""
    view = {"model_id": "1", "version_major": 2, "version_minor": 0}
    written = ("1. Why?", "Loading weights:   0%|          | 0/379 [00:00<?, ?it/s]")
    shown = [new_output("display_data", {WIDGET: view, "text/plain": words}) for words in written]
    shown.append(new_output("display_data", {"text/plain": "at 90%|"}))
    outputs = tidied(new_notebook(cells=[new_code_cell("1", outputs=shown)])).cells[0].outputs
    assert [output.data for output in outputs] == [{"text/plain": "1. Why?"}, {"text/plain": "at 90%|"}]


# Starting and failing.


@pytest.fixture
def no_notebook(monkeypatch):
    import papermill

    monkeypatch.setattr(papermill, "execute_notebook", None)


def test_a_folder_with_something_in_it_is_not_written_to(no_notebook, tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(RunError, match="is not empty; choose another folder, or .*--resume"):
        run(Settings(), out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_a_file_is_no_folder_for_a_run(no_notebook, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(RunError, match="notes is a file; name a folder"):
        run(Settings(), out=tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"


def test_there_must_be_something_to_resume(no_notebook, tmp_path):
    with pytest.raises(RunError, match="does not exist, so there is nothing to resume"):
        run(Settings(), out=tmp_path / "missing", resume=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "last, said",
    [
        ("raise ValueError('the disk is on fire.')", "with ValueError: the disk is on fire."),
        ("import os\nos._exit(137)", "the run's kernel died, most likely because memory ran out"),
    ],
)
def test_a_run_that_ends_early_says_why_and_the_way_to_go_on(tmp_path, monkeypatch, last, said):
    first = new_code_cell("CHANGES, OUT, RESUME = {}, None, False", metadata={"tags": ["parameters"]})
    cells = [first, new_code_cell("print(CHANGES, OUT, RESUME)"), new_code_cell(last)]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / NOTEBOOK)
    monkeypatch.setattr(headless, "NOTEBOOKS", tmp_path)
    folder = tmp_path / "a run"
    with pytest.raises(RunError) as caught:
        run(Settings(minutes=2.5, seed=7), out=folder)
    message = str(caught.value)
    assert said in message
    assert message.endswith(f"go on with: python -m mmlora run --minutes 2.5 --seed 7 --out '{folder}' --resume")
    printed = [
        o.text
        for c in nbformat.read(folder / NOTEBOOK, 4).cells
        for o in c.get("outputs", ())
        if o.output_type == "stream"
    ]
    assert printed == [f"{{'minutes': 2.5, 'seed': 7}} {folder} False\n"]
    with pytest.raises(RunError):
        run(Settings(minutes=2.5, seed=7), out=folder, resume=True)
    again = nbformat.read(folder / NOTEBOOK, 4)
    assert f"{folder} True" in "".join(o.get("text", "") for c in again.cells for o in c.get("outputs", ()))


def test_without_the_notebooks_packages_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    with pytest.raises(RunError, match="papermill is not installed; run: python -m pip install papermill nbconvert"):
        run(Settings(), out=tmp_path / "run")
    assert not any(tmp_path.iterdir())
