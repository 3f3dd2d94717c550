"""Where things are.

In a checkout, and so in an editable install, every folder is the repository's own. In an installed wheel what is read
comes from the copies inside the package, runs go below the current directory, and what can be made again is kept in the
user's cache.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import platformdirs

from mmlora.errors import MMLoraError

PACKAGE = Path(__file__).resolve().parent
IN_CHECKOUT = (PACKAGE.parent / "pyproject.toml").is_file() and (PACKAGE.parent / "notebooks").is_dir()

#: Read only: the repository's folders, or the wheel's copies of them (see hatch_build.py).
DATA = PACKAGE.parent / "data" if IN_CHECKOUT else PACKAGE / "_data"
WEIGHTS = PACKAGE.parent / "weights" if IN_CHECKOUT else PACKAGE / "_weights"
NOTEBOOKS = PACKAGE.parent / "notebooks" if IN_CHECKOUT else PACKAGE / "_notebooks"
RESULTS = PACKAGE.parent / "results" if IN_CHECKOUT else PACKAGE / "_results"

#: Written: one folder a run. Notebook 04 writes here by hand or headless, notebook 05 looks here.
RUNS = (PACKAGE.parent if IN_CHECKOUT else Path.cwd()) / "runs"


class PathError(MMLoraError):
    """A path that cannot be used on this machine; the message says what to do."""


def expanded(path: str | Path) -> Path:
    """The path with `~` as the home folder. Raises `PathError` if this machine does not know the user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise PathError(
            f"{path!s:.300} names the home folder of a user whom this machine does not know; give the whole path"
        ) from error


def new_run() -> Path:
    """A folder in `RUNS` named by the time, for a run that asked for no other."""
    return RUNS / datetime.now().strftime("%Y-%m-%d-%H%M%S")


def cache_home() -> Path:
    """The folder for what can be fetched or made again: $MMLORA_HOME, or else the user's cache folder."""
    home = os.environ.get("MMLORA_HOME")
    return expanded(home) if home else Path(platformdirs.user_cache_dir("mmlora", appauthor=False))
