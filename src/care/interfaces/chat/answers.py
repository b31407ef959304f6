"""What the page asks and is told: one request, answered by the bare model and under the repair.

    for sides in Answerer.load(config).both(sides, "How do I wash a car?", files):
        sides.bare[-1].told.text, sides.repaired[-1].told.withdrawn, …

The two are conversations of their own: each goes on from its own answers. Both are of one model, so
that they are made one after the other, under one lock. Of what is withdrawn nothing stays in the
text; that it was there is told. No gradio here, and no HTML (`shown`).
"""

from __future__ import annotations

import base64
import io
import sys
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from PIL import Image

from care.data.conversation import Conversation
from care.errors import CareError, DataError, UsageError
from care.interfaces.chat.config import ChatConfig
from care.interfaces.requests.pictures import load_file
from care.models.alarms import Withdrawn
from care.models.sites import Site
from care.runs.reading import valid_text

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.models.edit_stats import EditStats
    from care.models.responses import Answer
    from care.models.vlm import VLM

THUMBNAIL = 240
"""Most pixels of a shown picture's longer side."""

LONGEST_TOKEN = 32
"""Characters that a token is taken to hold at most: longer requests are refused uncounted."""


@dataclass(frozen=True)
class SiteEdits:
    """What was edited at one site on the way to an answer."""

    site: Site
    """Where."""
    scopes: tuple[str, ...]
    """Which tokens the defense edits there, if it says so."""
    tokens: int
    """How many tokens it changed."""
    change: float
    """Mean length of the change over that of the activation."""


@dataclass(frozen=True)
class Reply:
    """An answer as far as it is there."""

    text: str = ""
    """Its text, without what was withdrawn."""
    withdrawn: tuple[Withdrawn, ...] = ()
    """What was taken back after an alarm."""
    answer: Answer | None = None
    """The answer, once it is whole."""
    edits: tuple[SiteEdits, ...] = ()
    """What was edited for it, by site; known once it is whole."""
    failure: str = ""
    """Why there is none, in one sentence."""

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.answer is not None or bool(self.failure)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a request."""

    image: Image.Image
    """As the model gets it."""

    @cached_property
    def thumbnail(self) -> str:
        """A small copy as a data URL, made once: an answer is shown again after every token."""
        small, file = self.image.copy(), io.BytesIO()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class ChatTurn:
    """A request, and what was answered."""

    text: str
    """What was asked."""
    pictures: tuple[Picture, ...]
    """What was shown beside it."""
    told: Reply
    """The answer."""


Thread = tuple[ChatTurn, ...]
"""A conversation."""


@dataclass(frozen=True)
class Sides:
    """The same requests, answered by the bare model and under the repair."""

    bare: Thread = ()
    """What the bare model says."""
    repaired: Thread = ()
    """What it says under the repair."""

    def asked(self, begun: ChatTurn) -> Sides:
        """With one more request on both sides."""
        return Sides((*self.bare, begun), (*self.repaired, begun))


class Answerer:
    """One model and one defense, which answer one request at a time."""

    def __init__(self, vlm: VLM, defense: Defense, config: ChatConfig) -> None:
        self.vlm, self.defense, self.config = vlm, defense, config
        self._lock = Lock()

    @classmethod
    def load(cls, config: ChatConfig) -> Answerer:
        """That of a configuration. Raises what loading its model and its repair does."""
        from care.defenses.loading import load_defense

        vlm = config.model.load()
        return cls(vlm, load_defense(config.repair, vlm), config)

    def both(self, sides: Sides, text: str, files: Sequence[str] = ()) -> Iterator[Sides]:
        """The two conversations with one more request, while it is answered: bare, then repaired.

        Raises a CareError for a request that can't be read; what fails later is told as that
        side's `failure`.
        """
        text, pictures = self.read(text, files)
        sides = _kept(sides).asked(ChatTurn(text, pictures, Reply()))
        for thread in (sides.bare, sides.repaired):
            self._check(thread)
        yield sides
        for told in self.told(sides.bare, repaired=False):
            sides = replace(sides, bare=_with(sides.bare, told))
            yield sides
        for told in self.told(sides.repaired, repaired=True):
            sides = replace(sides, repaired=_with(sides.repaired, told))
            yield sides

    def read(self, text: str, files: Sequence[str]) -> tuple[str, tuple[Picture, ...]]:
        """The words and pictures of a request; a CareError for what can't be read."""
        limits = self.config.limits
        if len(text) > LONGEST_TOKEN * limits.max_prompt_tokens:
            raise _too_long(f"{len(text):,} characters", limits.max_prompt_tokens)
        if len(files) > limits.max_images:
            raise DataError(
                f"The request has {len(files)} pictures, more than {limits.max_images}; send fewer."
            )
        text, left, pictures = valid_text(text).strip(), limits.max_pixels, []
        for file in files:
            image = load_file(Path(file), limits.max_image_bytes, left)
            left -= image.width * image.height
            pictures.append(Picture(image))
        if not text and not pictures:
            raise UsageError("The request is empty; write something, or add a picture.")
        return text, tuple(pictures)

    def told(self, thread: Thread, repaired: bool) -> Iterator[Reply]:
        """The answer to the last request of a conversation, while it is made."""
        with self._lock:
            told = Reply()
            try:
                for told in self._told(thread, self.defense if repaired else None):
                    yield told
            except CareError as error:
                yield replace(told, text="", failure=str(error))
            except Exception:
                traceback.print_exc(file=sys.stderr)
                said = "The model failed at this request; the terminal of `care chat` says more."
                yield replace(told, text="", failure=said)

    def _told(self, thread: Thread, defense: Defense | None) -> Iterator[Reply]:
        from care.defenses.base import stream_under
        from care.models.hooks import counted
        from care.models.responses import Answer

        hold = self.config.hold if defense else None  # nothing reads the bare model's
        asked = self._conversation(thread)
        said = stream_under(defense, self.vlm, asked, hold, **self.config.how)
        told = Reply()
        with counted(self.vlm) as edits, closing(_closable(said)) as pieces:
            for each in pieces:
                if isinstance(each, Answer):
                    told = replace(told, text=each.text, answer=each, edits=self._sites(edits))
                elif isinstance(each, Withdrawn):
                    # Without an alarm only a tokenizer writes the beginning otherwise.
                    taken = (*told.withdrawn, each) if each.alarm else told.withdrawn
                    told = replace(told, text="", withdrawn=taken)
                else:
                    told = replace(told, text=told.text + each)
                yield told

    def _conversation(self, thread: Thread) -> Conversation:
        turns: list[tuple[str, Sequence[Any]]] = []
        if self.config.system:
            turns.append(("system", [self.config.system]))
        for each in thread:
            turns.append(("user", [*(p.image for p in each.pictures), *filter(None, [each.text])]))
            if each.told.answer is not None:
                turns.append(("assistant", [each.told.answer.text]))
        return Conversation.made(turns, lambda image, _: image)

    def _check(self, thread: Thread) -> None:
        """DataError for a conversation that is too long, and what encoding it raises."""
        from care.models.batches import encode

        image_token, most = self.vlm.anatomy.image_token_id, self.config.limits.max_prompt_tokens
        with self._lock:  # a tokenizer can't be used by two threads at once
            asked = self._conversation(thread)
            inputs, _ = encode(self.vlm.processor, [asked], [[]], image_token)
        if (tokens := int(inputs["attention_mask"].sum())) > most:
            raise _too_long(f"{tokens:,} tokens", most)

    def _sites(self, edits: Sequence[EditStats]) -> tuple[SiteEdits, ...]:
        """What was edited at each site, in order."""
        scopes: dict[Site, dict[str, None]] = {}
        for channel in getattr(self.defense, "channels", ()):
            scopes.setdefault(channel.site, {}).update(dict.fromkeys(channel.scopes))
        found = []
        for site in sorted({site for each in edits for site in each}):
            parts = [(s.tokens, s.relative_norm) for each in edits if (s := each.get(site))]
            if tokens := sum(count for count, _ in parts):
                change = sum(count * norm for count, norm in parts) / tokens
                found.append(SiteEdits(site, tuple(scopes.get(site, ())), tokens, change))
        return tuple(found)


def _kept(sides: Sides) -> Sides:
    """The exchanges that came to an answer on both sides; others are no part of what follows."""
    whole = [
        (one, other)
        for one, other in zip(sides.bare, sides.repaired, strict=True)
        if one.told.answer is not None and other.told.answer is not None
    ]
    return Sides(tuple(one for one, _ in whole), tuple(other for _, other in whole))


def _with(thread: Thread, told: Reply) -> Thread:
    return (*thread[:-1], replace(thread[-1], told=told))


def _closable(said: Iterator[Any]) -> Generator[Any, None, None]:
    """A stream that ends the model when it is closed; a defense may give any iterator."""
    yield from said


def _too_long(what: str, most: int) -> DataError:
    return DataError(
        f"The conversation has {what}, more than its {most:,} tokens may hold; shorten it, or "
        "begin a new one."
    )
