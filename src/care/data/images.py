"""Pictures made safe: every one that a model or a judge sees is opened and decoded here.

A size limit before decoding, alpha on white, CMYK to RGB, the first frame of a file, upright by
EXIF, deep greys scaled to 8 bit. What can't be used is a DataError that names the picture.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image

from care.errors import DataError
from care.runs.reading import check_regular

MAX_PIXELS = 64_000_000
"""Largest image that is decoded (64 MPixel); beyond it a file is more likely a bomb than data."""

MAX_PICTURE_BYTES = 1 << 29
"""Largest file that is opened as a picture (512 MiB): `MAX_PIXELS` of 8 bytes each."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what turns the pixels upright."""


def load_image(image: Image.Image | str | Path | bytes, what: str = "image") -> Image.Image:
    """One image, file or encoded picture as RGB, upright, alpha on white; of an animated file the
    first frame.

    `what` names the image in errors. Raises DataError if it is missing, no regular file, corrupt,
    not an image, empty, above `MAX_PIXELS` or a file above `MAX_PICTURE_BYTES`. Every picture is
    decoded here.
    """
    if isinstance(image, Image.Image):
        return _decoded(image, what)
    if isinstance(image, bytes):
        source: str | Path | IO[bytes] = io.BytesIO(image)
    else:
        source = _picture_file(image, what)
        what = f"{what} ({image})"
    try:
        opened = Image.open(source)
    except Image.DecompressionBombError as error:
        raise DataError(f"{what} is too large ({error}).") from error
    except Exception as error:
        raise DataError(f"{what} is not a readable image ({_reason(error)}).") from error
    with opened:
        return _decoded(opened, what, "is not a readable image")


def _picture_file(path: str | Path, what: str) -> str | Path:
    """The path, checked."""
    if str(path).startswith(("http://", "https://")):
        raise DataError(f"{what}: {path} is an address; download it and pass the file.")
    try:
        check_regular(path, "picture", MAX_PICTURE_BYTES)
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise DataError(f"{what}: there is no file {path}.") from error
        raise DataError(f"{what}: {error}") from error
    return path


def _decoded(image: Image.Image, what: str, failed: str = "can't be decoded") -> Image.Image:
    try:
        found = _to_rgb(image, what)
        found.info = {}  # its orientation would turn the picture again when it is loaded again
        return found
    except DataError:
        raise
    except Exception as error:  # decoders raise errors of many kinds; all are about this picture
        raise DataError(f"{what} {failed} ({_reason(error)}).") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _to_rgb(image: Image.Image, what: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{what} has {width}×{height} pixels, above the limit of {MAX_PIXELS // 10**6} "
            "MPixel; make it smaller."
        )
    if width < 1 or height < 1:
        raise DataError(f"{what} has no pixels ({width}×{height}).")
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        # Not ImageOps.exif_transpose, which also writes the metadata anew and fails where they
        # are odd, though the pixels are fine.
        image = image.transpose(turn)
    if image.mode.startswith(("I", "F")):
        return _deep_to_rgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")  # a copy, so that the caller's image can't change under us


def _orientation(image: Image.Image) -> int:
    """What EXIF says of the orientation; 1, upright, where it says nothing that can be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(found)
    except Exception:  # metadata of any kind of damage; the pixels may be fine
        return 1


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Grey values of 16 or 32 bit, scaled to 8; PIL's own conversion clips them to white."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError("A floating-point image holds NaN or infinite pixels; clean it first.")
    top = float(values.max())
    if image.mode.startswith("I;16"):
        limit = 65535.0
    else:
        limit = next((limit for limit in (1.0, 255.0, 65535.0) if top <= limit), top)
    scaled = np.clip(values / limit, 0, 1) * 255
    return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
