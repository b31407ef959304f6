"""Inspect's chat messages as an `Example` that any VLM answers.

System, user and assistant turns are kept as they are, and images stay where they stand among the
text. A last turn of the assistant's is the opening of the answer, which goes on from there. Images
may be data URIs or files; nothing is fetched. What the models can't read (tools, audio, video,
documents, reasoning) is an error and never left out. Messages are read by their attributes alone,
so this needs no Inspect.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from PIL import Image

from care.data.example import WORDLESS, Example
from care.data.images import load_image
from care.errors import DataError, UsageError

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, eq=False)
class Conversation(Example):
    """An example of several turns; `prompt` holds all of their text."""

    chat: tuple[dict[str, Any], ...] = ()
    """The turns in Hugging Face's chat format."""
    turn: int = 1
    """How often its words have been asked, with this time: drawn answers are drawn anew."""

    def messages(self) -> list[dict[str, Any]]:
        """The turns, images where they stand."""
        return list(self.chat)

    def text_alone(self) -> Conversation:
        """The turns' texts alone, under an id that is made of them alone."""
        chat = tuple(turn | {"content": _texts(turn)} for turn in self.chat)
        words = self.prompt if self.prompt.strip() else WORDLESS
        return replace(self, id=_id(chat, (), ""), images=(), opening="", prompt=words, chat=chat)


def conversation(messages: Sequence[Any]) -> Conversation:
    """The conversation that is to be answered.

    Its id is made of its content. Raises UsageError for what the models can't read, DataError for
    an image that can't be used.
    """
    opening, messages = _opening(messages)
    if not messages or messages[-1].role != "user":
        last = f"one of role {messages[-1].role!r}" if messages else "nothing"
        raise UsageError(
            f"A request ends with a user's message, after which an answer may begin, got {last}; "
            "add one."
        )
    chat: list[dict[str, Any]] = []
    texts: list[str] = []
    images: list[Image.Image] = []
    for message in messages:
        content: list[dict[str, str]] = []
        for part in _parts(message):
            if part.type == "text":
                content.append({"type": "text", "text": part.text})
                texts.append(part.text)
            else:
                content.append({"type": "image"})
                images.append(_image(part, len(images)))
        chat.append({"role": message.role, "content": content})
    return Conversation(
        id=_id(chat, images, opening),
        prompt="\n".join(texts),
        images=tuple(images),
        chat=tuple(chat),
        opening=opening,
    )


def _opening(messages: Sequence[Any]) -> tuple[str, Sequence[Any]]:
    """The text of a last turn of the assistant's, and the turns before it."""
    if not messages or messages[-1].role != "assistant":
        return "", messages
    parts = list(_parts(messages[-1]))
    if any(part.type != "text" for part in parts):
        raise UsageError("The answer that the request begins holds an image; begin it with text.")
    return "".join(part.text for part in parts), messages[:-1]


def images_of(messages: Sequence[Any]) -> list[Image.Image]:
    """The images of the user's messages."""
    found = [p for m in messages if m.role == "user" for p in _parts(m) if p.type == "image"]
    return [_image(part, index) for index, part in enumerate(found)]


@dataclass(frozen=True)
class _Text:
    text: str
    type: str = "text"


def _parts(message: Any) -> Iterator[Any]:
    """Texts and images of a message, without empty texts."""
    if message.role not in _ROLES or getattr(message, "tool_calls", None):
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


def _image(part: Any, index: int) -> Image.Image:
    what = f"image {index} of the request"
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


def _texts(turn: Mapping[str, Any]) -> list[dict[str, str]]:
    texts = [part for part in turn["content"] if part["type"] == "text"]
    return texts or [{"type": "text", "text": WORDLESS}]


def _id(chat: Sequence[dict[str, Any]], images: Sequence[Image.Image], opening: str) -> str:
    hasher = hashlib.sha256((json.dumps(list(chat)) + opening).encode())
    for image in images:
        hasher.update(f"{image.size}".encode() + image.tobytes())
    return f"request-{hasher.hexdigest()[:12]}"
