"""MiniSQA on disk: parquet files in ScienceQA's schema, written once. `minisqa.load` reads them back."""

from __future__ import annotations

import json
from pathlib import Path

from tqdm import tqdm

from mmlora.files import sha256, sha256_of_all, write_whole
from mmlora.minisqa.core import SPLIT_SIZES, find_skills, generate
from mmlora.paths import DATA, IN_CHECKOUT, cache_home
from mmlora.problems import parquet, pictures, record, rows
from mmlora.problems.rows import writing


def home() -> Path:
    """Where MiniSQA is built: data/minisqa in a checkout, or else one place for all runs in the user's cache."""
    return DATA / "minisqa" if IN_CHECKOUT else cache_home() / "minisqa"


def build(folder: str | Path | None = None, *, sizes: dict[str, int] | None = None, seed: int = 0,
          skills: list[str] | None = None) -> Path:  # fmt: skip
    """Write `<split>.parquet` for each split of `sizes` and return the folder (default `home()`).

    Returns at once where the folder already holds exactly this; builds anew where a setting, the code of
    the skills, their assets or a file's size differs. A build that breaks off leaves no manifest, so the next call starts over.
    Raises `UnknownSkill`, or `DataError` where the folder cannot be written or is full.
    """
    folder, sizes = Path(folder or home()), dict(sizes or SPLIT_SIZES)
    names = {split: [each.name for each in find_skills(skills, split)] for split in sizes}
    settings = {"seed": seed, "sizes": sizes, "skills": names, "version": version()}
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
        write_whole(manifest, json.dumps({**settings, "files": files}, indent=1))
    return folder


def _is_built(manifest: Path, settings: dict) -> bool:
    try:
        found = json.loads(manifest.read_text())
        files = found.pop("files")
        whole = all((manifest.parent / name).stat().st_size == file["bytes"] for name, file in files.items())
    except (OSError, ValueError, KeyError):
        return False
    return whole and found == settings


def version() -> str:
    """A hash of all that a built problem follows from, drawing, assets and storing; what changes it builds anew."""
    code = sorted(Path(__file__).parent.rglob("*.py"))
    stored = [Path(str(module.__file__)) for module in (record, pictures, rows, parquet)]
    assets = sorted(path for path in (DATA / "assets").rglob("*") if path.is_file() and path.suffix != ".md")
    return sha256_of_all([*code, *stored, *assets])[:16]
