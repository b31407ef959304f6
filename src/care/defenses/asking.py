"""Ways of asking that defenses share: in several turns, some requests only, or batch by batch.

    AnswerCall          one call of `answer`: what is asked, what is known of it, and how
    Turns               a defense that asks more than once, or looks at the bare model's answers
    Gated               one of them: it opens to some requests, all others get the bare answer
    yes_odds            how much likelier a model says yes than no, NaN where it computes NaN
    answers_by_batch    answers of batches, each under what was made of its requests

Not here: what is asked, what opens a gate, and what is made of a batch (`care.defenses.rivals`),
nor which answers refuse (`care.defenses.refusals`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from care.data.example import Example
from care.defenses.base import Defense, Touches
from care.errors import NotFiniteError
from care.models.responses import Answer, complete
from care.models.vlm import VLM

BATCH_SIZE = 16
"""Requests that are asked together where nobody says how many."""


@dataclass
class AnswerCall:
    """One call of `answer` or `revised`: a model, its requests, and how it is asked."""

    vlm: VLM
    """Who is asked."""
    examples: list[Example]
    """The requests."""
    known: list[Answer] | None
    """The bare model's answers to them, where they are known."""
    how: dict[str, Any]
    """Options of `VLM.answers`."""
    told: int = field(init=False, default=0)
    """How many of the requests are told to be finished."""

    @property
    def batch_size(self) -> int:
        """Requests that are asked together."""
        return self.how.get("batch_size", BATCH_SIZE)

    def bare(self, places: Sequence[int]) -> list[Answer | None]:
        """The bare model's answers to some of the requests; None where it computed NaN."""
        if self.known is not None:
            return [self.known[place] for place in places]
        asked = [self.examples[place] for place in places]
        return self.ask(asked, progress=self.how.get("progress"))

    def ask(self, examples: Sequence[Example], **other: Any) -> list[Answer | None]:
        """Answers to requests of the defense's own; None where the model computed NaN.

        `other` are options that differ from `how`. Without `progress` nothing of it is told.
        """
        if not examples:
            return []
        how: dict[str, Any] = {**self.how, "progress": None, **other}
        if how["progress"] is not None:
            self.told += len(examples)
        return _or_none(lambda: self.vlm.answers(list(examples), **how), len(examples))

    def finish(self, found: Sequence[Answer | None]) -> list[Answer]:
        """All answers, those that weren't told to be finished told; NotFiniteError if one isn't
        there."""
        progress = self.how.get("progress")
        if progress is not None and self.told < len(found):
            progress(len(found) - self.told)
        return complete(found, self.vlm.name, self.vlm.dtype, self.vlm.context)


class Turns(Defense):
    """A defense that asks more than once, or looks at the bare model's answers."""

    touches: Touches = "dialogue"

    @abstractmethod
    def turns(self, call: AnswerCall) -> list[Answer | None]:
        """An answer to each request, in order; None where the model computed NaN."""

    def answer(self, vlm: VLM, examples: Sequence[Example], **how: Any) -> list[Answer]:
        """What comes of its turns; NotFiniteError, which holds the other answers."""
        return self._asked(AnswerCall(vlm, list(examples), None, how))

    def revised(
        self, vlm: VLM, examples: Sequence[Example], answers: Sequence[Answer], **how: Any
    ) -> list[Answer]:
        """The same where the bare model's answers are known."""
        return self._asked(AnswerCall(vlm, list(examples), list(answers), how))

    def _asked(self, call: AnswerCall) -> list[Answer]:
        return call.finish(self.turns(call)) if call.examples else []


class Gated(Turns):
    """A defense that acts on some requests: the others get the undefended model's answer.

    What `applied` edits is edited while those are answered that it opens to.
    """

    @abstractmethod
    def opened(self, vlm: VLM, examples: Sequence[Example], batch_size: int) -> np.ndarray:
        """Which of N requests it acts on (N,) of bool; or of float, with NaN where it can't tell,
        so that these get no answer."""

    def guarded(self, vlm: VLM, examples: Sequence[Example], **how: Any) -> list[Answer]:
        """Answers to the requests that it acts on."""
        with self.applied(vlm):
            return vlm.answers(list(examples), **how)

    def turns(self, call: AnswerCall) -> list[Answer | None]:
        """The bare model's answers to those it is shut to, its own to the others."""
        told = self.opened(call.vlm, call.examples, call.batch_size)
        opened, shut = told == 1, told == 0
        acted_on = [e for e, acts in zip(call.examples, opened, strict=True) if acts]
        how = call.how | {"progress": None}
        found = merged(shut, call.bare(np.flatnonzero(shut).tolist()))
        if acted_on:
            guarded = _or_none(lambda: self.guarded(call.vlm, acted_on, **how), len(acted_on))
            fill(found, opened, guarded)
        return found


def merged(places: np.ndarray, answers: Sequence[Answer | None]) -> list[Answer | None]:
    """N places, those that are told (N,) of bool with these answers, in order; the others empty."""
    found: list[Answer | None] = [None] * len(places)
    fill(found, places, answers)
    return found


def fill(found: list[Answer | None], places: np.ndarray, answers: Sequence[Answer | None]) -> None:
    """Put answers into the places that are told (N,) of bool, in order."""
    for place, answer in zip(np.flatnonzero(places), answers, strict=True):
        found[place] = answer


def yes_odds(vlm: VLM, examples: Sequence[Example], batch_size: int = BATCH_SIZE) -> np.ndarray:
    """log P(Yes) − log P(No) as the answers to N questions (N,), in nats; NaN where the model
    computes no finite numbers."""
    if not examples:
        return np.zeros(0)
    try:
        yes, no = (
            vlm.score(examples, [word] * len(examples), batch_size).logprob
            for word in ("Yes", "No")
        )
    except NotFiniteError:
        if len(examples) == 1:
            return np.full(1, np.nan)
        # The error doesn't say for which: one by one, and only those are lost.
        return np.concatenate([yes_odds(vlm, [example], batch_size) for example in examples])
    return yes - no


def answers_by_batch(
    vlm: VLM,
    examples: Sequence[Example],
    applied: Callable[[list[Example]], AbstractContextManager[Any]],
    **how: Any,
) -> list[Answer]:
    """An answer to each example, asked in batches under `applied(those of the batch)`.

    The rows of a batch are the examples that `applied` was given, in that order, from the first
    pass on; decoding drops rows that are finished. Where memory doesn't suffice, half of a batch is
    asked under what `applied` makes of that half. `how` are the options of `VLM.answers`.
    """
    examples, size = list(examples), how.pop("batch_size", BATCH_SIZE)
    progress = how.pop("progress", None)

    def work(chunk: list[int]) -> list[Answer | None]:
        asked = [examples[place] for place in chunk]
        with applied(asked):
            return _or_none(lambda: vlm.answers(asked, batch_size=None, **how), len(asked))

    answers = vlm.in_batches(examples, size, work, progress)
    return complete(answers, vlm.name, vlm.dtype, vlm.context)


def _or_none(ask: Callable[[], list[Answer]], count: int) -> list[Answer | None]:
    """`count` answers; None where the model computed no finite numbers."""
    try:
        return list(ask())
    except NotFiniteError as error:
        if len(error.answers) != count:  # it isn't about answers
            raise
        return list(error.answers)
