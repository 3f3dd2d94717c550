"""Fixtures that several test files use."""

import multiprocessing

import pytest
import torch


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

    The processes are forked from a server that has done nothing but import: fresh, without 10 seconds of imports each.
    """
    context = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else None)
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["tiny"])

    def run(function, *arguments) -> int:
        process = context.Process(target=function, args=arguments)
        process.start()
        process.join()
        return process.exitcode

    return run
