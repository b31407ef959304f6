"""Pictures of strangers: of four formats, and measured before they are decoded.

Formats whose readers start other programs or have many rarely read parts (EPS, TIFF, …) are refused
unopened. The decoding itself, alpha on white and upright, is `care.data.images`.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from care.data.images import load_image
from care.errors import DataError
from care.runs.reading import check_regular

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""What is opened, whatever a file or an address is called."""


def load_file(path: Path, max_bytes: int, max_pixels: int) -> Image.Image:
    """The picture of an uploaded file, decoded; DataError for one that is none or too large."""
    what = f"The picture {path.name}"
    check_regular(path, "picture", max_bytes)
    try:
        opened = Image.open(path, formats=FORMATS)
    except Exception as error:  # readers raise errors of many kinds; all are about this picture
        raise DataError(f"{what} can't be read as PNG, JPEG, WebP or GIF; send another.") from error
    with opened:
        if opened.width * opened.height > max_pixels:
            raise DataError(
                f"{what} has {opened.width}×{opened.height} pixels, more than {max_pixels:,} "
                "together; make it smaller."
            )
        return load_image(opened, what)
