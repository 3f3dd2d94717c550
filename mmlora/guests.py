"""Models and data sets that come as packages of their own: found by name, imported when they are asked for.

    [project.entry-points."mmlora.models"]      name = "package"   with ENTRY, folder(), download(), register(),
                                                                and words_read(vlm, picture) where it can say what it reads
    [project.entry-points."mmlora.problems"]    name = "package"   with load(split, limit), which raises
                                                                `problems.rows.NoSplit` for a split it lacks, and LICENCE

SmolBridge and MiniSQA are two such guests. Nothing below the command line knows them by name, and any other package
that declares the same entry points is found in the same way.
"""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from typing import Any, Literal

Kind = Literal["models", "problems"]

UNKNOWN_LICENCE = "other"  # the hub's word for a licence that it cannot name
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # owner/name, what the Hugging Face hub calls a model or a data set


def names(kind: Kind) -> list[str]:
    """The names of all guests of this kind that are installed."""
    return sorted({point.name for point in entry_points(group=f"mmlora.{kind}")})


def guest(kind: Kind, name: str) -> Any:
    """The package of this guest, a module imported now; None where no installed package declares the name."""
    found = entry_points(group=f"mmlora.{kind}", name=name)
    return next(iter(found)).load() if found else None
