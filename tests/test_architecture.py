"""Which module may know which, what stays quick to import, and how long a module may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import mmlora

PACKAGE = Path(mmlora.__file__).parent
#: From the lowest to the highest: a module imports from its own layer and from those below.
LAYERS = (
    ("errors", "files", "paths", "guests", "threads", "network"),
    ("problems",),
    ("models",),
    ("encoding",),
    ("adapters",),
    ("training",),
    ("inference",),
    ("evaluation",),
    ("reporting",),
    ("settings", "budget", "needs", "timing", "outcome", "validation", "experiment", "execution", "headless"),
    ("doctor", "cli", "lessons", "openclip", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
GUESTS = ("minisqa", "smolbridge")  # found by their entry points; each could be a distribution of its own
HOSTS = ("doctor", "cli", "lessons", "openclip")  # what may name a guest all the same
#: Making SmolBridge's connector takes the warm-up and decay of every other training. Nothing else may be added here.
EXCEPTIONS = {("mmlora.smolbridge.align", "mmlora.training.order")}
HEAVY = ("torch", "transformers", "peft", "timm", "datasets")


class Import(NamedTuple):
    by: str
    of: str
    now: bool  # when the module is imported, not when a function is called or a type is checked


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _later(tree: ast.Module) -> set[ast.AST]:
    """Everything that does not run at import: functions' bodies, and what only a type checker reads."""
    bodies = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    bodies += [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    return {each for body in bodies for each in ast.walk(body)}


def _imports(by: str) -> list[Import]:
    """What a module imports of mmlora."""
    tree = ast.parse(MODULES[by].read_text(encoding="utf-8"))
    later, found = _later(tree), []
    for node in ast.walk(tree):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{by} imports relatively; this test reads full names only"
            full = [f"{node.module}.{each.name}" for each in node.names]
            names = [each if each in MODULES else node.module for each in full]
        found += [Import(by, name, node not in later) for name in names if name in MODULES and name != "mmlora"]
    return found


IMPORTS = [each for name in MODULES if name != "mmlora" for each in _imports(name)]


def _part(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_its_layer():
    parts = {_part(name) for name in MODULES if name != "mmlora"}
    assert parts == {*LEVEL, *GUESTS}
    assert len(IMPORTS) > 150 and not all(each.now for each in IMPORTS), "this test sees the imports"


def test_no_module_imports_itself_in_a_circle():
    graph: dict[str, set[str]] = {}
    for each in IMPORTS:
        if each.now:
            graph.setdefault(each.by, set()).add(each.of)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_layers_import_downwards_only():
    """Also within functions: a late import breaks a circle for the interpreter, not for the reader."""
    own = [each for each in IMPORTS if _part(each.by) not in GUESTS and _part(each.of) not in GUESTS]
    assert [f"{i.by} imports {i.of}" for i in own if LEVEL[_part(i.by)] < LEVEL[_part(i.of)]] == []


def test_training_does_not_know_what_comes_after_it_nor_they_it():
    parts = {(_part(each.by), _part(each.of)) for each in IMPORTS}
    assert not parts & {(by, "training") for by in ("inference", "evaluation", "reporting")}


def test_a_guest_is_named_by_its_hosts_only():
    of_guests = [each for each in IMPORTS if _part(each.of) in GUESTS and _part(each.by) != _part(each.of)]
    assert [f"{i.by} imports {i.of}" for i in of_guests if _part(i.by) not in HOSTS] == []
    assert of_guests, "the command line does import them"


def test_a_guest_needs_nothing_from_adapters_on():
    by_guests = {(i.by, i.of) for i in IMPORTS if _part(i.by) in GUESTS and _part(i.by) != _part(i.of)}
    above = {(by, of) for by, of in by_guests if LEVEL.get(_part(of), LEVEL["adapters"]) >= LEVEL["adapters"]}
    assert above == EXCEPTIONS


def test_what_is_asked_for_often_is_quick_to_import():
    """In one fresh process, one after the other: the first module that brings something heavy is named."""
    quick = ("mmlora", "mmlora.settings", "mmlora.cli", "mmlora.reporting.tables", "mmlora.reporting.plots",
             "mmlora.reporting.galleries", "mmlora.evaluation.scores", "tools.readme")  # fmt: skip
    program = f"""
import importlib, sys
def look(after):
    found = [name for name in {HEAVY!r} if name in sys.modules]
    assert not found, f"{{after}} imports {{found}}"
for name in {quick!r}:
    importlib.import_module(name)
    look(name)
tables = sys.modules["tools.readme"].readme_tables()
assert "smolbridge" in tables["models"]
look("readme_tables()")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_module_is_read_in_one_sitting():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_only_prompts_and_answers_know_that_there_are_choices():
    """Everything between them takes conversations, so that other tasks need no other code."""
    allowed = {"mmlora.encoding.prompts", "mmlora.encoding.answers"}
    between = [name for name in MODULES if name.startswith(("mmlora.encoding", "mmlora.adapters", "mmlora.training"))]
    assert allowed < set(between)
    for name in set(between) - allowed:
        assert not re.search(r"\.choices\b", MODULES[name].read_text(encoding="utf-8")), name
        assert "mmlora.problems.record" not in {each.of for each in _imports(name)}, name
    assert all("mmlora.problems.record" in {each.of for each in _imports(name)} for name in allowed)


def test_requirements_are_the_librarys_and_the_notebooks():
    folder = PACKAGE.parent
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [*project["dependencies"], *project["optional-dependencies"]["notebook"]]
    assert [line for line in lines if line and not line.startswith("#")] == wanted
