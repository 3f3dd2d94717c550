"""Files that are whole or not there: hashes, writing in one step, and clear errors for what the disk cannot do."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmlora.errors import MMLoraError

ROOM, RIGHTS, PLACE = "free some space", "check who may read and write there", "choose another folder"
#: Errors of a disk or a file system, and what to do about them.
REFUSALS = {
    errno.ENOSPC: ROOM, errno.EDQUOT: ROOM, errno.EFBIG: ROOM,
    errno.EACCES: RIGHTS, errno.EPERM: RIGHTS,
    errno.EROFS: PLACE, errno.ENAMETOOLONG: "choose a shorter name", errno.ENOTDIR: PLACE, errno.EISDIR: PLACE,
    errno.EEXIST: PLACE, errno.ELOOP: PLACE, errno.ENOENT: "check whether it was moved or removed",
    errno.EIO: "the disk may be damaged: " + PLACE, errno.ESTALE: "the network drive is gone: " + PLACE,
    errno.ENOTCONN: "the drive is no longer connected: connect it again",
    errno.ENODEV: "the drive is no longer there: " + PLACE, errno.ENXIO: "the drive is no longer there: " + PLACE,
    errno.EINVAL: "the drive does not take such a name or file: " + PLACE, errno.EILSEQ: "the drive does not take such a name: " + PLACE,
    errno.EBUSY: "another program uses it: close that", errno.ENOTEMPTY: "another program writes there: " + PLACE,
    errno.EMFILE: "close other programs", errno.ENFILE: "close other programs",
}  # fmt: skip


class FileError(MMLoraError):
    """A file or folder that cannot be read or written; the message names it, why, and what to do."""


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


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a temporary file, flush it to the disk and rename it, so that no reader sees half of it. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # or else a power cut may leave an empty file under the new name
        aside.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # the name that was asked for
        raise
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into, which takes the place of `folder` once all of it is written. Raises `OSError`."""
    aside, old = (folder.with_name(f".{folder.name}.{what}") for what in ("part", "old"))
    for left_over in (aside, old):
        _remove(left_over)
    try:
        aside.mkdir(parents=True)
        yield aside
        if folder.exists():
            folder.replace(old)
        aside.replace(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.replace(folder)
        raise
    finally:
        for left_over in (aside, old):
            _remove(left_over)


def _remove(path: Path) -> None:
    """Remove a folder, or a file or link of that name."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink(missing_ok=True)


@contextmanager
def refusals(what: str | Path, then: str = "", kind: type[MMLoraError] = FileError) -> Iterator[None]:
    """Turn an error of the disk or the file system into one sentence, as an exception of this `kind`.

    `what` is named where the system names no file; `then` says what to do, in place of the advice in `REFUSALS`. Other errors,
    such as those of a network, pass unchanged.
    """
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number not in REFUSALS:
            raise
        path = getattr(error, "filename", None) or what
        raise kind(f"{path} cannot be used ({os.strerror(number)}): {then or REFUSALS[number]}") from error


def _number(error: Exception) -> int | None:
    """The system's number of an error, also where a library written in Rust gives it only in its message."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, MMLoraError):  # which has its sentence already
        return None
    worded = re.search(r"\(os error (\d+)\)", str(error))
    return int(worded[1]) if worded else None
