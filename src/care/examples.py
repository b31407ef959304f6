"""Examples and suites: the inputs of everything, as plain immutable data.

An `Example` is one request to a model, with at most a few images; a `Suite` is a named, versioned
list of them. Images may be PIL images or paths; they are opened late and made safe here (size
limit before decoding, alpha on white, CMYK to RGB, first frame of a file, EXIF rotation). Nothing
is fetched from the network.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from care.errors import DataError, UsageError

ExampleKind = Literal["malicious", "benign"]
SuiteRole = Literal["attack", "utility", "over_refusal"]

MAX_PIXELS = 64_000_000
"""Largest image that is decoded (64 MPixel); beyond it a file is more likely a bomb than data."""


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
        for image in self.images:
            if not isinstance(image, (Image.Image, str, Path)):
                raise DataError(
                    f"Example {self.id!r}: an image must be a PIL image or a path, got "
                    f"{type(image).__name__}."
                )
        if not self.prompt.strip() and not self.images:
            raise DataError(f"Example {self.id!r} is empty: give it a prompt or an image.")

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

    def head(self, n: int) -> "Suite":
        """The same suite with its first `n` examples; UsageError unless n is positive."""
        if n < 1:
            raise UsageError(f"A suite of {n} examples was asked for; ask for at least 1.")
        return dataclasses.replace(self, examples=self.examples[:n])


def load_image(image: Image.Image | str | Path, what: str = "image") -> Image.Image:
    """One image as RGB, upright, alpha on white; of an animated file the first frame.

    `what` names the image in errors. Raises DataError if it is missing, corrupt, not an image,
    empty or above `MAX_PIXELS`.
    """
    if isinstance(image, (str, Path)):
        if str(image).startswith(("http://", "https://")):
            raise DataError(f"{what}: {image} is an address; download it and pass the file.")
        try:
            with Image.open(image) as opened:
                return _to_rgb(opened, f"{what} ({image})")
        except DataError:
            raise
        except Image.DecompressionBombError as error:
            raise DataError(f"{what}: {image} is too large ({error}).") from error
        except FileNotFoundError as error:
            raise DataError(f"{what}: there is no file {image}.") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{what}: {image} is not a readable image ({error}).") from error
    try:
        return _to_rgb(image, what)
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{what} can't be decoded ({error}).") from error


def _to_rgb(image: Image.Image, what: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{what} has {width}×{height} pixels, above the limit of {MAX_PIXELS // 10**6} "
            "MPixel; make it smaller."
        )
    if width < 1 or height < 1:
        raise DataError(f"{what} has no pixels ({width}×{height}).")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _deep_to_rgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")  # a copy, so that the caller's image can't change under us


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
