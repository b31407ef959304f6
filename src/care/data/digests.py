"""Whether a stored answer belongs to the example, and a run to the suites and defenses, at hand.

A key says where an answer stands (suite, id, defense, seed), not what was asked: after a line was
put in front of a file, the same key means another example. So rows hold the digest of the example
that was asked, over every field and the pixels of its pictures. Rows of versions before that hold
none; of those what they do hold is compared, which says nothing of pictures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from care.data.example import Example, Suite
from care.errors import DataError

_STATED = ("prompt", "goal", "kind", "category")
"""Fields of an example that rows state."""


def example_digest(example: Example) -> str:
    """SHA-256 of the example; one with a picture that can't be read has a digest too."""
    try:
        return example.digest()
    except DataError:
        # Pictures that were readable when they were asked, or will be, are others than these.
        bare = dataclasses.replace(example, prompt=example.prompt or "?", images=())
        told = f"unreadable {len(example.images)} {example.prompt == ''} {bare.digest()}"
        return hashlib.sha256(told.encode()).hexdigest()


def picture_digests(example: Example) -> tuple[str, ...]:
    """SHA-256 of the size and pixels of each picture, whatever it was loaded from."""
    return tuple(map(picture_digest, example.load_images()))


def picture_digest(image: Image.Image) -> str:
    """SHA-256 of the size and pixels of a picture."""
    return hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()


def text_digest(text: str) -> str:
    """The first 16 digits of the SHA-256 of a text, which tell it from others."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def request_digest(example: Example) -> str:
    """The first 16 digits of the SHA-256 of what the model is asked, words and pictures: the same
    of a request that has another id, or stands in another suite."""
    told = [example.prompt, example.opening, example.system, *picture_digests(example)]
    return text_digest(json.dumps(told))


def suite_digest(suite: Suite) -> str:
    """SHA-256 of name, role, version and examples, whether their pictures can be read or not."""
    hasher = hashlib.sha256(ascii((suite.name, suite.role, suite.version)).encode())
    for example in suite:
        hasher.update(example_digest(example).encode())
    return hasher.hexdigest()


def digest_of(defense: Any) -> str | None:
    """What a defense says by `digest()` of what it does; None of one that says nothing."""
    digest = getattr(defense, "digest", None)
    return str(digest()) if callable(digest) else None


def is_same(row: Mapping[str, Any], example: Example) -> bool:
    """Whether a row was made of this example, as far as the row tells."""
    digest = row.get("digest")
    if digest is not None:
        return digest == example_digest(example)
    stated = [name for name in _STATED if name in row]
    return all(row[name] == getattr(example, name) for name in stated)


def warn_of_old(rows: Iterable[Mapping[str, Any]]) -> None:
    """A warning if rows hold no digest, for who is about to use the examples' pictures."""
    if any(row.get("digest") is None for row in rows):
        warnings.warn(
            "Rows of this run were written by an earlier version of care and hold no digest of "
            "their examples, so it isn't checked whether the pictures are those that were asked.",
            stacklevel=2,
        )
