"""What follows an alarm: how a monitored model comes to its answer.

    the request raises the alarm    its pictures are out from then on, and words that others put
                                    into the answer's beginning; and less is enough for an alarm of
                                    the answer
    others begin the answer,        the model is asked plainly first, without their words and
    or it is drawn                  greedily; where it refuses then, that stands, and an alarm is
                                    followed as below; else less is enough for an alarm of what
                                    others began
    the answer does                 it is begun again with all unsafe channels closed: gates wide
                                    open, and without words that others put into its beginning
    and that answer does too        a refusal is given

Without an alarm the answer is the unedited model's, to the bit, unless an opening or chance was to
draw it from a model that refuses. Where a request's alarm is raised, everything that follows is
made of its text alone, and so is the answer: it doesn't depend on the picture or on how its answer
was begun, whatever that is: what a certificate of an evaluation rests on. For that, requests that
are asked as text alone and those that are asked with more never share a batch, in which bfloat16
would carry the one over to the other. Answers are read at 16, 32, 64, … tokens and at the end, so
that one which goes on harmlessly isn't spared for it: when they are finished or, of a stream, while
they are made. A stream keeps its beginning back until that was read, and shows what follows at
once: what was shown before a later reading can't be unsaid. An alarm ends it, and what is answered
in its place is the same either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from care.data.example import Example
from care.defenses.monitors.monitor import FIRST, Monitor, first_alarms
from care.defenses.monitors.reading import Exchange, tokens_read
from care.defenses.refusals import refusing, shown_texts
from care.errors import NotFiniteError
from care.judges.refusal import certainly_refused
from care.models.alarms import Alarm, Source, Withdrawn
from care.models.finite import not_finite
from care.models.responses import Answer, refusal
from care.models.streaming import (
    Showing,
    Spoken,
    Streamed,
    check_hold,
    spoken,
    whole_characters,
)

if TYPE_CHECKING:
    from care.models.vlm import VLM

HEARD = 2 * FIRST
"""Tokens of a plain answer that are heard, at most, before another one is made."""

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
    """Options of `VLM.answers`. `progress` counts each example once, when its first answer is
    there."""

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

    def stream(self, example: Example, hold: int | None = None) -> Iterator[Streamed]:
        """Pieces of the answer to one example while it is made, and at last the answer.

        Nothing is shown before `hold` tokens are there and were read as far as they are to be; by
        default before the first reading. Where the answer raises an alarm the stream says what of
        it was shown (`Withdrawn`), and what is answered in its place follows in one piece. The
        answer is that of `answers`. Raises NotFiniteError as that does.
        """
        [alarm] = self._requests([example])
        turn = _Turn.of(example, alarm, None)
        if settled := self._plainly([turn]):
            plain = self._finite(settled[0])
            raised = [each for each in plain.alarms if each is not turn.alarm]
            if raised:
                yield Withdrawn("", raised[0])
            yield plain.text
            yield plain
            return
        hearing, showing = _Hearing(self, turn, check_hold(hold)), Showing()
        stopped: Alarm | None = None
        with closing(spoken(self.vlm, turn.asked, **self.how)) as so_far:
            for said in so_far:
                stopped = hearing.alarm(said)
                if isinstance(said, Answer):
                    if stopped is None:
                        yield from showing.rest(said.text)
                        yield replace(said, source=turn.source, alarms=_raised(turn.alarm))
                elif stopped is not None:
                    break
                elif said.tokens >= hearing.hold and hearing.at > hearing.hold:
                    yield from showing.more(said.text)
        if stopped is None:
            return
        yield Withdrawn(showing.shown, stopped)
        [found] = self._instead([turn], [stopped])
        other = self._finite(found)
        yield other.text
        yield other

    def _finite(self, answer: Answer | None) -> Answer:
        if answer is None:
            raise NotFiniteError(not_finite(self.vlm.name, self.vlm.dtype), [None])
        return answer

    def _watched(self, turns: Sequence[_Turn]) -> list[Answer | None]:
        """Answers that were read, and what is answered in place of those that raised an alarm."""
        found = self._plainly(turns)
        left = [place for place in range(len(turns)) if place not in found]
        found |= zip(left, self._asked([turns[n] for n in left]), strict=True)
        return [found[place] for place in range(len(turns))]

    def _plainly(self, turns: Sequence[_Turn]) -> dict[int, Answer | None]:
        """What stands of what the model says plainly, without an opening and greedily, by place.

        Nothing where that isn't a refusal and raises no alarm, and where nothing else is asked for.
        Of a long answer its beginning is made.
        """
        drawn = bool(self.how.get("temperature"))
        places = [n for n, turn in enumerate(turns) if drawn or turn.asked.opening]
        if not places:
            return {}
        plain = [replace(turns[n], asked=_unopened(turns[n].asked), given=None) for n in places]
        greedy = self.how | {"progress": None, "temperature": 0.0}
        said = self._ask(plain, greedy | {"max_new_tokens": self._beginning})
        alarms = self.said(plain, said)
        found: dict[int, Answer | None] = {}
        for n, answer in self._refusals(plain, said, alarms, greedy).items():
            turn = turns[places[n]]
            source = "plain" if turn.source == "model" else turn.source
            found[places[n]] = answer and replace(answer, source=source, alarms=_raised(turn.alarm))
        stopped = [n for n, alarm in enumerate(alarms) if alarm]
        others = self._instead([plain[n] for n in stopped], [alarms[n] for n in stopped], greedy)
        found |= zip([places[n] for n in stopped], others, strict=True)
        if (progress := self.how.get("progress")) is not None:
            progress(len(found))
        return found

    @property
    def _beginning(self) -> int:
        """Tokens of a plain answer that are made to hear what it is."""
        return min(HEARD, self.how.get("max_new_tokens", HEARD))

    def _refusals(
        self,
        turns: Sequence[_Turn],
        said: Sequence[Answer | None],
        alarms: Sequence[Alarm | None],
        how: dict[str, Any],
    ) -> dict[int, Answer | None]:
        """The whole answers of those that refuse from the beginning, without an alarm, by place."""
        cut = self._beginning < self.how.get("max_new_tokens", math.inf)
        found: dict[int, Answer | None] = {}
        longer: list[int] = []
        texts, judged = shown_texts(self.vlm, said), refusing(self.vlm, said)
        for place, (answer, alarm) in enumerate(zip(said, alarms, strict=True)):
            if answer is None or alarm is not None:
                continue
            whole = answer.ended or not cut
            if judged[place] if whole else certainly_refused(texts[place] or ""):
                found[place] = answer
                longer += [] if whole else [place]
        return found | dict(zip(longer, self._ask([turns[n] for n in longer], how), strict=True))

    def _asked(self, turns: Sequence[_Turn]) -> list[Answer | None]:
        """The same of what the model is asked as it stands."""
        found = self._ask(turns, self.how)
        known, progress = sum(turn.given is not None for turn in turns), self.how.get("progress")
        if known and progress is not None:
            progress(known)
        said = self.said(turns, found)
        stopped = [place for place, alarm in enumerate(said) if alarm]
        found = [
            answer and replace(answer, source=turn.source, alarms=_raised(turn.alarm))
            for turn, answer in zip(turns, found, strict=True)
        ]
        others = self._instead([turns[n] for n in stopped], [said[n] for n in stopped])
        for place, other in zip(stopped, others, strict=True):
            found[place] = other
        return found

    def _instead(
        self,
        turns: Sequence[_Turn],
        said: Sequence[Alarm | None],
        how: dict[str, Any] | None = None,
    ) -> list[Answer | None]:
        """What is answered in place of answers that raised these alarms, with all alarms."""
        return [
            other and replace(other, alarms=(*_raised(turn.alarm, alarm), *other.alarms))
            for turn, alarm, other in zip(
                turns, said, self._again(turns, how or self.how), strict=True
            )
        ]

    def _again(self, turns: Sequence[_Turn], how: dict[str, Any]) -> list[Answer | None]:
        """What is answered in place of answers that raised an alarm."""
        if self.closing is None or not turns:
            return [refusal() for _ in turns]
        anew = [replace(turn, asked=_unopened(turn.asked), given=None) for turn in turns]
        with self.closing():
            found = self._ask(anew, how | {"progress": None})
        said = self.said(anew, found)
        return [
            replace(refusal(), alarms=(alarm,))
            if alarm
            else answer and replace(answer, source="repaired")
            for answer, alarm in zip(found, said, strict=True)
        ]

    def _ask(self, turns: Sequence[_Turn], how: dict[str, Any]) -> list[Answer | None]:
        """Answers of the model, None where it computes NaN; what is known isn't asked."""
        asked = [turn.asked for turn in turns if turn.given is None]
        try:
            fresh = iter(self.vlm.answers(asked, **how) if asked else ())
        except NotFiniteError as error:
            fresh = iter(error.answers)
        return [next(fresh) if turn.given is None else turn.given for turn in turns]

    def _requests(self, examples: Sequence[Example]) -> list[Alarm | None]:
        watching = [monitor for monitor in self.monitors if monitor.reads == "request"]
        return self.alarms(watching, [Exchange(example) for example in examples])

    @property
    def listening(self) -> list[Monitor]:
        """The monitors that read what is said."""
        return [monitor for monitor in self.monitors if monitor.reads != "request"]

    def said(
        self, turns: Sequence[_Turn], found: Sequence[Answer | Spoken | None], **read: Any
    ) -> list[Alarm | None]:
        """Alarms of answers, given those of their requests; `read` as in `Monitor.alarms`.

        Less is enough for one where the request has raised an alarm, or others began the answer.
        """
        exchanges = [
            Exchange(turn.example, answer.text if answer else "")
            for turn, answer in zip(turns, found, strict=True)
        ]
        suspected = [turn.alarm is not None or bool(turn.asked.opening) for turn in turns]
        return self.alarms(self.listening, exchanges, suspected, **read)

    def alarms(
        self,
        monitors: Sequence[Monitor],
        exchanges: Sequence[Exchange],
        suspected: Sequence[bool] | None = None,
        **read: Any,
    ) -> list[Alarm | None]:
        """The earliest alarm that each exchange raises with any of these monitors."""
        size = self.how.get("batch_size", 16)
        return first_alarms(self.vlm, monitors, exchanges, size, suspected, **read)

    def tokens_read(self, text: str) -> int:
        """Tokens of an answer so far, as the monitors count them."""
        return tokens_read(self.vlm, text)


class _Hearing:
    """Reads an answer while it is made."""

    def __init__(self, dialogue: Dialogue, turn: _Turn, hold: int | None) -> None:
        self._dialogue, self._turn = dialogue, turn
        self._read = 0
        listening = dialogue.listening
        # Refusal log-odds are read at the end alone.
        first = FIRST if any(monitor.detector for monitor in listening) else math.inf
        self.at: float = first
        """Tokens of the answer at which it is read next."""
        self.hold: float = hold if hold is not None else first if listening else 0
        """Tokens that are kept back."""

    def alarm(self, said: Spoken | Answer) -> Alarm | None:
        """The alarm that an answer raises as far as it is there, if any."""
        ended, after = isinstance(said, Answer), self._read
        if not ended:
            said = replace(said, text=whole_characters(said.text))
            there = self._dialogue.tokens_read(said.text) if said.tokens > self.at else 0
            while self.at < there:
                self._read, self.at = int(self.at), 2 * self.at
            if self._read == after:
                return None
        [alarm] = self._dialogue.said([self._turn], [said], after=after, ended=ended)
        return alarm


def _raised(*alarms: Alarm | None) -> tuple[Alarm, ...]:
    return tuple(alarm for alarm in alarms if alarm is not None)


def _added(example: Example) -> bool:
    """Whether it is more than the text of a request."""
    return bool(example.images or example.opening)


def _unopened(example: Example) -> Example:
    """The example without words that others put into the answer's beginning."""
    return replace(example, opening="")
