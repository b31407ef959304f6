"""What is said to another server, and what it says, in the messages of OpenAI's API.

    {"choices": [{"message": {"content": "…"}, "finish_reason": "stop"}], "usage": {…}}
    {"choices": [{"delta": {"content": "…"}}]}                                a piece of a stream

Servers differ: many tell no `usage`, some send `delta` as null, and ones that tell thoughts apart
(`reasoning_content`) leave them out of the content. What can't be read is that server's failure.
Not here: connections, and what is asked for (`upstream`).
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from PIL import Image

from care.data.example import Example
from care.interfaces.serve.failures import RequestFailure

_THOUGHTS = ("reasoning_content", "reasoning")
"""Where servers tell thoughts apart."""


@dataclass(frozen=True)
class UpstreamPiece:
    """What another server says in one message or piece of a stream."""

    content: str
    """Text of the answer."""
    thinks_apart: bool
    """Whether it tells thoughts, which aren't in the content."""
    reason: str | None
    """Why the answer ended, if it says so."""
    prompt_tokens: int | None
    """Tokens of the prompt, if it says so."""
    tokens: int | None
    """Tokens of the answer, if it says so."""


def read_said(told: Any, part: Literal["message", "delta"]) -> UpstreamPiece:
    """What is said in an object of the API; RequestFailure for what is none.

    The last chunk of a stream may hold numbers of tokens and no choice.
    """
    try:
        choices, usage = told["choices"], told.get("usage") or {}
        choice = choices[0] if choices or part == "message" else {}
        words = choice.get(part) or {}
        content, reason = words.get("content") or "", choice.get("finish_reason")
        found = UpstreamPiece(
            content,
            any(words.get(name) for name in _THOUGHTS),
            reason,
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
        )
    except (AttributeError, LookupError, TypeError):
        raise _unread(part) from None
    numbers = (found.prompt_tokens, found.tokens)
    if not isinstance(content, str) or not all(isinstance(n, int | None) for n in numbers):
        raise _unread(part)
    return found


def events(lines: Iterator[str]) -> Iterator[Any]:
    """The objects of a stream of server-sent events; RequestFailure for what is no JSON."""
    for line in lines:
        name, _, data = line.partition(":")
        if name == "data" and (data := data.strip()) != "[DONE]":
            try:
                yield json.loads(data)
            except ValueError:
                raise _unread("delta") from None


def failed(how: str) -> RequestFailure:
    """The other server failed so."""
    told = f"The server that makes the answers failed {how}; ask again later."
    return RequestFailure(502, "upstream_failed", told, retry_after=5)


def _unread(part: Literal["message", "delta"]) -> RequestFailure:
    return failed("in the middle of an answer" if part == "delta" else "to give an answer")


def error_in(response: httpx.Response) -> str:
    """What a server says of an error, in one line."""
    try:
        told = response.json()
        message = told.get("error", told).get("message") or told.get("message")
    except (ValueError, AttributeError):
        message = response.text
    return " ".join(str(message).split())[:300]


def messages_of(example: Example) -> list[dict[str, Any]]:
    """An example in OpenAI's chat format: pictures as data URLs, its opening as last message."""
    images = iter(example.load_images())

    def part(each: Mapping[str, Any]) -> dict[str, Any]:
        if each["type"] == "text":
            return {"type": "text", "text": each["text"]}
        return {"type": "image_url", "image_url": {"url": _data_url(next(images))}}

    found = [
        {"role": turn["role"], "content": [part(each) for each in turn["content"]]}
        for turn in example.messages()
    ]
    if example.opening:
        found.append({"role": "assistant", "content": example.opening})
    return found


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
