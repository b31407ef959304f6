"""Pictures of requests: data URLs alone, of four formats, measured before they are decoded.

    data:image/png;base64,iVBORw0KGgo…

Nothing is fetched and no file is opened, whatever an address says. Formats whose readers start
other programs or have many rarely read parts (EPS, TIFF, …) are refused unopened. The decoding
itself, alpha on white and upright, is `care.data.images`.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass

from PIL import Image

from care.data.images import load_image
from care.interfaces.requests.pictures import FORMATS
from care.interfaces.serve.config import Limits
from care.interfaces.serve.failures import invalid

_HEADER = re.compile(r"data:image/(?:png|jpeg|jpg|webp|gif);base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:https?|ftp|file|s3|gs):", re.IGNORECASE)


@dataclass
class PictureReader:
    """Reads the pictures of one request, which share its limits."""

    limits: Limits
    """How many there may be, and how large."""
    count: int = 0
    """How many there were."""
    pixels: int = 0
    """Pixels of all of them."""

    def load(self, url: str, what: str) -> Image.Image:
        """The picture of a data URL, decoded; RequestFailure for one that is none or too large."""
        self.count += 1
        if self.count > self.limits.max_images:
            raise invalid(
                f"The request holds more than {self.limits.max_images} images; send fewer.",
                "messages",
                "too_many_images",
            )
        opened = self._opened(self._bytes(url, what), what)
        with opened:
            self.pixels += opened.width * opened.height
            if self.pixels > self.limits.max_pixels:
                raise invalid(
                    f"With {what} of {opened.width}×{opened.height} the request's images have "
                    f"{self.pixels:,} pixels, more than {self.limits.max_pixels:,}; make them "
                    "smaller.",
                    "messages",
                    "image_too_large",
                )
            return load_image(opened, what)

    def _bytes(self, url: str, what: str) -> bytes:
        header = _HEADER.match(url)
        if header is None:
            if _ADDRESS.match(url):
                said = f"{what} is an address, and nothing is fetched; send it as a data URL"
            else:
                said = f"{what} is no data URL of a PNG, JPEG, WebP or GIF"
            raise invalid(f"{said} (data:image/png;base64,…).", "messages", "invalid_image_url")
        payload = url[header.end() :]
        if len(payload) * 3 // 4 > self.limits.max_image_bytes + 2:
            raise invalid(
                f"{what} has about {len(payload) * 3 // 4:,} bytes, more than "
                f"{self.limits.max_image_bytes:,}; make it smaller.",
                "messages",
                "image_too_large",
            )
        try:
            return base64.b64decode(payload, validate=True)
        except ValueError:
            raise invalid(
                f"{what} isn't valid base64; encode the whole file, without line breaks.",
                "messages",
                "invalid_image",
            ) from None

    @staticmethod
    def _opened(content: bytes, what: str) -> Image.Image:
        try:
            return Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.DecompressionBombError:
            raise invalid(
                f"{what} has too many pixels to be decoded; make it smaller.",
                "messages",
                "image_too_large",
            ) from None
        except Exception:  # readers raise errors of many kinds; all are about this picture
            raise invalid(
                f"{what} ({len(content):,} bytes) can't be read as PNG, JPEG, WebP or GIF; check "
                "the file that it was made of.",
                "messages",
                "invalid_image",
            ) from None
