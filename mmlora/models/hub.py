"""Models from the Hugging Face hub, fetched safely: no code of theirs runs, no pickle is opened, weights are hashed.

huggingface_hub does the work: it caches, shows the progress, resumes a file whose connection breaks (in steps of 10 MB,
within one process) and compares its length. What it leaves out is done here: what came over plain HTTP is hashed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import transformers
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import filter_repo_objects
from safetensors import SafetensorError, safe_open

from mmlora import guests, network
from mmlora.errors import MMLoraError
from mmlora.files import sha256, sha256_of_digests, write_whole
from mmlora.guests import UNKNOWN_LICENCE
from mmlora.models.catalog import nearest
from mmlora.paths import cache_home

WEIGHTS = ["model.safetensors", "model-*.safetensors"]
#: What transformers reads, from the top folder only: configuration, tokenizer, processor, chat template, weights.
PATTERNS = {"allow_patterns": ["*.json", "*.jinja", "*.txt", "*.model", *WEIGHTS], "ignore_patterns": ["*/*"]}
PICKLES = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"]


class HubError(MMLoraError):
    """A model that cannot be had from the hub, or must not be used; the message says why and what to do."""


@dataclass(frozen=True)
class Snapshot:
    """A model's files as they were at one commit."""

    path: Path
    repo: str
    revision: str  # the commit's hash: with it the same files can be had again
    licence: str  # as its card says; "other" where it says nothing
    weights: str  # one hash of its weights files, as `base.of_folder` would find it


@dataclass(frozen=True)
class Sizes:
    """What a download would bring."""

    files: int  # bytes of all that `download` fetches
    missing: int  # bytes of these that are not in the cache yet
    parameters: int | None  # None where the hub has not counted
    config: dict | None  # config.json; None for a gated model without access


def download(repo: str, revision: str | None = None, *, offline: bool = False) -> Snapshot:
    """The model's files in the hub's own cache ($HF_HOME), fetched at the first call and verified once.

    `revision` is a branch, a tag or a commit hash; None is the newest. With `offline`, or HF_HUB_OFFLINE=1, only the
    cache is asked. Raises `HubError` for an unknown or gated repository, an unknown revision, no network and no copy,
    an architecture that transformers lacks (code from the hub is never run), weights that are pickles, and content
    whose sha256 is not the announced one.
    """
    offline = offline or constants.is_offline_mode()
    with _explained(repo, revision):
        commit = HfApi().resolve_revision(repo, revision=revision, local_files_only=offline)
        record = cache_home() / "snapshots" / f"{repo.replace('/', '--')}-{commit.resolved}.json"
        if not offline and not record.is_file():
            info = HfApi().model_info(repo, revision=commit.resolved, files_metadata=True)
            files = {name: {"sha256": digest} for name, digest in _announced(info).items()}
            write_whole(record, json.dumps({"licence": _licence(info), "files": files}, indent=1))
        _config(repo, commit, offline)
        path = Path(snapshot_download(repo, revision=commit, local_files_only=offline, **PATTERNS))
        known: dict = _verified(repo, path, record) if record.is_file() else {"licence": UNKNOWN_LICENCE, "files": {}}
    weights = sorted(file.name for pattern in WEIGHTS for file in path.glob(pattern))
    digests = [known["files"][name]["sha256"] if name in known["files"] else sha256(path / name) for name in weights]
    return Snapshot(path, repo, commit.resolved, known["licence"], sha256_of_digests(digests))


def sizes(repo: str, revision: str | None = None) -> Sizes:
    """How much `download` would fetch, and the configuration; no weights are fetched. Raises `HubError` as it does."""
    if constants.is_offline_mode():
        return folder_sizes(download(repo, revision).path)
    with _explained(repo, revision):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        _announced(info)
        try:
            config = _config(repo, info.sha)
        except GatedRepoError:
            config = None
    files = _wanted(info)
    cached = [f for f in files if isinstance(try_to_load_from_cache(repo, f.rfilename, revision=info.sha), str)]
    total = sum(f.size for f in files)
    counted = info.safetensors.total if info.safetensors else None
    return Sizes(total, total - sum(f.size for f in cached), counted, config)


def folder_sizes(folder: Path) -> Sizes:
    """The same for a model that lies in a folder. As on the hub, all numbers in the weights count, buffers too."""
    files = list(folder.glob("*.safetensors"))
    parameters = 0
    for file in files:
        try:
            with safe_open(file, "np") as tensors:
                parameters += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
        except (SafetensorError, OSError) as error:
            raise HubError(f"{file} cannot be read ({error}); copy or fetch it again") from error
    config = _json(folder / "config.json", str(folder))
    return Sizes(sum(file.stat().st_size for file in files), 0, parameters, config)


def _wanted(info: ModelInfo) -> list:
    return list(filter_repo_objects(info.siblings, **PATTERNS, key=lambda file: file.rfilename))


def _announced(info: ModelInfo) -> dict[str, str]:
    """The sha256 of each large file that will be fetched. Raises `HubError` where no weights are safetensors."""
    refuse_pickles(info.id, [file.rfilename for file in info.siblings])
    return {file.rfilename: file.lfs.sha256 for file in _wanted(info) if file.lfs}


def refuse_pickles(model: str, names: list[str]) -> None:
    """Raise `HubError` unless these files hold the model's weights as safetensors."""
    if not list(filter_repo_objects(names, allow_patterns=WEIGHTS, ignore_patterns=["*/*"])):
        pickles = list(filter_repo_objects(names, allow_patterns=PICKLES))
        if pickles:
            raise HubError(
                f"{model} has its weights only as pickles ({pickles[0]}), which can run code when opened; "
                "ask its owner for safetensors, or choose another model"
            )
        raise HubError(f"{model} has no model.safetensors; give a model that transformers can load")


def _config(repo: str, revision: str, offline: bool = False) -> dict:
    """config.json, of an architecture that transformers or a guest knows: code in the repository is never needed."""
    file = hf_hub_download(repo, "config.json", revision=revision, local_files_only=offline)
    return known_config(Path(file), repo)


def known_config(file: Path, model: str) -> dict:
    """A config.json of an architecture that transformers or a guest knows. Raises `HubError` for any other."""
    config = _json(file, model)
    kind = str(config.get("model_type"))
    if guest := guests.guest("models", kind):
        guest.register()
    if kind in transformers.CONFIG_MAPPING:
        return config
    if "auto_map" in config:
        raise HubError(
            f"{model} needs code of its own (architecture {kind!r}), which mmlora never runs; "
            "choose a model whose architecture is part of transformers"
        )
    raise HubError(
        f"transformers {transformers.__version__} does not know the architecture {kind!r} of {model}; update "
        "transformers or choose another model"
    )


def _json(file: Path, of: str) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HubError(
            f"{file.name} of {of} is not valid JSON ({error}); choose another model, or copy it again"
        ) from error
    if not isinstance(found, dict):
        raise HubError(f"{file.name} of {of} is not a JSON object; choose another model, or copy it again")
    return found


def _licence(info: ModelInfo) -> str:
    said = info.card_data.get("license") if info.card_data else None
    return said if isinstance(said, str) else UNKNOWN_LICENCE


def _verified(repo: str, path: Path, record: Path) -> dict:
    """The record, after hashing each file that is new or was touched since it was last found good."""
    found_good = _json(record, repo)
    for name, known in found_good["files"].items():
        file = path / name
        touched = file.stat().st_mtime_ns
        if known.get("good") == touched:
            continue
        found = sha256(file)
        if found != known["sha256"]:
            file.resolve().unlink()  # the content; the name in the snapshot is only a link to it
            file.unlink(missing_ok=True)
            raise HubError(
                f"{name} of {repo} has sha256 {found[:16]}… but the hub announces {known['sha256'][:16]}…: "
                "it is corrupt or was tampered with; it was deleted, run again to fetch it anew"
            )
        known["good"] = touched
    write_whole(record, json.dumps(found_good, indent=1))
    return found_good


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn whatever the hub's client raises into a `HubError` of one sentence."""
    try:
        yield
    except MMLoraError:
        raise
    except Exception as error:  # also ImportError and ValueError for a proxy, and those of two HTTP clients
        raise HubError(_sentence(repo, revision, error)) from error


def _sentence(repo: str, revision: str | None, error: Exception) -> str:
    page, at = f"{constants.ENDPOINT}/{repo}", f"{repo} at {revision}" if revision else repo
    if isinstance(error, (LocalEntryNotFoundError, RevisionResolutionError)):
        online = error.__cause__ if not isinstance(error.__cause__, OfflineModeIsEnabled) else None
        why = network.reason(online, constants.ENDPOINT) if online else "offline mode is on"
        return (
            f"{at} is not, or not wholly, in the cache {constants.HF_HUB_CACHE}, and {why}; download it "
            f"once with a network, or choose {' or '.join(guests.names('models'))}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}; leave it out, or choose from {page}/commits"
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated: {network.gated(error, page)}"
    if isinstance(error, HFValidationError) or (isinstance(error, RepositoryNotFoundError) and network.missing(error)):
        near = nearest(repo)
        hint = f"did you mean {' or '.join(near)}?" if near else "give its full id, owner/name"
        return f"the hub has no model {repo!r}; {hint} (a private one needs `hf auth login`)"
    if isinstance(error, EntryNotFoundError):
        return f"{repo} has no config.json, so transformers cannot load it; choose another model"
    return (
        f"fetching {repo} failed: {network.reason(error, constants.ENDPOINT)}; complete files are kept, so run again "
        "afterwards, or set HF_HUB_OFFLINE=1 to use only what is in the cache"
    )
