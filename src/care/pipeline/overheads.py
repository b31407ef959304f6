"""What defenses cost per answer, measured: the same answers under each, beside the bare model's.

Harmless requests, half of them from each of two kinds of suites, are answered in batches; for each
batch and defense the bare model is timed just before, so that whatever else the machine does meets
both alike:

    overhead    Σ seconds under the defense / Σ seconds of the bare model just before

A batch in which the model computes NaN for a request counts with the seconds that it took.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from care.data.example import Example
from care.defenses.base import Defense, answers_under
from care.errors import NotFiniteError
from care.judges.refusal import certainly_refused
from care.models.vlm import VLM

BATCH = 16
"""Requests that are timed together."""


def overheads(
    vlm: VLM,
    defenses: Iterable[tuple[str, Defense]],
    examples: Sequence[Example],
    max_new_tokens: int,
) -> Iterator[tuple[str, float]]:
    """Seconds of the answers under each defense as a multiple of the bare model's, one by one."""
    batches = [examples[at : at + BATCH] for at in range(0, len(examples), BATCH)]

    def seconds(defense: Defense | None, batch: Sequence[Example]) -> float:
        begun = time.perf_counter()
        with suppress(NotFiniteError):  # the answers aren't kept, so none that is missing matters
            answers_under(
                defense,
                vlm,
                batch,
                max_new_tokens=max_new_tokens,
                batch_size=BATCH,
                stop=certainly_refused,
            )
        return time.perf_counter() - begun

    warm = False
    for name, defense in defenses:
        if not warm:
            seconds(None, batches[0])  # what is made once isn't timed
            warm = True
        pairs = [(seconds(None, batch), seconds(defense, batch)) for batch in batches]
        bare, own = map(sum, zip(*pairs, strict=True))
        yield name, own / bare
