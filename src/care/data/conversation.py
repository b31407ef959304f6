"""Conversations: examples of several turns, in the chat format of Hugging Face.

    Conversation.of([
        {"role": "user", "content": [{"type": "image", "image": "car.png"},
                                     {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "A car."},
        {"role": "user", "content": "How do you wash it?"},
    ])

It is an `Example`, and goes wherever one does: a model answers its last turn, and monitors read the
words of all turns as the request. Pictures stay where they stand among the text, of every turn, and
are left out of every turn where the text alone is asked. A last turn of the assistant's is the
opening of the answer, which goes on from there. Not here: messages of other programs
(`care.interfaces.requests.chat`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image

from care.data.example import WORDLESS, Example
from care.data.images import load_image
from care.errors import UsageError

ROLES = ("system", "user", "assistant")
"""Who speaks in a turn."""

Turn = tuple[str, Sequence[Any]]
"""Who speaks, and texts and pictures in their order; all that is no text is a picture."""


@dataclass(frozen=True, eq=False)
class Conversation(Example):
    """An example of several turns; `prompt` holds all of their text."""

    chat: tuple[dict[str, Any], ...] = ()
    """The turns in Hugging Face's chat format, in which a picture is no more than its place."""
    turn: int = 1
    """How often its words have been asked, with this time: drawn answers are drawn anew."""

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """From messages {role, content}, where content is a text or a list of parts: {"type":
        "text", "text": …} and {"type": "image", "image": a PIL image or a path}.

        Raises UsageError for another form, and what `made` raises.
        """
        turns = [(str(message.get("role")), _parts(message)) for message in messages]
        return cls.made(turns, load_image)

    @classmethod
    def made(cls, turns: Sequence[Turn], load: Callable[[Any, str], Image.Image]) -> Conversation:
        """From turns, whose pictures `load` decodes, told what each is called in errors.

        Its id is made of its content.

        Raises UsageError for an unknown role, or turns that don't end with a user's before the
        opening of the answer; DataError for a picture that can't be used.
        """
        if wrong := next((role for role, _ in turns if role not in ROLES), None):
            raise UsageError(f"A turn is of {', '.join(ROLES)}, but one is of {wrong!r:.40}.")
        opening, turns = _opening(turns)
        if not turns or turns[-1][0] != "user":
            last = f"one of role {turns[-1][0]!r}" if turns else "nothing"
            raise UsageError(
                "A request ends with a user's message, after which an answer may begin, got "
                f"{last}; add one."
            )
        chat: list[dict[str, Any]] = []
        texts: list[str] = []
        images: list[Image.Image] = []
        for role, parts in turns:
            content: list[dict[str, str]] = []
            for part in parts:
                if isinstance(part, str):
                    content.append({"type": "text", "text": part})
                    texts.append(part)
                else:
                    content.append({"type": "image"})
                    images.append(load(part, f"image {len(images)} of the request"))
            chat.append({"role": role, "content": content})
        return cls(
            id=_id(chat, images, opening),
            prompt="\n".join(texts),
            images=tuple(images),
            chat=tuple(chat),
            opening=opening,
        )

    def messages(self) -> list[dict[str, Any]]:
        """The turns, images where they stand."""
        return list(self.chat)

    def text_alone(self) -> Conversation:
        """The turns' texts alone, under an id that is made of them alone."""
        chat = tuple(turn | {"content": _texts(turn)} for turn in self.chat)
        words = self.prompt if self.prompt.strip() else WORDLESS
        return dataclasses.replace(
            self, id=_id(chat, (), ""), images=(), opening="", prompt=words, chat=chat
        )


def _parts(message: Mapping[str, Any]) -> list[Any]:
    """Texts and pictures of a message, without empty texts."""
    content: Any = message.get("content")
    if isinstance(content, str):
        return [content] if content else []
    if not isinstance(content, list | tuple):
        raise UsageError(
            "The content of a message is a text or a list of parts, got "
            f"{type(content).__name__}; write it so."
        )
    return [part for each in cast(Sequence[Any], content) for part in _part(each)]


def _part(each: Any) -> Iterator[Any]:
    known: Mapping[str, Any] = cast(Any, each) if isinstance(each, Mapping) else {}
    text, image = known.get("text"), known.get("image")
    if known.get("type") == "text" and isinstance(text, str):
        if text:
            yield text
    elif known.get("type") == "image" and isinstance(image, Image.Image | str | Path):
        yield Path(image) if isinstance(image, str) else image
    else:
        raise UsageError(
            'A part of a message is {"type": "text", "text": …} or {"type": "image", "image": a '
            f"PIL image or a path}}, got {each!r:.80}; write it so."
        )


def _opening(turns: Sequence[Turn]) -> tuple[str, Sequence[Turn]]:
    """The text of a last turn of the assistant's, and the turns before it."""
    if not turns or turns[-1][0] != "assistant":
        return "", turns
    parts = turns[-1][1]
    if not all(isinstance(part, str) for part in parts):
        raise UsageError("The answer that the request begins holds an image; begin it with text.")
    return "".join(parts), turns[:-1]


def _texts(turn: Mapping[str, Any]) -> list[dict[str, str]]:
    texts = [part for part in turn["content"] if part["type"] == "text"]
    return texts or [{"type": "text", "text": WORDLESS}]


def _id(chat: Sequence[dict[str, Any]], images: Sequence[Image.Image], opening: str) -> str:
    hasher = hashlib.sha256((json.dumps(list(chat)) + opening).encode())
    for image in images:
        hasher.update(f"{image.size}".encode() + image.tobytes())
    return f"request-{hasher.hexdigest()[:12]}"
