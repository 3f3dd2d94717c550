"""Problems by the name of where they are: a guest such as MiniSQA, the hub, the official files, your own folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import get_args

from huggingface_hub import constants, list_repo_files, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from mmlora import guests, network
from mmlora.errors import MMLoraError
from mmlora.guests import UNKNOWN_LICENCE
from mmlora.problems import folder, json_rows, official, parquet
from mmlora.problems.record import Problem
from mmlora.problems.rows import DataError, MissingImages, NoSplit, reading

SCIENCEQA_LICENCE = "cc-by-nc-sa-4.0"  # the authors' own; the hub's card says otherwise


def load_problems(
    data: str | Path = "minisqa",
    split: str = "test",
    limit: int | None = None,
    *,
    missing_images: MissingImages = "error",
) -> list[Problem]:
    """`limit` (default all) problems of a split, from any of these places:

    - a guest's name, as `"minisqa"`, which is drawn first if need be, as many problems as asked for
    - `"owner/name"`, a data set of the hub with ScienceQA's fields, as `"derek-thomas/ScienceQA"`; kept in the hub's
      own cache, so that HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN mean what they always mean
    - a folder in ScienceQA's official layout (see `problems.official`)
    - a folder with parquet files, `<split>.parquet` or `<split>-*.parquet`; or one parquet file, as the split "test"
    - your own folder of pictures with a CSV or JSON file (see `problems.folder`)

    Parquet files give their first problems; from JSON and CSV, which people sort, fewer than all are drawn by lot, always the
    same ones, and that is printed.

    A problem without an id is called `<split>-<row>`. Pictures are decoded once now, to find damaged ones, and not kept
    decoded.
    Pictures that an official or own folder lacks are counted and listed in an error, or with
    `missing_images="text-only"` in a line of output; where not one is found, that is an error all the same. Raises
    `DataError`: one sentence with the file and the row.
    """
    if missing_images not in get_args(MissingImages):
        raise DataError(f'missing_images is {missing_images!r}; it can be "error" or "text-only"')
    if not isinstance(split, str) or Path(split).name != split:
        raise DataError(
            f"the split is {split!r:.60}, which cannot name a file; give train, validation, test or transfer"
        )
    if limit is not None and (not isinstance(limit, int) or limit < 0):
        raise DataError(f"limit is {limit!r:.60}; give a whole number, or None for all problems")
    if not isinstance(data, (str, os.PathLike)) or not str(data).strip():
        raise DataError(f"{data!r:.300} is no source of problems; give {_kinds()}")
    with reading(data):
        problems = list(islice(_read(data, split, limit, missing_images), limit))
    if not problems and limit != 0:
        raise NoSplit(f"{data} has no problem in the split {split!r}")
    for name, times in Counter(problem.id for problem in problems).most_common(1):
        if times > 1:
            raise DataError(f"{data} has {times} problems called {name!r:.90} in the split {split!r}; make ids unique")
    if licence(data, problems) == SCIENCEQA_LICENCE:
        _say_licence()
    return problems


def load_transfer(data: str | Path, limit: int, missing_images: MissingImages = "error") -> list[Problem]:
    """Problems of skills that are never trained, where the data has such a split; else none."""
    try:
        return load_problems(data, "transfer", limit, missing_images=missing_images)
    except NoSplit:
        return []


def licence(data: str | Path, problems: Sequence[Problem]) -> str:
    """The licence of these problems by the hub's name for it; "other" where nobody said."""
    if isinstance(data, str) and (guest := guests.guest("problems", data)):
        return guest.LICENCE
    path = _path(data)
    official_files = all(os.path.isfile(path / name) for name in ("problems.json", "pid_splits.json"))
    if official_files and all(problem.id.isdigit() for problem in problems):  # ScienceQA's own ids are numbers
        return SCIENCEQA_LICENCE
    on_hub = not os.path.exists(path) and "scienceqa" in str(data).lower()
    return SCIENCEQA_LICENCE if on_hub else UNKNOWN_LICENCE


def _read(data: str | Path, split: str, limit: int | None, missing_images: MissingImages) -> Iterable[Problem]:
    if isinstance(data, str) and (guest := guests.guest("problems", data)):
        return guest.load(split, limit)
    path = _path(data)
    if os.path.isdir(path):
        return _in_folder(path, split, limit, missing_images)
    if path.suffix == ".parquet" and os.path.isfile(path):
        if split != "test":
            raise NoSplit(
                f"{path} is one file, so its problems can be answered, as the split 'test', and not learned from: a test on what was "
                f"learned is worth nothing; put train.parquet and test.parquet into a folder and give that"
            )
        return parquet.read([path], split)
    if isinstance(data, str) and guests.HUB_ID.fullmatch(data) and not os.path.exists(path):
        return parquet.read(_download(data, split), split)
    raise DataError(f"{data!s:.300} is no source of problems; give {_kinds()}")


def _path(data: str | Path) -> Path:
    try:
        return Path(data).expanduser()
    except RuntimeError as error:  # ~name of an unknown user
        raise DataError(
            f"{data!s:.300} names the home folder of a user whom this machine does not know; give the whole path"
        ) from error


def _kinds() -> str:
    named = ", ".join(f'"{name}"' for name in guests.names("problems"))
    return (f'{named}, a data set of the hub such as "derek-thomas/ScienceQA", a parquet file, or a folder with '
            "<split>.parquet, problems.json, <split>.jsonl or <split>.csv")  # fmt: skip


def _in_folder(path: Path, split: str, limit: int | None, missing_images: MissingImages) -> Iterable[Problem]:
    files = [file for file in [path / "problems.json"] if file.is_file()]
    tables, lists = parquet.find(path, split), folder.find(path, split)
    if tables or files and not json_rows.is_list(files[0]):  # beside those a .json or .tsv holds something else
        lists = [each for each in lists if each.suffix in folder.ENDS[0]]
    if lists and lists[0].suffix == ".json":
        files = []  # there are no official files, and this is the table
    kinds = [each[0].name for each in (files, tables, lists) if each]
    if len(kinds) > 1:
        raise DataError(f"{path} has both {kinds[0]} and {kinds[1]} for the split {split!r}; move one elsewhere")
    if tables:
        return parquet.read(tables, split)
    if lists:
        return folder.read(lists[0], split, limit, missing_images)
    if not files:
        ends = (".parquet", *chain(*folder.ENDS))
        there = ", ".join(sorted(each.name for each in path.iterdir() if each.suffix in ends)) or "other files"
        raise NoSplit(f"{path} has no problems of the split {split!r}, only {there}; give {_kinds()}")
    return official.read(path, split, limit, missing_images)


@cache
def _say_licence() -> None:
    """Once in a process."""
    print(
        "ScienceQA is licensed CC BY-NC-SA 4.0: not for commercial use; name its authors, Lu et al. 2022 (arXiv "
        "2209.09513), and share what you make of it alike (github.com/lupantech/ScienceQA)"
    )


def _download(name: str, split: str) -> list[Path]:
    """The parquet files of a split of a data set of the hub, fetched into the hub's cache at the first call."""
    try:
        patterns = [f"{below}{split}{end}.parquet" for below in ("", "*/") for end in ("", "-*")]
        paths = parquet.find(Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns)), split)
        if not paths:
            raise NoSplit(f"{name} on {constants.ENDPOINT} has no {split}-*.parquet, only {_on_hub(name)}")
        return paths
    except MMLoraError:
        raise
    except Exception as error:  # also ImportError and ValueError for a proxy, and those of two HTTP clients
        raise DataError(_sentence(name, error)) from error


def _sentence(name: str, error: Exception) -> str:
    """What to say about this data set when huggingface_hub raised this."""
    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return f"{name} is gated: {network.gated(error, f'{hub}/datasets/{name}')}"
    if isinstance(error, RepositoryNotFoundError) and network.missing(error):
        return (
            f"there is no folder {name} here, and {hub} has no data set of that name that you may read; "
            "ScienceQA is derek-thomas/ScienceQA"
        )
    if isinstance(error, LocalEntryNotFoundError):
        online = error.__cause__ if not isinstance(error.__cause__, OfflineModeIsEnabled) else None
        why = network.reason(online, hub) if online else "HF_HUB_OFFLINE is set"
        return (
            f"{name} is not, or not wholly, in the cache {constants.HF_HUB_CACHE}, and {why}; load it "
            'once with a network, set HF_ENDPOINT to a mirror, or take "minisqa"'
        )
    return f"{name} cannot be fetched from {hub}: {network.reason(error, hub)}"


def _on_hub(name: str) -> str:
    """The parquet files of a data set of the hub, in words."""
    try:
        found = [file for file in list_repo_files(name, repo_type="dataset") if file.endswith(".parquet")]
    except Exception:  # without a working network, what was fetched before may be enough
        return "files that cannot be listed without a network"
    return ", ".join(found) or "other kinds of files"
