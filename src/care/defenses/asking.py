"""Ways of asking that defenses share: some requests only, or batches with something of their own.

    Gated               a defense of the requests that it opens to; all others get the bare answer
    answers_by_batch    answers of batches, each under what was made of its requests

Not here: what opens a gate, and what is made of a batch (`care.defenses.rivals`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from care.data.example import Example
from care.defenses.base import Defense, Touches
from care.errors import NotFiniteError
from care.models.responses import Answer, complete
from care.models.vlm import VLM

BATCH_SIZE = 16
"""Requests that are asked together where nobody says how many."""


class Gated(Defense):
    """A defense that acts on some requests: the others get the undefended model's answer.

    What `applied` edits is edited while those are answered that it opens to.
    """

    touches: Touches = "dialogue"

    @abstractmethod
    def opened(self, vlm: VLM, examples: Sequence[Example], batch_size: int) -> np.ndarray:
        """Which of N requests it acts on (N,) of bool."""

    def guarded(self, vlm: VLM, examples: Sequence[Example], **how: Any) -> list[Answer]:
        """Answers to the requests that it acts on."""
        with self.applied(vlm):
            return vlm.answers(list(examples), **how)

    def answer(self, vlm: VLM, examples: Sequence[Example], **how: Any) -> list[Answer]:
        """The bare model's answers to those it is shut to, its own to the others."""
        return self._merged(vlm, list(examples), None, how)

    def revised(
        self, vlm: VLM, examples: Sequence[Example], answers: Sequence[Answer], **how: Any
    ) -> list[Answer]:
        """The same where the bare model's answers are known."""
        return self._merged(vlm, list(examples), list(answers), how)

    def _merged(
        self, vlm: VLM, examples: list[Example], bare: list[Answer] | None, how: dict[str, Any]
    ) -> list[Answer]:
        if not examples:
            return []
        opened = self.opened(vlm, examples, how.get("batch_size", BATCH_SIZE))
        guarded, others = (np.flatnonzero(opened == side).tolist() for side in (True, False))
        found: list[Answer | None] = [None] * len(examples)
        if bare is not None:
            for place in others:
                found[place] = bare[place]
        elif others:
            asked = [examples[place] for place in others]
            _fill(found, others, lambda: vlm.answers(asked, **how))
        if guarded:
            acted_on = [examples[place] for place in guarded]
            _fill(found, guarded, lambda: self.guarded(vlm, acted_on, **how))
        return complete(found, vlm.name, vlm.dtype, vlm.context)


def answers_by_batch(
    vlm: VLM,
    examples: Sequence[Example],
    applied: Callable[[list[Example]], AbstractContextManager[Any]],
    **how: Any,
) -> list[Answer]:
    """An answer to each example, asked in batches under `applied(those of the batch)`.

    The rows of a batch are the examples that `applied` was given, in that order, from the first
    pass on; decoding drops rows that are finished. `how` are the options of `VLM.answers`.
    """
    examples, size = list(examples), how.pop("batch_size", BATCH_SIZE)
    progress = how.pop("progress", None)

    def work(chunk: list[int]) -> list[Answer | None]:
        asked = [examples[place] for place in chunk]
        found: list[Answer | None] = [None] * len(asked)
        with applied(asked):
            _fill(
                found, range(len(asked)), lambda: vlm.answers(asked, batch_size=len(asked), **how)
            )
        return found

    answers = vlm.in_batches(examples, size, work, progress)
    return complete(answers, vlm.name, vlm.dtype, vlm.context)


def _fill(
    found: list[Answer | None], places: Sequence[int], ask: Callable[[], list[Answer]]
) -> None:
    """Put answers into their places; None where the model computed no finite numbers."""
    try:
        answers: Sequence[Answer | None] = ask()
    except NotFiniteError as error:
        if len(error.answers) != len(places):  # it isn't about answers
            raise
        answers = error.answers
    for place, answer in zip(places, answers, strict=True):
        found[place] = answer
