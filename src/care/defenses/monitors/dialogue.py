"""What follows an alarm: how a monitored model comes to its answer.

    the request raises the alarm    its pictures are out from then on, and less is enough for an
                                    alarm of the answer
    the answer does                 it is begun again with all unsafe channels closed: gates wide
                                    open, and without words that others put into its beginning
    and that answer does too        a refusal is given

Without an alarm the answer is the unedited model's, to the bit. Where a request's alarm is raised,
everything that follows is made of its text alone, and so is the answer: it doesn't depend on the
picture, whatever that is: what a certificate of an evaluation rests on. Answers are read when
they are finished, at 16, 32, 64, … tokens and at the end, so that one which goes on harmlessly
isn't spared for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from care.data.example import Example
from care.defenses.monitors.monitor import Monitor
from care.defenses.monitors.reading import Exchange, without_pictures
from care.models.alarms import Alarm
from care.models.responses import Answer

if TYPE_CHECKING:
    from care.models.vlm import VLM

REFUSAL = "I'm sorry, but I can't help with that."
"""The answer that is given in the end."""

Closing = Callable[[], AbstractContextManager[Any]]
"""Opens a context in which all unsafe channels are closed."""


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
        """An answer to each example; `given` are those of the unedited model, if they are known."""
        raised = self._requests(examples)
        asked = [
            without_pictures(example) if alarm and example.images else example
            for example, alarm in zip(examples, raised, strict=True)
        ]
        alone = [new is not old for new, old in zip(asked, examples, strict=True)]
        found = self._ask(asked, given, alone)
        found = [
            replace(answer, source="text alone" if stripped else "model")
            for answer, stripped in zip(found, alone, strict=True)
        ]
        said = self._said(examples, found, raised)
        stopped = [place for place, alarm in enumerate(said) if alarm]
        found = [
            replace(answer, alarms=tuple(alarm for alarm in pair if alarm))
            for answer, *pair in zip(found, raised, said, strict=True)
        ]
        others = self._again(
            [examples[n] for n in stopped],
            [asked[n] for n in stopped],
            [raised[n] for n in stopped],
        )
        for place, other in zip(stopped, others, strict=True):
            found[place] = replace(other, alarms=(*found[place].alarms, *other.alarms))
        return found

    def _again(
        self,
        examples: Sequence[Example],
        asked: Sequence[Example],
        raised: Sequence[Alarm | None],
    ) -> list[Answer]:
        """What is answered in place of answers that raised an alarm."""
        if self.closing is None or not asked:
            return [_refusal() for _ in asked]
        with self.closing():
            found = self._ask([_unopened(example) for example in asked])
        said = self._said(examples, found, raised)
        return [
            replace(_refusal(), alarms=(alarm,)) if alarm else replace(answer, source="repaired")
            for answer, alarm in zip(found, said, strict=True)
        ]

    def _ask(
        self,
        examples: Sequence[Example],
        given: Sequence[Answer] | None = None,
        changed: Sequence[bool] = (),
    ) -> list[Answer]:
        """Answers of the model; where they are `given`, it is asked only what was changed."""
        if given is None:
            return self.vlm.answers(list(examples), **self.how) if examples else []
        places = [place for place, new in enumerate(changed) if new]
        found = list(given)
        for place, answer in zip(places, self._ask([examples[n] for n in places]), strict=True):
            found[place] = answer
        return found

    def _requests(self, examples: Sequence[Example]) -> list[Alarm | None]:
        watching = [monitor for monitor in self.monitors if monitor.reads == "request"]
        return self._first(watching, [Exchange(example) for example in examples])

    def _said(
        self,
        examples: Sequence[Example],
        found: Sequence[Answer],
        raised: Sequence[Alarm | None],
    ) -> list[Alarm | None]:
        """Alarms of answers, given those of their requests."""
        watching = [monitor for monitor in self.monitors if monitor.reads != "request"]
        pairs = zip(examples, found, strict=True)
        exchanges = [Exchange(example, answer.text) for example, answer in pairs]
        return self._first(watching, exchanges, [alarm is not None for alarm in raised])

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


def _refusal() -> Answer:
    return Answer(REFUSAL, 0, 0, ended=True, source="refusal")


def _unopened(example: Example) -> Example:
    """The example without words that others put into the answer's beginning."""
    return replace(example, opening="")
