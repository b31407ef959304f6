"""An answer while it is made: its text so far after every token, and at last the answer.

    for said in spoken(vlm, example):      Spoken, Spoken, …, Answer
    for piece in pieces(vlm, example):     "To", " wash", " a", …, Answer

Tokens are chosen by `VLM.answers` itself, in a thread that runs only while whoever iterates waits
for it, so that the last item is that one's answer to the bit, and nothing else uses the model at
the same time. Who stops iterating stops the model, after the token that it is at. Not here: what
becomes of an answer that raises an alarm (`care.defenses.monitors.dialogue`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Any

from care.data.example import Example
from care.errors import UsageError
from care.models.alarms import Withdrawn
from care.models.responses import Answer
from care.models.vlm import VLM

Streamed = str | Withdrawn | Answer
"""What a stream yields: pieces of text, and at last the answer. Joined, the pieces after the last
`Withdrawn`, or all without one, are the answer's text."""


@dataclass(frozen=True)
class Spoken:
    """An answer so far."""

    text: str
    """Its text, as that of an `Answer`."""
    tokens: int
    """Its tokens, those of its opening included."""


class _HungUp(BaseException):
    """Nobody waits for the rest of the answer."""


class Showing:
    """How much of a text that grows has been shown."""

    def __init__(self) -> None:
        self.shown = ""

    def more(self, text: str) -> Iterator[str]:
        """What can be shown now of the text so far."""
        text = whole_characters(text)
        if text.startswith(self.shown) and text != self.shown:
            yield text[len(self.shown) :]
            self.shown = text

    def rest(self, text: str) -> Iterator[str | Withdrawn]:
        """What is left to show of the whole text."""
        if not text.startswith(self.shown):
            yield Withdrawn(self.shown)
            self.shown = ""
        if text != self.shown:
            yield text[len(self.shown) :]


def spoken(vlm: VLM, example: Example, **how: Any) -> Generator[Spoken | Answer, None, None]:
    """The answer to an example after each of its tokens, and at last the answer.

    `how` are options of `VLM.answers`, and what is raised is what that raises.
    """
    said: SimpleQueue[Spoken | Answer | BaseException] = SimpleQueue()
    go_on, hung_up = Semaphore(0), False

    def heard(text: str, tokens: int) -> None:
        said.put(Spoken(text, tokens))
        go_on.acquire()
        if hung_up:
            raise _HungUp

    def answer() -> None:
        try:
            said.put(vlm.answers([example], heard=heard, **how)[0])
        except BaseException as error:
            said.put(error)

    thread = Thread(target=copy_context().run, args=(answer,), name="care answer", daemon=True)
    thread.start()
    try:
        while not isinstance(found := said.get(), Answer):
            if isinstance(found, BaseException):
                raise found
            yield found
            go_on.release()
        yield found
    finally:
        hung_up = True
        go_on.release()
        thread.join()


def pieces(
    vlm: VLM, example: Example, hold: int | None = None, **how: Any
) -> Generator[Streamed, None, None]:
    """Pieces of the answer to an example, and at last the answer; `how` as in `spoken`.

    Of its first `hold` tokens nothing is shown before all of them are there.
    """
    showing, held = Showing(), check_hold(hold) or 0
    with closing(spoken(vlm, example, **how)) as so_far:
        for said in so_far:
            if isinstance(said, Answer):
                yield from showing.rest(said.text)
                yield said
            elif said.tokens >= held:
                yield from showing.more(said.text)


def whole_characters(text: str) -> str:
    """A text so far without the beginning of a character that takes several tokens."""
    return text.rstrip("\ufffd")


def check_hold(hold: int | None) -> int | None:
    """UsageError unless it is None or a number of tokens."""
    if hold is not None and (type(hold) is not int or hold < 0):
        raise UsageError(f"The tokens to hold back must be 0 or more, or None, got {hold!r:.40}.")
    return hold
