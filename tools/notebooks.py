"""Execute the lessons and keep their outputs: `make notebooks`, or `python -m tools.notebooks 00_start_here 05_…`.

A lesson runs with the settings of its last record (or with given ones, `NAME='CODE OF ITS PARAMETERS CELL'`), its solutions
run behind it in the same kernel, and what comes out goes into notebooks/, notebooks/solutions/ and
results/notebooks/NAME.json: how long it took, on what, and the figures that the lesson's prose speaks of. A stamp in each
notebook ties its outputs to its code. Run it in a clean checkout, alone on the machine.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from time import perf_counter

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from mmlora.files import write_whole
from mmlora.headless import tidied
from mmlora.paths import NOTEBOOKS, RESULTS
from mmlora.reporting.machine import circumstances, git_state
from tools import colab, figures

SOLUTIONS = NOTEBOOKS / "solutions"
RECORDS = RESULTS / "notebooks"
FROM_LESSON = "%run"  # a solutions notebook's first code cell: it runs the lesson where somebody opens it by hand

#: What the record takes from a notebook's variables when it has run: an expression whose value becomes JSON.
FIGURES = {
    "00_start_here": """{
        "before": {method: score(test, answers).to_dict() for method, answers in before.items()},
        "after": {method: score(test, answers).to_dict() for method, answers in after.items()},
        "gain": {method: asdict(compare(after[method], before[method])) for method in METHODS},
        "blank_image": score(blanked(test), blind).to_dict(),
        "settings": {"MODEL": MODEL, "MINUTES": MINUTES, "SKILL": SKILL, "RANK": RANK, "TRAIN": TRAIN, "TEST": TEST},
    }""",
    "01_lora_from_scratch": """{
        "base": {"accuracy": results["base"].accuracy},
        "full": {"accuracy": results["full tuning"].accuracy, "millions": trained["full tuning"] / 1e6},
        "lora": {"accuracy": results["LoRA"].accuracy, "millions": trained["LoRA"] / 1e6},
        "scores": {name: result.to_dict() for name, result in results.items()},
        "energy": {str(r): shares[r] for r in RANKS},
        "bytes": bytes_kept, "notes": notes, "seconds": seconds, "merged": merged, "peft_difference": peft_difference,
    }""",
    "02_inside_a_vlm": """{
        "n": len(test), "steps": STEPS, "gradient_norms": {str(t): norms for t, norms in pulls.items()},
        **{name.replace(", ", "_"): {
            "own": score(test, r["own"]).accuracy, "ci95": score(test, r["own"]).ci95,
            "swapped": score(test, r["swapped"]).accuracy,
            **({"seconds": r["log"].seconds, "trainable": r["size"]} if "log" in r else {}),
        } for name, r in results.items()},
    }""",
    "03_scienceqa": """{
        "blind": score(held_out, blind["blind reader"]).columns["IMG"].accuracy, "chance": chance["IMG"], "masks": table,
    }""",
    "04_one_hour_run": "asdict(metrics)",
    "08_your_own_pictures": "asdict(metrics)",
    "09_open_clip": """{
        "names": len(names), "pictures": len(lessons), "training_minutes": minutes,
        **{key: {"accuracy": share.accuracy, "ci95": share.ci95, "n": share.n} for key, share in (
            ("known", known), ("unseen", new), ("shuffled_known", shuffled_known), ("shuffled_unseen", shuffled_new))},
        "prompts": prompts, "retrieval": {"before": asdict(before), "after": asdict(after)}, "adapter_start": fresh,
        "silent": silent, "zero_shot": zero, "asked": len(asked), "trained": len(spent), "all_training_minutes": sum(spent) / 60,
        "interpolated": {f"{100 * alpha:.0f}": both for alpha, both in mix.items()},
        "moved": {f"{100 * alpha:.0f}": both for alpha, both in moved.items()}, "won": won,
        "few_shot": {way: {k: {"accuracy": bars[way][k][0], "ci95": bars[way][k][1:], "draws": [percent(d) for d in hit]}
                           for k, hit in found.items()} for way, found in runs.items()},
        "over_probe": {way: {"shots": some_shots, "points": gap, "ci95": ends} for way, (gap, *ends) in over_probe.items()},
        "minisqa": {"accuracy": yardstick.accuracy, "ci95": yardstick.ci95, "n": len(problems), "chance": chance},
    }""",
    "05_reading_the_results": """{"run": folder.name, "accuracy": trained.to_dict()}""",
}


def lessons() -> list[str]:
    """The names of all lessons, in their order."""
    return [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def solutions_of(name: str) -> NotebookNode | None:
    """The solutions notebook of a lesson; None where its exercises have none."""
    path = SOLUTIONS / f"{name}.ipynb"
    return nbformat.read(path, as_version=4) if path.is_file() else None


def joined(lesson: NotebookNode, solutions: NotebookNode | None) -> NotebookNode:
    """The lesson's cells and, behind them, its solutions' (the same objects): one kernel for both."""
    behind = [] if solutions is None else [c for c in solutions.cells if not c.source.startswith(FROM_LESSON)]
    return nbformat.v4.new_notebook(cells=[*lesson.cells, *behind], metadata=lesson.metadata)


def stamp(*notebooks: NotebookNode) -> str:
    """A hash of all code that outputs come from; prose, and the cell that installs mmlora, may change without it."""
    sources = "\0".join(cell.source for notebook in notebooks for cell in code(notebook) if cell.get("id") != colab.ID)
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def parted(name: str) -> list[str]:
    """What of a lesson does not belong to its code any more: its outputs, its solutions', its record."""
    lesson, solutions = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4), solutions_of(name)
    record = RECORDS / f"{name}.json"
    stamps = {
        "outputs": (lesson.metadata.get("stamp"), stamp(lesson)),
        "record": (
            json.loads(record.read_text(encoding="utf-8")).get("stamp") if record.is_file() else None,
            stamp(lesson),
        ),
    }
    if solutions is not None:
        stamps["solutions"] = (solutions.metadata.get("stamp"), stamp(lesson, solutions))
    return [what for what, (found, right) in stamps.items() if found != right]


def recorded_parameters(name: str) -> str | None:
    """The source of the parameters cell in the last recorded run; None without one."""
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["parameters"] if path.is_file() else None


def execute(name: str, state: dict, parameters: str | None = None) -> dict[Path, str]:
    """Run a lesson from top to bottom and its solutions behind it; what they and the lesson's record are to hold.

    `parameters` stands in for the source of the cell tagged so while it runs; the file keeps its own. `state` is git's.
    """
    path = NOTEBOOKS / f"{name}.ipynb"
    lesson, solutions = nbformat.read(path, as_version=4), solutions_of(name)
    tagged = next(cell for cell in lesson.cells if "parameters" in cell.metadata.get("tags", []))
    tagged.source, own = parameters or tagged.source, tagged.source
    taken = nbformat.v4.new_code_cell(
        f"import json\nfrom dataclasses import asdict\nprint(json.dumps({FIGURES.get(name, '{}')}))"
    )
    seconds = _run(joined(lesson, solutions), len(lesson.cells), taken)
    found = json.loads("".join(output.text for output in taken.outputs if output.get("name") == "stdout"))
    tagged.source = own
    record = {
        "notebook": name,
        "stamp": stamp(lesson),
        "seconds": round(seconds, 1),
        "minutes": round(seconds / 60, 2),
        "parameters": parameters or own,
        "figures": found,
        **circumstances(state),
    }
    lesson.metadata["stamp"] = stamp(lesson)
    files = {path: _text(lesson), RECORDS / f"{name}.json": json.dumps(record, indent=1) + "\n"}
    if solutions is not None:
        solutions.metadata["stamp"] = stamp(lesson, solutions)
        files[SOLUTIONS / path.name] = _text(solutions)
    return files


def _text(notebook: NotebookNode) -> str:
    return nbformat.writes(tidied(notebook)) + "\n"


def _run(whole: NotebookNode, lesson: int, taken: NotebookNode) -> float:
    """Execute all cells, `taken` behind the lesson's; seconds of the lesson alone."""
    whole.cells.insert(lesson, taken)
    client, counts = NotebookClient(whole, timeout=None, resources={"metadata": {"path": str(NOTEBOOKS)}}), 0
    began, seconds = perf_counter(), 0.0
    with client.setup_kernel():
        for index, cell in enumerate(whole.cells):
            if index == lesson:
                seconds = perf_counter() - began
            if cell.cell_type == "code":
                counts += index != lesson  # the cell that takes the figures is nobody's
                client.execute_cell(cell, index, execution_count=counts)
            cell.metadata.pop("execution", None)  # times of every cell, which would change each run
    return seconds


def main(arguments: list[str]) -> None:
    """Execute the named lessons, or all, each with the given or the recorded parameters."""
    state, files = git_state(), {}
    try:
        for argument in arguments or lessons():
            name, _, given = argument.partition("=")
            name, began = Path(name).stem, perf_counter()
            print(f"{name} …", flush=True)
            files |= execute(name, state, given or recorded_parameters(name))
            print(f"{name}: {(perf_counter() - began) / 60:.1f} minutes, solutions included", flush=True)
    finally:  # written at the end, so that every lesson ran in the same clean checkout; none is lost where one fails
        for path, text in files.items():
            write_whole(path, text)
        for path in figures.files():
            figures.render_file(path)


if __name__ == "__main__":
    main(sys.argv[1:])
