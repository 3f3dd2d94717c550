"""`mmlora run`: notebook 04 executed from start to end, and the report of what it leaves behind."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmlora import guests
from mmlora.errors import MMLoraError
from mmlora.execution import Stop, Writer, execute
from mmlora.files import FileError, refusals
from mmlora.paths import NOTEBOOKS, expanded, new_run
from mmlora.settings import Settings

if TYPE_CHECKING:
    from nbformat import NotebookNode

NOTEBOOK = "04_one_hour_run.ipynb"
WIDGET = "application/vnd.jupyter.widget-view+json"
BAR = re.compile(r"\d%\|")  # as tqdm writes it


class RunError(MMLoraError):
    """A run that cannot start or did not finish; the message says where its parts are."""


class Interrupted(RunError):
    """A run that was interrupted by a signal; `code` is the exit code that shells use for it, 128 plus its number."""

    def __init__(self, message: str, number: int = signal.SIGINT):
        super().__init__(message)
        self.code = 128 + number


def run(settings: Settings, *, out: Path | str | None = None, resume: bool = False) -> Path:
    """Execute notebook 04 into `out` (default `runs/<date>`) and write the report; returns the folder.

    Raises `RunError` when the folder is taken, has nothing to resume, a cell failed, the kernel died, the report cannot be
    written, or the notebooks' packages are not installed; `Interrupted` after Ctrl-C or SIGTERM; `FileError` for a folder that
    cannot be written.
    """
    folder = _folder(out)
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # as torchrun and accelerate tell a process
            return _together(settings, folder, resume)
        _check_packages()
        _check(folder, resume)
        executed = _executed(settings, folder, resume)
        _finish(folder, executed)
    except KeyboardInterrupt as stopped:
        raise Interrupted(f"stopped. {_the_way_on(settings, folder)}") from stopped
    return folder


def _check_packages() -> None:
    try:
        import ipykernel  # noqa: F401
        import nbclient  # noqa: F401
        import papermill  # noqa: F401
    except ImportError as error:
        raise RunError(
            f"{error.name} is not installed; run: python -m pip install papermill nbconvert ipykernel"
        ) from error


def _executed(settings: Settings, folder: Path, resume: bool) -> Path:
    """Execute the notebook into the folder; returns its path there."""
    import nbformat
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError

    executed = folder / NOTEBOOK
    model = settings.model if guests.guest("models", settings.model) else _there(settings.model)
    data = settings.data if guests.guest("problems", settings.data) else _there(settings.data)
    changes = replace(settings, model=model, data=data).changes()
    print(f"a run of {settings.minutes:g} minutes; its parts arrive in {folder}\n", flush=True)
    on = f"The notebook so far is {executed}; when the cause is fixed, go on with: {_command(settings, folder)}"
    with refusals(folder), Stop() as stop:
        try:
            parameters = {"CHANGES": changes, "OUT": str(folder), "RESUME": resume}
            done = execute(NOTEBOOKS / NOTEBOOK, executed, parameters, stop, sys.stdout, sys.stderr)
        except Exception as error:
            if stop.asked is not None:
                raise Interrupted(f"stopped. {_the_way_on(settings, folder)}", stop.asked) from error
            if isinstance(error, PapermillExecutionError):
                cause = f"the run stopped in cell {error.exec_count} with {error.ename}: {error.evalue}"
                raise RunError(f"{cause} {on}") from error
            if isinstance(error, DeadKernelError):
                cause = "the run's kernel died, most likely because memory ran out: close other programs."
                raise RunError(f"{cause} {on}") from error
            raise
    Writer().write(nbformat.writes(tidied(done)), str(executed))
    return executed


def _command(settings: Settings, folder: Path) -> str:
    quoted = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return quoted(["python", "-m", *shlex.split(settings.command()), "--out", str(folder), "--resume"])


def _the_way_on(settings: Settings, folder: Path) -> str:
    return f"What was done is kept in {folder}; go on with: {_command(settings, folder)}"


def _folder(out: Path | str | None) -> Path:
    """The whole path of a run's folder; raises `RunError` for a name that is not UTF-8, which a notebook cannot hold."""
    folder = expanded(out) if out else new_run()
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise RunError(f"the folder's name {str(folder)!r} is not valid UTF-8; choose another") from error
    with refusals(folder):
        return Path(os.path.realpath(folder))  # resolve raises where a link leads to itself


def _together(settings: Settings, folder: Path, resume: bool) -> Path:
    """The same run by several processes, which `accelerate launch` started: without the notebook, which is one's alone."""
    from mmlora.experiment import Experiment
    from mmlora.models import processes

    folder = Path(processes.said(str(folder)))
    if processes.first():
        _check(folder, resume)
        print(f"a run of {settings.minutes:g} minutes by {processes.count()} processes, into {folder}\n", flush=True)
    processes.wait()
    Experiment(settings, folder, resume=resume).run()
    if processes.first():
        _finish(folder)
    processes.leave()
    return folder


def _there(name: str) -> str:
    """The whole path of what lies here, for the notebook runs elsewhere; any other name as it is."""
    place = expanded(name)
    return str(place.resolve()) if os.path.exists(place) else name  # Path.exists raises where a name is too long


def _finish(folder: Path, executed: Path | None = None) -> None:
    """Remove what can be made anew, write the report, and say where everything is."""
    from mmlora.reporting.page import html_report
    from mmlora.reporting.tables import headline

    shutil.rmtree(folder / "cache", ignore_errors=True)  # hundreds of megabytes that can be made anew in minutes
    notebook = f"notebook  {executed}\n" if executed and executed.is_file() else ""
    print(f"\n{headline(folder)}\n\n{notebook}metrics   {folder / 'metrics.json'}\nadapter   {folder / 'adapter'}")
    try:
        print(f"report    {html_report(folder)}")
    except FileError as error:
        again = f"from mmlora.reporting.page import html_report; html_report({str(folder)!r})"
        command = shlex.join([sys.executable, "-c", again])
        raise RunError(f"only the report is missing: {error}. Then write it with: {command}") from error


def _check(folder: Path, resume: bool) -> None:
    """Make the folder if it is not there; raise `RunError` if it cannot hold a run, `FileError` if the disk does not allow it."""
    with refusals(folder):
        _check_content(folder, resume)
        folder.mkdir(parents=True, exist_ok=True)


def _check_content(folder: Path, resume: bool) -> None:
    if resume and not folder.is_dir():
        raise RunError(f"{folder} does not exist, so there is nothing to resume; leave --resume out to start there")
    if folder.is_file():
        raise RunError(f"{folder} is a file; name a folder for the run")
    if not resume and folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty; choose another folder, or go on with the run in it: --resume")


def tidied(notebook: NotebookNode) -> NotebookNode:
    """The notebook with what the screen showed in the end: progress bars redraw a line after a carriage return.

    A widget lives in its kernel, so a file keeps the words that stand for it, and nothing of one that was a bar.
    """
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})  # a redraw may be an output of its own
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = "\n".join(_shown(line) for line in output.text.split("\n"))
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if _stays(output)]
    return notebook


def _stays(output: NotebookNode) -> bool:
    """Whether a file keeps this output; takes the widget out of it."""
    if output.output_type == "stream":
        return bool(output.text.strip())
    widget = output.get("data", {}).pop(WIDGET, None)
    return widget is None or not BAR.search(output.data.get("text/plain", ""))


def _shown(line: str) -> str:
    """What a terminal shows of a line in the end: a bar that was wiped out leaves nothing."""
    return line.rstrip("\r").rsplit("\r", 1)[-1].rstrip()
