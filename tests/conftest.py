"""Fixtures that several test files use."""

import mmlora  # noqa: F401 - before torch, so that its threads share the cores

# isort: split
import importlib
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import nbformat
import pytest
import torch

os.environ["MMLORA_PRECISION"] = "float32"  # equality is tested to more digits than bfloat16 has

TESTS = Path(__file__).parent
#: Parameters with which a lesson shows that it runs; its recorded ones show what it teaches.
SMALL = {
    "00_start_here": {"MINUTES": 0.05, "TRAIN": 32, "TEST": 8},
    "01_lora_from_scratch": {"STEPS": 3, "TEST": 8, "BATCH": 2},
    "02_inside_a_vlm": {"STEPS": 1, "BATCH": 2, "TEST": 3},
    "03_scienceqa": {"READ": 120, "HELD_OUT": 40, "CONTROLS": 1, "TRAIN": 8, "TEST": 2, "STEPS": 1},
    "05_reading_the_results": {"MAPS": 1, "GRID": 4},
    "08_your_own_pictures": {"MINUTES": 0.1, "TRAIN": 24, "TEST": 9},
    "09_open_clip": {
        "HANDS": 1,
        "NAMES": 120,
        "OUT": 40,
        "VIEWS": 0,
        "SHOTS": 1,
        "SEEDS": 1,
        "STEPS": 1,
        "PROBLEMS": 12,
    },
}


if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each of them, and for what they start
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture
def one_thread():
    """Sums on one thread: the same bits in every process of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def fresh_process():
    """`fresh_process(function, *arguments)` runs an importable function in a new process and returns its exit code.

    The processes are forked from a server that has done nothing but import: fresh, and without ten seconds of imports.
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(["tiny"])
        with pytest.MonkeyPatch.context() as patch:  # the server finds its preload through PYTHONPATH only
            patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (TESTS, TESTS.parent))))
            forkserver.ensure_running()

    def run(function, *arguments) -> int:
        process = context.Process(target=function, args=arguments)
        process.start()
        process.join()
        return process.exitcode

    return run


@pytest.fixture
def numbers(monkeypatch):
    """`numbers("bfloat16")`: from then on this process multiplies these, as one on another machine would."""
    from accelerate.state import AcceleratorState

    from mmlora.models.precision import precision

    def forget():
        precision.cache_clear()
        AcceleratorState._reset_state(reset_partial_state=True)

    def choose(name: str):
        monkeypatch.setenv("MMLORA_PRECISION", name)
        forget()

    yield choose
    forget()


@pytest.fixture
def gpu(monkeypatch):
    """The measurement for cards, benchmarks/gpu.py."""
    monkeypatch.syspath_prepend(TESTS.parent / "benchmarks")
    return importlib.import_module("gpu")


@pytest.fixture(scope="session")
def tiny_vlm():
    """A random SmolBridge of four decoder layers with its processor. Copy the model before changing it."""
    import tinyvlm

    return tinyvlm.build()


@pytest.fixture(scope="session")
def real_vlm():
    """SmolBridge itself, put together from the package index at the first use."""
    from mmlora.models.vlm import load_base

    return load_base("smolbridge")


@dataclass(frozen=True)
class ColabRun:
    """What the lessons and their solutions leave, run in an empty folder on the real weights, two at a time."""

    python: Path
    before: (
        dict[str, str] | None
    )  # versions that were there before mmlora; None where there is no index to install it from
    work: Path  # the empty folder
    folder: Path  # the run's, inside it
    printed: str  # by the run
    notebooks: dict[str, Path]  # executed, by name


@pytest.fixture(scope="session")
def colab_run(tmp_path_factory):
    """On a Python where the first cell of a notebook installed mmlora, as on Colab; on this one where no index answers."""
    import colabvenv

    from mmlora.doctor import index_answers
    from tools.notebooks import joined, solutions_of

    work, python, before = tmp_path_factory.mktemp("work"), Path(sys.executable), None
    if index_answers():
        python, site = colabvenv.fresh_venv(tmp_path_factory.mktemp("colab") / "venv")
        before = colabvenv.preinstall(colabvenv.THERE, site)
        installed = colabvenv.run_cell(python, work, TESTS.parent)
        assert installed.returncode == 0, installed.stderr

    def call(*words):
        done = subprocess.run([python, "-m", *map(str, words)], cwd=work, env=colabvenv.on_colab(work), text=True,
                              capture_output=True)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def execute(path, *more):
        """The lesson, as small as can be, and its solutions behind it in the same kernel."""
        whole, target = work / f"{path.stem}_whole.ipynb", work / path.name
        nbformat.write(joined(nbformat.read(path, as_version=4), solutions_of(path.stem)), whole)
        given = " ".join(f"-p {name} {value}" for name, value in SMALL[path.stem].items()).split()
        call("papermill", whole, target, "-k", "python3", "--no-progress-bar", *given, *more)
        return target

    folder = work / "runs" / "first"
    with ThreadPoolExecutor(2) as pool:  # a lesson as small as this mostly waits for imports and its kernel
        small = "--model smolbridge-world --minutes 0.5 --test-problems 12".split()
        run = pool.submit(call, "mmlora", "run", *small, "--out", folder)
        paths = {path.stem[:2]: path for path in colabvenv.FILES}
        later = {number: pool.submit(execute, path) for number, path in paths.items() if number not in ("04", "05")}
        printed = run.result()
        found = ("-p", "RUN", folder) if before is None else ()  # else it looks for the newest run itself
        later["05"] = pool.submit(execute, paths["05"], *found)
        notebooks = {number: each.result() for number, each in later.items()}
    notebooks["04"] = folder / paths["04"].name
    return ColabRun(python, before, work, folder, printed, notebooks)
