"""Fixtures that several test files use."""

import importlib
import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

os.environ["MMLORA_PRECISION"] = "float32"  # equality is tested to more digits than bfloat16 has

TESTS = Path(__file__).parent


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
    from mmlora.models.vlm import load_vlm

    return load_vlm("smolbridge")
