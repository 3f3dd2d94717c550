"""Problems by the name of where they are: MiniSQA, the hub, the official files, parquet files, your own folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import islice
from pathlib import Path

from huggingface_hub import constants, list_repo_files, snapshot_download
from huggingface_hub.errors import GatedRepoError, HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from mmlora import folder, official, parquet
from mmlora.catalog import HUB_ID
from mmlora.minisqa.dataset import build
from mmlora.paths import MINISQA
from mmlora.rows import DataError
from mmlora.scienceqa import Problem

KINDS = ('"minisqa", a data set of the hub such as "derek-thomas/ScienceQA", a parquet file, or a folder with '
         "<split>.parquet, problems.json, <split>.jsonl or <split>.csv")  # fmt: skip


def load_problems(source: str | Path = "minisqa", split: str = "test", limit: int | None = None, *,
                  missing_images: str = "error") -> list[Problem]:  # fmt: skip
    """The first `limit` (default all) problems of a split, from any of these sources:

    - `"minisqa"`, drawn first if need be, as many problems as asked for
    - `"owner/name"`, a data set of the hub with ScienceQA's fields, as `"derek-thomas/ScienceQA"`; kept in the hub's
      own cache, so that HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN mean what they always mean
    - a folder in ScienceQA's official layout (see `mmlora.official`)
    - a folder with parquet files, `<split>.parquet` or `<split>-*.parquet`; or one parquet file, read whole
    - your own folder of pictures with a JSONL or CSV file (see `mmlora.folder`)

    A problem without an id is called `<split>-<row>`. Pictures are checked now and decoded when they are first used.
    Pictures that an official or own folder lacks are counted and listed in an error, or with
    `missing_images="text-only"` in a line of output. Raises `DataError`: one sentence with the file and the row.
    """
    if missing_images not in ("error", "text-only"):
        raise DataError(f'missing_images is {missing_images!r}; it can be "error" or "text-only"')
    path = Path(source).expanduser()
    if source == "minisqa":
        place = build() if limit is None else build(MINISQA / f"{split}-{limit}", sizes={split: limit})
        problems = parquet.read(parquet.find(place, split), split)
    elif path.is_dir():
        problems = _in_folder(path, split, limit, missing_images)
    elif path.suffix == ".parquet" and path.is_file():
        problems = parquet.read([path], split)
    elif isinstance(source, str) and HUB_ID.fullmatch(source) and not path.exists():
        problems = parquet.read(_download(source, split), split)
        if "scienceqa" in source.lower():
            _say_licence()
    else:
        raise DataError(f"{source} is no source of problems; give {KINDS}")
    problems = list(islice(problems, limit))
    if not problems and limit != 0:
        raise DataError(f"{source} has no problem in the split {split!r}")
    for name, times in Counter(problem.id for problem in problems).most_common(1):
        if times > 1:
            raise DataError(f"{source} has {times} problems called {name!r} in the split {split!r}; make ids unique")
    return problems


def _in_folder(path: Path, split: str, limit: int | None, missing_images: str) -> Iterable[Problem]:
    files = [file for file in [path / "problems.json"] if file.is_file()]
    tables, lists = parquet.find(path, split), folder.find(path, split)
    kinds = [each[0].name for each in (files, tables, lists) if each]
    if len(kinds) > 1:
        raise DataError(f"{path} has both {kinds[0]} and {kinds[1]} for the split {split!r}; move one elsewhere")
    if tables:
        return parquet.read(tables, split)
    if lists:
        return folder.read(lists[0], split, limit, missing_images)
    if not files:
        there = sorted(each.name for each in path.iterdir() if each.suffix in (".parquet", ".jsonl", ".csv"))
        there = ", ".join(there) or "other files"
        raise DataError(f"{path} has no problems of the split {split!r}, only {there}; give {KINDS}")
    problems = official.read(path, split, limit, missing_images)
    if all(problem.id.isdigit() for problem in problems):  # ScienceQA's own ids are numbers
        _say_licence()
    return problems


@cache
def _say_licence():
    """Once in a process."""
    print("ScienceQA is licensed CC BY-NC-SA 4.0: not for commercial use; name its authors, Lu et al. 2022 (arXiv "
          "2209.09513), and share what you make of it alike (github.com/lupantech/ScienceQA)")


def _download(name: str, split: str) -> list[Path]:
    """The parquet files of a split of a data set of the hub, fetched into the hub's cache at the first call."""
    hub = constants.ENDPOINT
    try:
        patterns = [f"{below}{split}{end}.parquet" for below in ("", "*/") for end in ("", "-*")]
        paths = parquet.find(Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns)), split)
        if not paths:
            there = [file for file in list_repo_files(name, repo_type="dataset") if file.endswith(".parquet")]
            there = ", ".join(there) or "other kinds of files"
            raise DataError(f"{name} on {hub} has no {split}-*.parquet, only {there}")
        return paths
    except GatedRepoError as error:
        raise DataError(f"{name} is gated: ask for access at {hub}/datasets/{name}, then run: hf auth login") from error
    except RepositoryNotFoundError as error:
        raise DataError(f"there is no folder {name} here, and {hub} has no data set of that name that you may read; "
                        "ScienceQA is derek-thomas/ScienceQA") from error
    except LocalEntryNotFoundError as error:
        state = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{hub} cannot be reached"
        raise DataError(f"{name} is not, or not wholly, in the cache {constants.HF_HUB_CACHE}, and {state}; load it "
                        'once with a network, set HF_ENDPOINT to a mirror, or take "minisqa"') from error
    except (OSError, ValueError, HTTPError) as error:
        raise DataError(f"{name} cannot be had from {hub}: {error}") from error
