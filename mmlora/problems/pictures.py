"""Pictures as files in memory: checked when they are read, decoded when they are used, never kept decoded."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image, ImageOps

WHITE = (255, 255, 255, 255)
ORIENTATION = 0x0112  # EXIF's tag for how the camera was held


def encoded(picture: Image.Image) -> bytes:
    """The picture as a file: its own bytes where it still is one, or else a PNG.

    Higher levels of compression take three times as long for a tenth less.
    """
    if (own := _file(picture)) is not None:
        return own
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decoded(data: bytes, own: bool = False) -> Image.Image:
    """The encoded picture as RGB and upright; it is decoded once now, to find damage, and again when it is used.

    An `own` picture, a PNG that this project wrote, is not decoded now; its checksums show whether it is damaged.

    What is not RGB, or was taken with the camera turned, is encoded anew, a JPEG as a JPEG, so that thousands of pictures stay
    small.
    Raises what Pillow does, which for a damaged file may be any `Exception`.
    """
    picture = Image.open(io.BytesIO(data))
    if picture.format == "PNG":  # the only format with checksums, and decoding does not check all of them
        picture.verify()
        picture = Image.open(io.BytesIO(data))
    # decoded as it will be when it is used: checksums may be right and the content damaged
    seen = picture if own and _is_rgb(picture) else rgb(picture)
    turned = "exif" in picture.info and picture.getexif().get(ORIENTATION, 1) != 1
    if turned or seen.size != picture.size or not _is_rgb(picture):
        picture = Image.open(io.BytesIO(_anew(seen, picture.format)))
    picture.file_digest = hashlib.sha256(data).digest()  # an attribute, not info, which PIL hands on to changed copies
    return picture


def _anew(seen: Image.Image, form: str | None) -> bytes:
    """The RGB picture as a file; a JPEG, whose PNG would be ten times as large, with next to no further loss."""
    if form not in ("JPEG", "MPO"):
        return encoded(seen)
    buffer = io.BytesIO()
    seen.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def digest(picture: Image.Image) -> bytes:
    """What tells pictures apart, 32 bytes: of the file that it was read from, or of its pixels."""
    if found := getattr(picture, "file_digest", None):
        return found
    seen = rgb(picture)  # a palette's indices alone would not tell two pictures apart
    return hashlib.sha256(f"{seen.size}".encode() + seen.tobytes()).digest()


def rgb(picture: Image.Image) -> Image.Image:
    """A decoded copy in RGB, upright, on white where the picture is transparent; what came in stays as it is.

    Of 16 bits the upper eight are kept. Raises what Pillow does for a broken file, `OSError`, `SyntaxError` or `ValueError`, and
    `ValueError` for numbers of 32 bits, of which nobody knows which is white, and for what is no picture of Pillow.
    """
    if not isinstance(picture, Image.Image):
        kind = type(picture).__name__
        raise ValueError(f"it is a {kind}, not a PIL.Image: Image.open opens a file, Image.fromarray takes an array")
    if (own := _file(picture)) is not None:
        picture = Image.open(io.BytesIO(own))  # or else it would be decoded in place and stay so
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of 32 bits, mode {picture.mode}; save it with 8 or 16 bits")
    if picture.mode.startswith("I;16"):  # Pillow itself would make everything above 255 white
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), picture)
    return picture.convert("RGB")


def _is_rgb(picture: Image.Image) -> bool:
    return picture.mode == "RGB" and not picture.has_transparency_data


def _file(picture: Image.Image) -> bytes | None:
    """The bytes of a picture that was read from memory and not decoded yet."""
    opened = getattr(picture, "fp", None)
    return opened.getvalue() if isinstance(opened, io.BytesIO) else None
