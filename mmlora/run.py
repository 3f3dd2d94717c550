"""The one-hour run: notebook 04 executed from start to end inside a wall-clock budget, and what it leaves behind.

`make run` calls `run`; the notebook itself uses `Budget` for its sizes and its clock, so that stepping through it by
hand and running it headless are the same thing.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import perf_counter

from mmlora.errors import MMLoraError
from mmlora.paths import NOTEBOOKS, RUNS

NOTEBOOK = "04_one_hour_run.ipynb"
WHOLE_SPLITS = 33  # minutes; at 120 and 30 problems a minute these are the 4,000 and 1,000 of MiniSQA


class RunError(MMLoraError):
    """A run that cannot start or did not finish; the message says where its parts are."""


@dataclass
class Budget:
    """How a wall-clock budget is spent, and the clock that watches it. All sizes follow from `minutes`.

    A shorter run trains on fewer problems (each costs a fixed prefix to cache) and scores fewer (each is answered three
    times), but enough for an interval that tells it from the base model. From 33 minutes on it takes whole splits.
    """

    minutes: float
    started: float = field(default_factory=perf_counter)
    spent: dict[str, float] = field(default_factory=dict)  # minutes by part: data, cache, train, score
    added: float = 0.0  # minutes of earlier sessions

    @property
    def train_problems(self) -> int | None:
        """None means all, as in `load_problems`."""
        return max(64, round(120 * self.minutes)) if self.minutes < WHOLE_SPLITS else None

    @property
    def test_problems(self) -> int | None:
        """None means all: a score on a part of ScienceQA's test split is no row beside the published ones."""
        return max(48, round(30 * self.minutes)) if self.minutes < WHOLE_SPLITS else None

    def elapsed(self) -> float:
        """Minutes since the budget began, and what was added."""
        return (perf_counter() - self.started) / 60 + self.added

    def add(self, part: str, minutes: float) -> None:
        """Count what an interrupted session before this one spent on `part`."""
        self.spent[part] = self.spent.get(part, 0.0) + minutes
        self.added += minutes

    @contextmanager
    def watch(self, part: str):
        """Count what happens inside towards `part`."""
        began = perf_counter()
        yield
        self.spent[part] = self.spent.get(part, 0.0) + (perf_counter() - began) / 60

    def training_minutes(self, scoring: float) -> float:
        """What is left for training when `scoring` minutes are kept for the end.

        At least a tenth of the budget is always trained: on a machine so slow that the fixed parts ate it, the run
        takes longer than asked and says so.
        """
        left, least = self.minutes - self.elapsed() - scoring, 0.1 * self.minutes
        if left < least:
            print(f"this machine needs {self.elapsed() + scoring:.1f} of {self.minutes:g} minutes besides training; "
                  f"training {least:.1f} minutes all the same")
        return max(left, least)

    def to_dict(self) -> dict[str, float]:
        """The `minutes` of metrics.json."""
        parts = {part: round(self.spent.get(part, 0.0), 2) for part in ("data", "cache", "train", "score")}
        return {**parts, "total": round(self.elapsed(), 2)}


def run(
    minutes: float = 60, *, model: str = "smolbridge", data: str = "minisqa", seed: int = 0,
    out: Path | str | None = None, resume: bool = False,
) -> Path:
    """Execute notebook 04 into `out` (default `runs/<date>`) and write the report; returns the folder.

    `model` is what `load_vlm` takes, `data` what `load_problems` takes.

    Raises `RunError` when the folder is taken, has nothing to resume, or a cell failed.
    """
    import nbformat
    import papermill

    from mmlora.report import headline, html_report

    folder = Path(out).resolve() if out else RUNS / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    if resume and not folder.is_dir():
        raise RunError(f"{folder} does not exist, so there is nothing to resume; leave --resume out to start there")
    if folder.is_file():
        raise RunError(f"{folder} is a file; name a folder for the run")
    if not resume and folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty; choose another folder, or go on with the run in it: --resume")
    folder.mkdir(parents=True, exist_ok=True)
    executed = folder / NOTEBOOK
    model, data = (str(Path(name).resolve()) if Path(name).exists() else name for name in (model, data))
    print(f"a run of {minutes:g} minutes; its parts arrive in {folder}\n", flush=True)
    try:
        papermill.execute_notebook(
            NOTEBOOKS / NOTEBOOK, executed, progress_bar=False, cwd=folder, kernel_name="python3",
            parameters={"MODEL": model, "DATA": data, "MINUTES": minutes, "SEED": seed, "OUT": str(folder), "RESUME": resume},
            stdout_file=sys.stdout, stderr_file=sys.stderr,
        )
    except papermill.PapermillExecutionError as error:
        raise RunError(
            f"the run stopped in cell {error.exec_count} with {error.ename}: {error.evalue} The notebook so far is "
            f"{executed}; when the cause is mended, go on with: mmlora run --minutes {minutes:g} --out {folder} --resume"
        ) from error
    nbformat.write(tidied(nbformat.read(executed, as_version=4)), executed)
    shutil.rmtree(folder / "cache", ignore_errors=True)  # hundreds of megabytes that can be made anew in minutes
    report = html_report(folder)
    print(f"\n{headline(folder)}\n\nnotebook  {executed}\nreport    {report}\nmetrics   {folder / 'metrics.json'}\n"
          f"adapter   {folder / 'adapter'}")
    return folder


def tidied(notebook):
    """Progress bars redraw a line after a carriage return; keep what the screen showed in the end."""
    for cell in notebook.cells:
        outputs = []
        for output in cell.get("outputs", []):
            if outputs and output.output_type == outputs[-1].output_type == "stream" and output.name == outputs[-1].name:
                outputs[-1].text += output.text  # every redraw may have arrived as an output of its own
            else:
                outputs.append(output)
        for output in outputs:
            if output.output_type == "stream":
                output.text = "\n".join(_shown(line) for line in output.text.split("\n"))
        if "outputs" in cell:
            cell.outputs = [o for o in outputs if o.output_type != "stream" or o.text.strip()]
    return notebook


def _shown(line: str) -> str:
    """What a terminal shows of a line in the end: a bar that was wiped out leaves nothing."""
    return line.rstrip("\r").rsplit("\r", 1)[-1].rstrip()


def scoring_minutes(vlm, problems, blank_problems, tokens: int, trial: int = 64) -> float:
    """How long generating answers of `tokens` tokens to both lists will take, from a timed batch; and a tenth more."""
    from mmlora.evaluate import evaluate

    sample = problems[:: max(1, len(problems) // trial)][:trial]
    began = perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the untrained model rambles until it is cut
        evaluate(vlm, sample, "generate", batch_size=trial, max_new_tokens=tokens, progress=False)
    return 1.1 * (perf_counter() - began) / 60 * (len(problems) + len(blank_problems)) / len(sample)
