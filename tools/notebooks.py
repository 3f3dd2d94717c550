"""Execute notebooks as they are and keep their outputs: `python -m tools.notebooks 00_start_here 05_reading_the_results`.

Writes the outputs into notebooks/ and results/notebooks/NAME.json: how long it took, on what, and the figures that the
lesson's first cell speaks of. Run it in a clean checkout, alone on the machine.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from time import perf_counter

import nbformat
from nbclient import NotebookClient

from mmlora.files import write_whole
from mmlora.headless import tidied
from mmlora.paths import NOTEBOOKS, RESULTS
from mmlora.reporting.machine import git_state, machine, versions

#: What the record takes from a notebook's variables when it has run: an expression whose value becomes JSON.
FIGURES = {
    "00_start_here": """{
        "before": {method: score(test, answers).to_dict() for method, answers in before.items()},
        "after": {method: score(test, answers).to_dict() for method, answers in after.items()},
        "gain": {method: asdict(compare(after[method], before[method])) for method in METHODS},
        "blank_image": score(blanked(test), blind).to_dict(),
        "settings": {"MODEL": MODEL, "MINUTES": MINUTES, "SKILL": SKILL, "RANK": RANK, "TRAIN": TRAIN, "TEST": TEST},
    }""",
    "04_one_hour_run": "asdict(metrics)",
    "05_reading_the_results": """{"run": folder.name, "accuracy": trained.to_dict()}""",
}


def execute(name: str, parameters: str | None = None) -> dict:
    """Run a notebook from top to bottom, keep its outputs, and return its record.

    `parameters` stands in for the source of the cell tagged so while it runs; the file keeps its own.
    """
    path, state = NOTEBOOKS / f"{name}.ipynb", git_state()  # the outputs make the checkout dirty
    notebook = nbformat.read(path, as_version=4)
    tagged = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    tagged.source, own = parameters or tagged.source, tagged.source
    figures = nbformat.v4.new_code_cell(
        f"import json\nfrom dataclasses import asdict\nprint(json.dumps({FIGURES.get(name, '{}')}))"
    )
    notebook.cells.append(figures)
    began = perf_counter()
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    seconds = perf_counter() - began
    printed = notebook.cells.pop().outputs
    found = json.loads("".join(output.text for output in printed if output.output_type == "stream"))
    tagged.source = own
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of every cell, which would change each run
    nbformat.write(tidied(notebook), path)
    record = {
        "notebook": name,
        "seconds": round(seconds, 1),
        "parameters": parameters or own,
        "figures": found,
        "machine": machine(),
        "versions": versions(),
        "git": state,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_whole(RESULTS / "notebooks" / f"{name}.json", json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        each, _, given = argument.partition("=")
        print(f"{each}: {execute(each, given or None)['seconds']:.0f} seconds")
