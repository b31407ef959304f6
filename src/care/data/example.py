"""Examples and suites: the inputs of everything, as plain immutable data.

An `Example` is one request to a model, with at most a few images; a `Suite` is a named, versioned
list of them. Images may be PIL images or paths; they are opened late, by `images`. Texts that
aren't valid Unicode are mended here, with a warning. Nothing is fetched from the network.
"""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from care.data.images import load_image
from care.errors import DataError, UsageError
from care.runs.reading import valid, valid_text

ExampleKind = Literal["malicious", "benign"]
SuiteRole = Literal["attack", "utility", "over_refusal"]

WORDLESS = "..."
"""Stands for the words of an example that has none, where its pictures are left out."""


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

    opening: str = ""
    """First words of the answer, where whoever asks has begun it: the model goes on from there."""

    def __post_init__(self) -> None:
        if not _is_text(self.id) or not self.id:
            raise DataError(f"An example needs a non-empty text id, got {self.id!r}.")
        if not _is_text(self.prompt):
            raise DataError(f"Example {self.id!r}: the prompt must be text, got {self.prompt!r}.")
        if not _is_text(self.opening):
            raise DataError(f"Example {self.id!r}: the opening must be text, got {self.opening!r}.")
        if self.kind not in get_args(ExampleKind):
            raise DataError(
                f"Example {self.id!r}: kind {self.kind!r} is unknown; use malicious or benign."
            )
        object.__setattr__(self, "images", _as_tuple(self.images, (Image.Image, str, Path)))
        object.__setattr__(self, "references", _as_tuple(self.references, (str,)))
        self._mend_texts()
        for image in self.images:
            if not _is_picture(image):
                raise DataError(
                    f"Example {self.id!r}: an image must be a PIL image or a path, got "
                    f"{type(image).__name__}."
                )
        if not self.prompt.strip() and not self.images:
            raise DataError(f"Example {self.id!r} is empty: give it a prompt or an image.")

    def _mend_texts(self) -> None:
        # Half an emoji, as cut texts end, is no Unicode: no tokenizer and no file takes it.
        mended: list[str] = []
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
        """The example in Hugging Face's chat format: system, then images followed by the text.

        The opening is no message: it belongs to the answer that the template makes room for.
        """
        content: list[dict[str, str]] = [{"type": "image"} for _ in self.images]
        if self.prompt:
            content.append({"type": "text", "text": self.prompt})
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            system = [{"type": "text", "text": self.system}]
            messages.append({"role": "system", "content": system})
        messages.append({"role": "user", "content": content})
        return messages

    def text_alone(self) -> "Example":
        """The words of the request: no pictures, and no words that begin its answer.

        Of an example without words a placeholder is left. Nothing in it depends on what was left
        out: neither its id nor its digest does.
        """
        words = self.prompt if self.prompt.strip() else WORDLESS
        return dataclasses.replace(self, images=(), opening="", prompt=words)

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
            # An example without an opening is told as it was before there were any.
            if field.name != "images" and (field.name != "opening" or self.opening)
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


def _is_text(value: object) -> bool:
    return isinstance(value, str)  # whatever callers without types pass


def _is_picture(value: object) -> bool:
    return isinstance(value, Image.Image | str | Path)


def _as_tuple(value: Any, single: tuple[type, ...]) -> tuple[Any, ...]:
    """A lone item becomes a tuple of one: `images=picture` is what people write."""
    return (value,) if isinstance(value, single) else tuple(value)
