"""`mmlora run`: notebook 04 executed from start to end, and the report of what it leaves behind."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmlora import guests
from mmlora.errors import MMLoraError
from mmlora.paths import NOTEBOOKS, new_run
from mmlora.settings import Settings

if TYPE_CHECKING:
    from nbformat import NotebookNode

NOTEBOOK = "04_one_hour_run.ipynb"
WIDGET = "application/vnd.jupyter.widget-view+json"
BAR = re.compile(r"\d%\|")  # as tqdm writes it


class RunError(MMLoraError):
    """A run that cannot start or did not finish; the message says where its parts are."""


def run(settings: Settings, *, out: Path | str | None = None, resume: bool = False) -> Path:
    """Execute notebook 04 into `out` (default `runs/<date>`) and write the report; returns the folder.

    Raises `RunError` when the folder is taken, has nothing to resume, a cell failed, the kernel died, or the notebooks'
    packages are not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # as torchrun and accelerate tell a process
        return _together(settings, out, resume)
    try:
        import nbformat
        import papermill
        from nbclient.exceptions import DeadKernelError
    except ImportError as error:
        raise RunError(f"{error.name} is not installed; run: python -m pip install papermill nbconvert") from error
    from mmlora.reporting.page import html_report

    folder = Path(out).resolve() if out else new_run()
    _check(folder, resume)
    executed = folder / NOTEBOOK
    model = settings.model if guests.guest("models", settings.model) else _there(settings.model)
    data = settings.data if guests.guest("problems", settings.data) else _there(settings.data)
    changes = replace(settings, model=model, data=data).changes()
    print(f"a run of {settings.minutes:g} minutes; its parts arrive in {folder}\n", flush=True)
    try:
        papermill.execute_notebook(
            NOTEBOOKS / NOTEBOOK,
            executed,
            progress_bar=False,
            kernel_name="python3",
            parameters={"CHANGES": changes, "OUT": str(folder), "RESUME": resume},
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )
    except papermill.PapermillExecutionError as error:
        cause = f"the run stopped in cell {error.exec_count} with {error.ename}: {error.evalue}"
        raise RunError(f"{cause} {_the_way_on(settings, executed)}") from error
    except DeadKernelError as error:
        cause = "the run's kernel died, most likely because memory ran out: close other programs."
        raise RunError(f"{cause} {_the_way_on(settings, executed)}") from error
    nbformat.write(tidied(nbformat.read(executed, as_version=4)), executed)
    _finish(folder, html_report(folder), executed)
    return folder


def _the_way_on(settings: Settings, executed: Path) -> str:
    quoted = subprocess.list2cmdline if os.name == "nt" else shlex.join
    command = quoted(["python", "-m", *shlex.split(settings.command()), "--out", str(executed.parent), "--resume"])
    return f"The notebook so far is {executed}; when the cause is mended, go on with: {command}"


def _together(settings: Settings, out: Path | str | None, resume: bool) -> Path:
    """The same run by several processes, which `accelerate launch` started: without the notebook, which is one's alone."""
    from mmlora.experiment import Experiment
    from mmlora.models import processes
    from mmlora.reporting.page import html_report

    folder = Path(processes.said(str(Path(out).resolve() if out else new_run())))
    if processes.first():
        _check(folder, resume)
        print(f"a run of {settings.minutes:g} minutes by {processes.count()} processes, into {folder}\n", flush=True)
    processes.wait()
    Experiment(settings, folder, resume=resume).run()
    if processes.first():
        _finish(folder, html_report(folder))
    processes.leave()
    return folder


def _there(name: str) -> str:
    """The whole path of what lies here, for the notebook runs elsewhere; any other name as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _finish(folder: Path, report: Path, executed: Path | None = None) -> None:
    """Remove what can be made anew, and say where the rest is."""
    from mmlora.reporting.tables import headline

    shutil.rmtree(folder / "cache", ignore_errors=True)  # hundreds of megabytes that can be made anew in minutes
    notebook = f"notebook  {executed}\n" if executed else ""
    print(
        f"\n{headline(folder)}\n\n{notebook}report    {report}\nmetrics   {folder / 'metrics.json'}\n"
        f"adapter   {folder / 'adapter'}"
    )


def _check(folder: Path, resume: bool) -> None:
    """Raise `RunError` for a folder that cannot be a run's; make it where it is not there."""
    if resume and not folder.is_dir():
        raise RunError(f"{folder} does not exist, so there is nothing to resume; leave --resume out to start there")
    if folder.is_file():
        raise RunError(f"{folder} is a file; name a folder for the run")
    if not resume and folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty; choose another folder, or go on with the run in it: --resume")
    folder.mkdir(parents=True, exist_ok=True)


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
