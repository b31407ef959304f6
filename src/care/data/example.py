"""Examples and suites: the inputs of everything, as plain immutable data.

An `Example` is one request to a model, with at most a few images; a `Suite` is a named, versioned
list of them. Images may be PIL images or paths; they are opened late and made safe here (size
limit before decoding, alpha on white, CMYK to RGB, first frame of a file, EXIF rotation). Texts
that aren't valid Unicode are mended here, with a warning. Nothing is fetched from the network.
"""

import dataclasses
import hashlib
import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import ExifTags, Image

from care.errors import DataError, UsageError
from care.runs.reading import check_regular, valid, valid_text

ExampleKind = Literal["malicious", "benign"]
SuiteRole = Literal["attack", "utility", "over_refusal"]

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


@dataclass(frozen=True)
class Example:
    """One input: a prompt, its images, and what is known about it."""

    id: str
    """Stable identifier, unique within its suite."""

    prompt: str
    """The user's text; may be empty if there is an image."""

    images: tuple[Image.Image | str | Path, ...] = ()
    """PIL images or paths, placed before the text."""

    goal: str = ""
    """The clean request behind the prompt, which judges look at; empty means the prompt."""

    kind: ExampleKind = "benign"
    """Whether the goal is malicious."""

    suite: str = ""
    """Name of the suite it comes from."""

    category: str = ""
    """Category within the suite."""

    references: tuple[str, ...] = ()
    """Accepted answers of a utility example."""

    system: str | None = None
    """System message, if any."""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise DataError(f"An example needs a non-empty text id, got {self.id!r}.")
        if not isinstance(self.prompt, str):
            raise DataError(f"Example {self.id!r}: the prompt must be text, got {self.prompt!r}.")
        if self.kind not in get_args(ExampleKind):
            raise DataError(
                f"Example {self.id!r}: kind {self.kind!r} is unknown; use malicious or benign."
            )
        object.__setattr__(self, "images", _as_tuple(self.images, (Image.Image, str, Path)))
        object.__setattr__(self, "references", _as_tuple(self.references, (str,)))
        self._mend_texts()
        for image in self.images:
            if not isinstance(image, (Image.Image, str, Path)):
                raise DataError(
                    f"Example {self.id!r}: an image must be a PIL image or a path, got "
                    f"{type(image).__name__}."
                )
        if not self.prompt.strip() and not self.images:
            raise DataError(f"Example {self.id!r} is empty: give it a prompt or an image.")

    def _mend_texts(self) -> None:
        # Half an emoji, as cut texts end, is no Unicode: no tokenizer and no file takes it.
        mended = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "images" and (whole := valid(value)) != value:
                object.__setattr__(self, field.name, whole)
                mended.append(field.name)
        if mended:
            warnings.warn(
                f"Example {self.id!r} holds text that isn't valid Unicode (its "
                f"{', '.join(mended)}), as a cut emoji is; it was replaced by U+FFFD.",
                stacklevel=4,
            )

    def __hash__(self) -> int:
        # PIL images aren't hashable; equal examples still have equal hashes.
        return hash((self.suite, self.id, self.prompt))

    def messages(self) -> list[dict[str, Any]]:
        """The example in Hugging Face's chat format: system, then images followed by the text."""
        content: list[dict[str, str]] = [{"type": "image"} for _ in self.images]
        if self.prompt:
            content.append({"type": "text", "text": self.prompt})
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            system = [{"type": "text", "text": self.system}]
            messages.append({"role": "system", "content": system})
        messages.append({"role": "user", "content": content})
        return messages

    def load_images(self) -> list[Image.Image]:
        """Decode the images to RGB; DataError names the example and image that can't be used."""
        return [
            load_image(image, f"example {self.id!r}, image {index}")
            for index, image in enumerate(self.images)
        ]

    def digest(self) -> str:
        """SHA-256 of every field, images by their decoded pixels; computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "images"
        }
        hasher = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
        for image in self.load_images():
            hasher.update(f"{image.width}x{image.height}".encode())
            hasher.update(image.tobytes())
        return hasher.hexdigest()


@dataclass(frozen=True)
class Suite:
    """A named, versioned list of examples with its provenance."""

    name: str
    """Short name, as on the command line."""

    role: SuiteRole
    """`attack` (malicious goals), `utility` (benign, answered or correct) or `over_refusal`."""

    examples: tuple[Example, ...]
    """The examples, with unique ids."""

    version: str = "1"
    """Version of the conversion, raised whenever an example changes."""

    licence: str = ""
    """SPDX identifier or name of the data's licence."""

    source: str = ""
    """Where the data comes from."""

    revision: str = ""
    """Revision or date of the source."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))
        for name in ("name", "version", "licence", "source", "revision"):
            object.__setattr__(self, name, valid_text(getattr(self, name)))
        if self.role not in get_args(SuiteRole):
            raise DataError(
                f"Suite {self.name!r}: role {self.role!r} is unknown; use one of "
                f"{', '.join(get_args(SuiteRole))}."
            )
        if not self.examples:
            raise DataError(f"Suite {self.name!r} holds no examples; check its source.")
        seen: set[str] = set()
        for example in self.examples:
            if example.id in seen:
                raise DataError(
                    f"Suite {self.name!r} has two examples with the id {example.id!r}; "
                    "ids must be unique."
                )
            seen.add(example.id)

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def digest(self) -> str:
        """SHA-256 over name, role, version and the digests of all examples."""
        hasher = hashlib.sha256(f"{self.name}\n{self.role}\n{self.version}".encode())
        for example in self.examples:
            hasher.update(example.digest().encode())
        return hasher.hexdigest()

    def facts(self) -> dict[str, Any]:
        """Size, provenance and digest, for a manifest; no digest where a picture can't be read."""
        try:
            digest = self.digest()
        except DataError:  # its example becomes a row with an error
            digest = None
        return {
            "n": len(self),
            "role": self.role,
            "digest": digest,
            "version": self.version,
            "licence": self.licence,
            "source": self.source,
            "revision": self.revision,
        }

    def head(self, n: int) -> "Suite":
        """The same suite with its first `n` examples; UsageError unless n is positive."""
        if n < 1:
            raise UsageError(f"A suite of {n} examples was asked for; ask for at least 1.")
        return dataclasses.replace(self, examples=self.examples[:n])


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
        source: Any = io.BytesIO(image)
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


def _as_tuple(value: Any, single: tuple[type, ...]) -> tuple[Any, ...]:
    """A lone item becomes a tuple of one: `images=picture` is what people write."""
    return (value,) if isinstance(value, single) else tuple(value)
