"""Inspect's chat messages as a `Conversation` that any VLM answers.

Images may be data URIs or files; nothing is fetched. What the models can't read (tools, audio,
video, documents, reasoning) is an error and never left out. Messages are read by their attributes
alone, so this needs no Inspect.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from PIL import Image

from care.data.conversation import ROLES, Conversation
from care.data.images import load_image
from care.errors import DataError, UsageError


def conversation(messages: Sequence[Any]) -> Conversation:
    """The conversation that is to be answered.

    Raises UsageError for what the models can't read, DataError for an image that can't be used.
    """
    turns = [
        (message.role, [part.text if part.type == "text" else part for part in _parts(message)])
        for message in messages
    ]
    return Conversation.made(turns, _image)


def images_of(messages: Sequence[Any]) -> list[Image.Image]:
    """The images of the user's messages."""
    found = [p for m in messages if m.role == "user" for p in _parts(m) if p.type == "image"]
    return [_image(part, f"image {index} of the request") for index, part in enumerate(found)]


@dataclass(frozen=True)
class _Text:
    text: str
    type: str = "text"


def _parts(message: Any) -> Iterator[Any]:
    """Texts and images of a message, without empty texts."""
    if message.role not in ROLES or getattr(message, "tool_calls", None):
        raise UsageError(
            "The request holds a tool call or its result, but care models call no tools; use a "
            "solver without tools."
        )
    content = [_Text(message.content)] if isinstance(message.content, str) else message.content
    for part in content:
        if part.type not in ("text", "image"):
            raise UsageError(
                f"The request holds content of type {part.type!r}, but care models read text and "
                "images only; leave it out."
            )
        if part.type == "image" or part.text:
            yield part


def _image(part: Any, what: str) -> Image.Image:
    if getattr(part, "detail", "auto") != "auto":
        raise UsageError(
            f"{what} asks for detail {part.detail!r}, but a care model's processor decides by "
            "itself how fine an image is read; leave it at auto."
        )
    source = part.image
    if source.startswith("data:"):
        return _decoded(source, what)
    if source.startswith("file:"):
        source = url2pathname(urlparse(source).path)
    return load_image(source, what)


def _decoded(uri: str, what: str) -> Image.Image:
    header, _, payload = uri.partition(",")
    if not header.endswith(";base64"):
        raise DataError(f"{what} is a data URI that isn't base64 ({header!r:.40}); encode it so.")
    try:
        return load_image(base64.b64decode(payload, validate=True), what)
    except ValueError as error:  # of base64 or the picture
        raise DataError(
            f"{what} is no readable image (a data URI, {header}, of {len(payload)} characters); "
            "check the file that it was made of."
        ) from error
