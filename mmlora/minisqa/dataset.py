"""MiniSQA on disk: parquet files in ScienceQA's schema, written once. `mmlora.sources` reads them back."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from tqdm import tqdm

from mmlora import parquet
from mmlora.minisqa.core import SPLIT_SIZES, find_skills, generate
from mmlora.paths import MINISQA
from mmlora.rows import writing
from mmlora.weights import sha256


def build(folder: str | Path | None = None, *, sizes: dict[str, int] | None = None, seed: int = 0,
          skills: list[str] | None = None) -> Path:  # fmt: skip
    """Write `<split>.parquet` for each split of `sizes` and return the folder (default `data/minisqa`).

    Returns at once where the folder already holds exactly this; builds anew where a setting, the code of
    the skills or a file's size differs. A build that breaks off leaves no manifest, so the next call starts over.
    Raises `UnknownSkill`, or `DataError` where the folder cannot be written or is full.
    """
    folder, sizes = Path(folder or MINISQA), dict(sizes or SPLIT_SIZES)
    names = [each.name for each in find_skills(skills)]
    settings = {"seed": seed, "sizes": sizes, "skills": names, "version": _version()}
    manifest = folder / "manifest.json"
    if _is_built(manifest, settings):
        return folder
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        manifest.unlink(missing_ok=True)
    files = {}
    for split, size in sizes.items():
        path = folder / f"{split}.parquet"
        problems = generate(split, size, seed=seed, skills=skills)
        parquet.write(path, tqdm(problems, f"MiniSQA {split}", size, unit="problem"))
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    with writing(folder):
        aside = manifest.with_suffix(f".{os.getpid()}.part")
        aside.write_text(json.dumps({**settings, "files": files}, indent=1))
        aside.replace(manifest)
    return folder


def _is_built(manifest: Path, settings: dict) -> bool:
    try:
        found = json.loads(manifest.read_text())
        files = found.pop("files")
        whole = all((manifest.parent / name).stat().st_size == file["bytes"] for name, file in files.items())
    except (OSError, ValueError, KeyError):
        return False
    return whole and found == settings


def _version() -> str:
    """A hash of the code that draws and stores: when a skill changes, the data is built anew."""
    code = [*sorted(Path(__file__).parent.glob("*.py")), Path(parquet.__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in code)).hexdigest()[:16]
