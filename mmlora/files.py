"""Files that are whole or not there: hashes, and writing in one step."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_all(paths: Iterable[Path]) -> str:
    """One SHA-256 over the contents of these files, in this order."""
    return sha256_of_digests(map(sha256, paths))


def sha256_of_digests(digests: Iterable[str]) -> str:
    """The same for files whose own SHA-256 is known already, so that they need not be read."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write the file aside and rename it, so that no reader sees half of it. Raises `OSError` as the disk does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
