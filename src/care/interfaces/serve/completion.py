"""Answers as OpenAI's chat completions, whole and in chunks, with what the repair did beside them.

    {"id": …, "choices": [{"message": {"role": "assistant", "content": "…"}, "finish_reason":
     "stop"}], "usage": {…}, "care": {"source": "model", "alarms": [], "repair": "3f2a…"}}

Thoughts stand apart from the answer, in `reasoning_content`. Of a stream every chunk holds what has
been added; where what was shown doesn't stand, a chunk says so by `withdrawn` in its `care` object,
and what follows begins anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from care.interfaces.requests.decoding import Decoding
from care.interfaces.serve.engine import Served
from care.models.alarms import Alarm, Withdrawn
from care.models.stops import StopTexts
from care.models.thoughts import Tags, read

if TYPE_CHECKING:
    from care.models.responses import Answer

DONE = b"data: [DONE]\n\n"
"""The end of a stream."""


@dataclass(frozen=True)
class AnswerParts:
    """What is told of an answer, in its parts."""

    thoughts: str
    """What the model thought, with its tags; empty where it told nothing."""
    content: str
    """The answer."""
    stopped: bool = False
    """Whether one of the request's stops ended it."""


def told(text: str, stops: StopTexts, tags: Tags) -> AnswerParts:
    """The parts of an answer's text, up to the first of its stops."""
    said = read(text, tags)
    if said.answer is None:  # thoughts without an end
        return AnswerParts(text, "")
    content = stops.cut(said.answer)
    return AnswerParts(said.thoughts or "", content, content != said.answer)


@dataclass
class Completion:
    """One completion: its facts, and the objects that are made of them."""

    id: str
    """Its id."""
    created: int
    """When it was asked, in seconds."""
    model: str
    """What the model is called."""
    decoding: Decoding
    """How it is answered."""
    tags: Tags
    """Between which the model thinks."""
    prompt_tokens: int
    """Tokens of the prompt as it came."""
    opening: str = ""
    """Words of the request that the answer begins with, in which no stop is looked for."""
    tells_usage: bool = False
    """Whether a stream ends with its numbers of tokens."""
    shown: AnswerParts = field(default_factory=lambda: AnswerParts("", ""))
    """What of a stream has been sent."""
    text: str = ""
    """What of a stream has been said since it was last withdrawn."""
    withdrew: bool = False
    """Whether something that a stream had sent was withdrawn."""

    def whole(self, served: Served) -> dict[str, Any]:
        """The object of an answer in one piece."""
        parts = self._parts(served.answer)
        message = {"role": "assistant", "content": parts.content}
        if parts.thoughts:
            message["reasoning_content"] = parts.thoughts
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason(served.answer, parts.stopped),
        }
        return self._object("chat.completion", [choice]) | {
            "usage": self.usage(served.answer),
            "care": care_of(served),
        }

    def first(self) -> bytes:
        """The chunk that begins a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def more(self, said: str | Withdrawn) -> Iterator[bytes]:
        """The chunks of what a stream says next."""
        if isinstance(said, Withdrawn):
            yield from self._withdrawn(said.alarm)
            self.text = ""
        else:
            self.text += said
            stops = StopTexts(self.decoding.until).after(self.opening, self.tags)
            parts = told(self.text, stops, self.tags)
            held = _held_back(parts.content, stops, self.tags)
            content = parts.content if parts.stopped else parts.content[: -held or None]
            yield from self._added(AnswerParts(parts.thoughts, content))

    def last(self, served: Served) -> Iterator[bytes]:
        """The chunks that end a stream: what is left, why it ended, and its numbers of tokens."""
        parts = self._parts(served.answer)
        yield from self._added(parts)
        care = care_of(served)
        yield self._chunk({}, finish_reason(served.answer, parts.stopped), care=care)
        if self.tells_usage:
            numbers = {"usage": self.usage(served.answer), "care": care}
            yield event(self._object("chat.completion.chunk", []) | numbers)

    def usage(self, answer: Answer) -> dict[str, int]:
        """Numbers of tokens; the prompt's as it came where a refusal was given without reading."""
        prompt = answer.prompt_tokens or self.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer.tokens,
            "total_tokens": prompt + answer.tokens,
        }

    def _parts(self, answer: Answer) -> AnswerParts:
        """The parts of a finished answer."""
        # A refusal that is put in its place isn't what was to be stopped.
        texts = () if answer.source == "refusal" else self.decoding.until
        opening = self.opening if answer.source == "model" else ""
        return told(answer.text, StopTexts(texts).after(opening, self.tags), self.tags)

    def _added(self, parts: AnswerParts) -> Iterator[bytes]:
        """Chunks from what was shown to `parts`."""
        if not (
            parts.thoughts.startswith(self.shown.thoughts)
            and parts.content.startswith(self.shown.content)
        ):
            yield from self._withdrawn(None)
        names = (("reasoning_content", "thoughts"), ("content", "content"))
        for name, part in names:
            if more := getattr(parts, part)[len(getattr(self.shown, part)) :]:
                yield self._chunk({name: more})
        self.shown = parts

    def _withdrawn(self, alarm: Alarm | None) -> Iterator[bytes]:
        if not (self.shown.content or self.shown.thoughts):
            return  # an alarm before anything was sent: there is nothing to clear
        about = {"content": self.shown.content, "alarm": alarm and asdict(alarm)}
        yield self._chunk({}, care={"withdrawn": about})
        self.shown, self.withdrew = AnswerParts("", ""), True

    def _chunk(self, delta: dict[str, str], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        numbers = {"usage": None} if self.tells_usage else {}
        return event(self._object("chat.completion.chunk", [choice]) | numbers | more)

    def _object(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def event(content: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def care_of(served: Served) -> dict[str, Any]:
    """What the repair did: where the answer comes from, what alarmed, and which repair it was."""
    answer = served.answer
    return {
        "source": answer.source,
        "alarms": [asdict(alarm) for alarm in answer.alarms],
        "repair": served.repair,
    }


def finish_reason(answer: Answer, stopped: bool) -> str:
    """Why an answer ended, in OpenAI's words."""
    if answer.source == "refusal":
        return "content_filter"
    return "stop" if answer.ended or stopped else "length"


def _held_back(content: str, stops: StopTexts, tags: Tags) -> int:
    """Characters at the end of an unfinished answer that may be the beginning of a stop, or all of
    one that may be the beginning of a tag."""
    begun = content.strip().casefold()
    if begun and any(opening.casefold().startswith(begun) for opening, _ in tags):
        return len(content)
    said = content[stops.start(content) :]
    lengths = (
        length
        for stop in stops.texts
        for length in range(1, len(stop))
        if said.endswith(stop[:length])
    )
    return max(lengths, default=0)
