"""What follows an alarm: how a monitored model comes to its answer.

    the request raises the alarm    its pictures are out from then on, and words that others put
                                    into the answer's beginning; and less is enough for an alarm of
                                    the answer
    the answer does                 it is begun again with all unsafe channels closed: gates wide
                                    open, and without words that others put into its beginning
    and that answer does too        a refusal is given

Without an alarm the answer is the unedited model's, to the bit. Where a request's alarm is raised,
everything that follows is made of its text alone, and so is the answer: it doesn't depend on the
picture or on how its answer was begun, whatever that is: what a certificate of an evaluation rests
on. For that, requests that are asked as text alone and those that are asked with more never share a
batch, in which bfloat16 would carry the one over to the other. Answers are read when they are
finished, at 16, 32, 64, … tokens and at the end, so that one which goes on harmlessly isn't spared
for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from care.data.example import Example
from care.defenses.monitors.monitor import Monitor
from care.defenses.monitors.reading import Exchange
from care.errors import NotFiniteError
from care.models.alarms import Alarm, Source
from care.models.finite import not_finite
from care.models.responses import Answer

if TYPE_CHECKING:
    from care.models.vlm import VLM

REFUSAL = "I'm sorry, but I can't help with that."
"""The answer that is given in the end."""

Closing = Callable[[], AbstractContextManager[Any]]
"""Opens a context in which all unsafe channels are closed."""


@dataclass(frozen=True)
class _Turn:
    """A request, and how the model is asked it."""

    example: Example
    """The request as it came."""
    asked: Example
    """The same, as its text alone if it raised an alarm."""
    alarm: Alarm | None
    """The alarm that it raised."""
    given: Answer | None
    """The unedited model's answer to what is asked, if it is known."""

    @classmethod
    def of(cls, example: Example, alarm: Alarm | None, known: Answer | None) -> _Turn:
        """The turn of an example; `known` is an answer to it as it came."""
        if alarm is None or not _added(example):
            return cls(example, example, alarm, known)
        return cls(example, example.text_alone(), alarm, None)

    @property
    def source(self) -> Source:
        """Where the first answer comes from."""
        return "model" if self.asked is self.example else "text alone"


@dataclass(frozen=True)
class Dialogue:
    """A model, what watches it, and how it is asked."""

    vlm: VLM
    """The model, undefended."""
    monitors: Sequence[Monitor]
    """All monitors, in any order."""
    closing: Closing | None
    """How its unsafe channels are closed; None: a refusal is given at once."""
    how: dict[str, Any]
    """Options of `VLM.answers`."""

    def answers(
        self, examples: Sequence[Example], given: Sequence[Answer] | None = None
    ) -> list[Answer]:
        """An answer to each example; `given` are those of the unedited model, if they are known.

        Raises NotFiniteError, which holds the other answers, where the model computes NaN or
        infinity.
        """
        turns = [
            _Turn.of(example, alarm, known)
            for example, alarm, known in zip(
                examples, self._requests(examples), given or [None] * len(examples), strict=True
            )
        ]
        found: list[Answer | None] = [None] * len(turns)
        for added in (False, True):
            places = [n for n, turn in enumerate(turns) if _added(turn.asked) == added]
            answers = self._watched([turns[n] for n in places])
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
        answers = [answer for answer in found if answer is not None]
        if len(answers) < len(found):
            raise NotFiniteError(not_finite(self.vlm.name, self.vlm.dtype), found)
        return answers

    def _watched(self, turns: Sequence[_Turn]) -> list[Answer | None]:
        """Answers that were read, and what is answered in place of those that raised an alarm."""
        found = self._ask(turns)
        said = self._said(turns, found)
        stopped = [place for place, alarm in enumerate(said) if alarm]
        found = [
            answer and replace(answer, source=turn.source, alarms=_raised(turn.alarm, alarm))
            for turn, answer, alarm in zip(turns, found, said, strict=True)
        ]
        others = self._again([turns[n] for n in stopped])
        for place, other in zip(stopped, others, strict=True):
            before = _raised(turns[place].alarm, said[place])
            found[place] = other and replace(other, alarms=(*before, *other.alarms))
        return found

    def _again(self, turns: Sequence[_Turn]) -> list[Answer | None]:
        """What is answered in place of answers that raised an alarm."""
        if self.closing is None or not turns:
            return [_refusal() for _ in turns]
        anew = [replace(turn, asked=_unopened(turn.asked), given=None) for turn in turns]
        with self.closing():
            found = self._ask(anew)
        said = self._said(anew, found)
        return [
            replace(_refusal(), alarms=(alarm,))
            if alarm
            else answer and replace(answer, source="repaired")
            for answer, alarm in zip(found, said, strict=True)
        ]

    def _ask(self, turns: Sequence[_Turn]) -> list[Answer | None]:
        """Answers of the model, None where it computes NaN; what is known isn't asked."""
        asked = [turn.asked for turn in turns if turn.given is None]
        try:
            fresh = iter(self.vlm.answers(asked, **self.how) if asked else ())
        except NotFiniteError as error:
            fresh = iter(error.answers)
        return [next(fresh) if turn.given is None else turn.given for turn in turns]

    def _requests(self, examples: Sequence[Example]) -> list[Alarm | None]:
        watching = [monitor for monitor in self.monitors if monitor.reads == "request"]
        return self._first(watching, [Exchange(example) for example in examples])

    def _said(self, turns: Sequence[_Turn], found: Sequence[Answer | None]) -> list[Alarm | None]:
        """Alarms of answers, given those of their requests."""
        watching = [monitor for monitor in self.monitors if monitor.reads != "request"]
        exchanges = [
            Exchange(turn.example, answer.text if answer else "")
            for turn, answer in zip(turns, found, strict=True)
        ]
        return self._first(watching, exchanges, [turn.alarm is not None for turn in turns])

    def _first(
        self,
        monitors: Sequence[Monitor],
        exchanges: Sequence[Exchange],
        suspected: Sequence[bool] | None = None,
    ) -> list[Alarm | None]:
        """The earliest alarm that each exchange raises with any of the monitors."""
        size = self.how.get("batch_size", 16)
        each = [monitor.alarms(self.vlm, exchanges, size, suspected) for monitor in monitors]
        return [
            min((alarm for alarm in alarms if alarm), key=lambda a: a.tokens, default=None)
            for alarms in (zip(*each, strict=True) if each else [()] * len(exchanges))
        ]


def _raised(*alarms: Alarm | None) -> tuple[Alarm, ...]:
    return tuple(alarm for alarm in alarms if alarm is not None)


def _refusal() -> Answer:
    return Answer(REFUSAL, 0, 0, ended=True, source="refusal")


def _added(example: Example) -> bool:
    """Whether it is more than the text of a request."""
    return bool(example.images or example.opening)


def _unopened(example: Example) -> Example:
    """The example without words that others put into the answer's beginning."""
    return replace(example, opening="")
