"""What the image column of a row holds: the name of a file in the folder, or the picture itself as base64."""

from __future__ import annotations

import base64
import json
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote
from urllib.request import url2pathname

from mmlora.problems.record import called
from mmlora.problems.rows import PATH, DataError, MissingImages, check_text, is_blank, is_null

NAMED = 5  # how many of the missing pictures a message names
LONGEST = 255  # bytes that a file system allows a name
ADDRESS = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*://|www\.)")
DRIVE = re.compile(r"\s*[A-Za-z]:[\\/]")
BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{40,}={0,2}\s*")
#: Of PNG, JPEG, GIF, WebP, TIFF (two) and BMP in base64.
BEGINNINGS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkq", "TU0A", "Qk")


class Finder:
    """Finds the pictures that the rows of one folder name; each subfolder is listed once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, cell: object, below: Sequence[str] = ("",)) -> Path | bytes | None:
        """The picture's path, whether or not the file is there; its bytes if the cell holds them; None if the cell is empty.

        `below` names the subfolders where it may be. Raises `ValueError` for what cannot be a picture in this folder.
        """
        cell = _single(cell)
        if cell is None or isinstance(cell, bytes):
            return cell
        if not isinstance(cell, str):
            raise ValueError(f"image is {cell!r:.60}, not the name of a file")
        text = check_text("image", cell)
        if (data := _embedded(text)) is not None:
            return data
        for spelling in _spellings(text):
            paths = [inside(self.folder, Path(each, spelling)) for each in below]
            for path in paths:
                if found := path if os.path.isfile(path) else self._alike(path):
                    return found
        _check_name(text, paths)
        return paths[-1]

    def is_there(self, cell: object, below: Sequence[str] = ("",)) -> bool:
        try:
            return is_there(self.find(cell, below))
        except ValueError:
            return False

    def _alike(self, path: Path) -> Path | None:
        """The one file whose name differs in capitals only, or in how its accents are written."""
        here = Path(os.path.abspath(self.folder))
        for part in path.relative_to(here).parts:
            names = self._names(here).get(_alike(part), [])
            if part not in names and len(names) != 1:
                return None
            here /= part if part in names else names[0]
        return here if os.path.isfile(here) else None

    def _names(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._listed:
            found: dict[str, list[str]] = {}
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                found.setdefault(_alike(name), []).append(name)
            self._listed[folder] = found
        return self._listed[folder]


def inside(folder: Path, below: str | Path) -> Path:
    """The path of a file in the folder. Raises `ValueError` where `below` leads out of it.

    A file elsewhere is not part of the data set, and its content would go into a report that is passed on.
    """
    whole = os.path.abspath(folder)
    path = Path(os.path.normpath(os.path.join(whole, below)))  # not resolved: a link in the folder is there on purpose
    if not path.is_relative_to(whole):
        raise ValueError(_outside(str(below), folder))
    return path


def without_missing(
    rows: list[dict], place: Path, missing_images: MissingImages, is_any: Callable[[], bool]
) -> list[dict]:
    """The rows; those whose picture is missing lose it and are counted, or with "error" raise a `DataError`.

    Every row has in `image` what `Finder.find` returned, and in `where` what a message calls it. `is_any` says whether any row,
    drawn or not, has its picture: if none has, that is an error with either setting.
    """
    pictures = [row for row in rows if row["image"] is not None]
    missing = [row for row in pictures if not is_there(row["image"])]
    if not missing:
        return rows
    named = ", ".join(f"{row['where']} ({called(row['image'], PATH)})" for row in missing[:NAMED])
    found = f"{place}: {len(missing)} of {len(pictures)} pictures are missing: {named}{', …' * (len(missing) > NAMED)}"
    if len(missing) == len(pictures) and not is_any():
        raise DataError(
            f"{found}; not one was found, so probably the pictures are in another folder than the names say: move them there, "
            "or leave `image` empty for problems without a picture"
        )
    if missing_images == "error":
        raise DataError(
            f'{found}; put them there, or read these problems without: missing_images="text-only" '
            "(mmlora run --missing-images text-only)"
        )
    print(f"{found}; these problems are read as text only")
    gone = {id(row) for row in missing}
    return [{**row, "image": None} if id(row) in gone else row for row in rows]


def is_there(image: Path | bytes | None) -> bool:
    return isinstance(image, bytes) or image is not None and os.path.isfile(image)


def _single(cell: object) -> object:
    """What the cell holds, taken out of a list of one or the hub's pair of bytes and path; None if it is empty."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            pass  # then it is a name, or several, which is checked below
    if isinstance(cell, dict):
        if not cell.get("bytes"):
            name = f", only the name {cell['path']!r:.60}" if cell.get("path") else ""
            raise ValueError(f"its picture has no bytes{name}; store the picture itself")
        return _single(cell["bytes"])
    if isinstance(cell, (list, tuple)):
        if len(cell) > 1:
            raise ValueError(_several(cell))
        return _single(cell[0]) if cell else None
    return None if is_null(cell) or isinstance(cell, str) and is_blank(cell) else cell


def _embedded(text: str) -> bytes | None:
    """The picture that the text holds as a data: URL or in base64; None if neither. Raises `ValueError` for a damaged one."""
    text = text.strip()
    if text[:5].lower() == "data:":
        head, _, body = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise ValueError(f"its picture {text!r:.60} is a data: URL without base64; name its file instead")
        return _from_base64(unquote(body))
    only = BASE64.fullmatch(text) is not None  # a file's name has a dot
    begins = text.startswith(BEGINNINGS)
    return _from_base64(text) if only and begins or (only or begins) and len(text) > LONGEST else None


def _from_base64(text: str) -> bytes:
    plain = "".join(text.split()).translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError as error:
        raise ValueError(
            f"its picture {text!r:.40} is not complete base64 ({error}); encode it again or name its file"
        ) from error


def _spellings(text: str) -> list[str]:
    """The name as it is written, and as this system writes it."""
    plain = text.strip()
    if plain[:5].lower() == "file:":
        plain = plain[5:]
        plain = url2pathname(plain[2:].removeprefix("localhost") if plain.startswith("//") else plain)
    return list(dict.fromkeys([text, plain.replace("\\", "/")]))


def _check_name(text: str, paths: list[Path]) -> None:
    """Raise `ValueError` for the name of a missing file that cannot be a picture in the folder."""
    if ADDRESS.match(text) and not text.strip().lower().startswith("file:"):
        raise ValueError(
            f"its picture {text!r:.90} is an address, and nothing is fetched: download it into the folder and name the file"
        )
    if DRIVE.match(text):
        raise ValueError(_outside(text, "of these problems"))
    for separator in ";|,\n":
        parts = [part.strip(" '\"[]") for part in text.split(separator) if part.strip()]
        if len(parts) > 1 and all(re.search(r"\.\w{2,5}$", part) for part in parts):
            raise ValueError(_several(text))
    if "\0" in text:
        raise ValueError(f"its picture {text!r:.60} has a NUL in its name; rename the file")
    if any(len(os.fsencode(part)) > LONGEST for path in paths for part in path.parts) or len(text) > 1000:
        raise ValueError(
            f"its picture {text!r:.60} has a name of {len(text)} characters, longer than a file's can be; rename the file"
        )
    if any(os.path.isdir(path) for path in paths):
        raise ValueError(f"its picture {text!r:.60} is a folder; name a file in it")


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _outside(name: str, folder: object) -> str:
    return f"its picture {name!r:.200} lies outside the folder {folder}; put it inside"


def _several(cell: object) -> str:
    return f"its picture is {cell!r:.90}, which names several, and a problem has one; join them into one file, or make a problem of each"
