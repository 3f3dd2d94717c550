"""`mmlora run`: what it refuses, how it fails, and what it leaves of a notebook's outputs."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from mmlora import execution, headless
from mmlora.errors import MMLoraError
from mmlora.files import FileError
from mmlora.headless import NOTEBOOK, WIDGET, Interrupted, RunError, run, tidied
from mmlora.paths import RESULTS
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


def notebook_of(folder, *cells: str) -> None:
    """A notebook 04 of these cells, after one with its parameters."""
    first = new_code_cell("CHANGES, OUT, RESUME = {}, None, False", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=[first, *map(new_code_cell, cells)], metadata=kernel), folder / NOTEBOOK)


PRESSED = """
import os, signal, threading
from pathlib import Path
Path(OUT, "pid").write_text(str(os.getpid()))
try:
    for _ in range({times}):
        os.kill(os.getppid(), signal.{name})
    threading.Event().wait(60)
except KeyboardInterrupt:
    Path(OUT, "kept").touch()
    raise
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize("name, times, code", [("SIGINT", 2, 130), ("SIGTERM", 1, 143)])
def test_a_run_that_is_asked_to_stop_keeps_what_it_has_and_says_how_to_go_on(tmp_path, monkeypatch, name, times, code):
    """The kernel gets the interrupt, a second Ctrl-C changes nothing, no cell begins afterwards, and no kernel stays."""
    before = {number: signal.getsignal(number) for number in execution.SIGNALS}
    notebook_of(tmp_path, PRESSED.format(times=times, name=name), "Path(OUT, 'went on').touch()")
    monkeypatch.setattr(headless, "NOTEBOOKS", tmp_path)
    folder = tmp_path / "run"
    with pytest.raises(Interrupted) as caught:
        run(Settings(minutes=2.5), out=folder)
    assert str(caught.value) == (
        f"stopped. What was done is kept in {folder}; go on with: python -m mmlora run --minutes 2.5 --out {folder} --resume"
    )
    assert caught.value.code == code and (folder / "kept").is_file() and not (folder / "went on").exists()
    assert "KeyboardInterrupt" in (folder / NOTEBOOK).read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_a_run_that_is_asked_to_stop_while_no_cell_runs_begins_none(tmp_path, monkeypatch):
    stop = execution.Stop()
    with stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(execution.Stopped):
            stop.between_cells(cell=None, cell_index=1)


@pytest.mark.parametrize("name", ["exp_{lr}", "{", "{0} {pm}", "50 % #1 'é' \"q\"", ".run.", "~"])
def test_any_name_may_be_a_runs_folder(tmp_path, monkeypatch, name):
    notebook_of(tmp_path, "raise ValueError(OUT)")
    monkeypatch.setattr(headless, "NOTEBOOKS", tmp_path)
    with pytest.raises(RunError, match="with ValueError") as caught:
        run(Settings(), out=tmp_path / name)
    command = str(caught.value).rpartition("go on with: ")[2]
    assert shlex.split(command)[-3:] == ["--out", str(tmp_path / name), "--resume"]
    assert "ValueError" in (tmp_path / name / NOTEBOOK).read_text()


@pytest.mark.parametrize("name, reason", [("file/run", "Not a directory"), ("n" * 300, "File name too long")])
def test_a_folder_that_cannot_be_had_is_a_sentence(no_notebook, tmp_path, name, reason):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=f"cannot be used .{reason}"):
        run(Settings(), out=tmp_path / name)


def test_a_folder_whose_name_no_notebook_can_hold_is_refused(no_notebook, tmp_path):
    with pytest.raises(RunError, match="is not valid UTF-8; choose another"):
        run(Settings(), out=tmp_path / "\udcff")


def test_a_notebook_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, capsys):
    """Its place is taken while it runs; what is trained goes on, and that is said once."""
    taken = f"from pathlib import Path; it = Path(OUT, {NOTEBOOK!r}); it.unlink(); it.mkdir()"
    notebook_of(tmp_path, taken, "print('still here')", "raise ValueError('the end')")
    monkeypatch.setattr(headless, "NOTEBOOKS", tmp_path)
    with pytest.raises(RunError, match="with ValueError: the end"):
        run(Settings(), out=tmp_path / "run")
    said = capsys.readouterr().out
    assert "still here" in said and said.count("the executed notebook is not written: ") == 1


def test_a_report_that_cannot_be_written_is_all_that_is_missing(tmp_path, monkeypatch, capsys):
    record = json.loads((RESULTS / "one_hour_smolbridge.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(record.get("figures", record)))
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunError, match="only the report is missing: .*report.html cannot be used") as caught:
        headless._finish(tmp_path)
    assert f"adapter   {tmp_path / 'adapter'}" in capsys.readouterr().out
    (tmp_path / "report.html").rmdir()
    subprocess.run(shlex.split(str(caught.value).rpartition("write it with: ")[2]), check=True)
    assert (tmp_path / "report.html").is_file()


def test_without_the_notebooks_packages_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    with pytest.raises(RunError, match="papermill is not installed; run: python -m pip install papermill nbconvert"):
        run(Settings(), out=tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_a_home_of_nobody_and_a_link_to_itself_are_sentences(no_notebook, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(MMLoraError, match="~nobody-of-ours/run names the home folder"):
        run(Settings(), out="~nobody-of-ours/run")
    with pytest.raises(MMLoraError, match="~nobody-of-ours/base names the home folder"):
        run(Settings(model="~nobody-of-ours/base"), out=tmp_path / "run")
    with pytest.raises(FileError, match="loop/run cannot be used"):
        run(Settings(), out=tmp_path / "loop" / "run")


def test_the_kernel_is_of_this_python(tmp_path, monkeypatch):
    """Whatever another installation has left under the name python3."""
    left = tmp_path / "jupyter" / "kernels" / "python3"
    left.mkdir(parents=True)
    left.joinpath("kernel.json").write_text(
        json.dumps({"argv": ["/nowhere/python"], "display_name": "3", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    notebook_of(tmp_path, "import sys; raise ValueError(sys.executable)")
    monkeypatch.setattr(headless, "NOTEBOOKS", tmp_path)
    with pytest.raises(RunError, match=f"with ValueError: {re.escape(sys.executable)}"):
        run(Settings(), out=tmp_path / "run")
