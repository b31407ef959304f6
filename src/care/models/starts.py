"""Where the answers to what a model is asked start, batch by batch.

Prompts that have been read keep the batches that they were read in; examples are read as they come.
A batch for which memory doesn't suffice is halved: pictures don't belong to one row of a batch, so
prompts that were only encoded are encoded anew. Not here: what is done from there on (`responses`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from care.data.example import Example
from care.models.batches import Batch
from care.models.prompt_cache import PromptCache, Start

Result = TypeVar("Result")

Prompts = Sequence[Example] | Example | PromptCache
"""What a model is asked: examples, or prompts that it has read (`VLM.prefill`)."""

Work = Callable[[list[int], Start], Sequence[Result]]
"""Indices of a batch and where its answers start -> one result of each."""


class InBatches(Protocol):
    """What is needed of a model."""

    def batch(self, examples: Sequence[Example]) -> Batch:
        """See `VLM.batch`."""
        ...

    def in_batches(
        self,
        examples: list[Example],
        batch_size: int | None,
        work: Callable[[list[int]], Sequence[Result]],
        progress: Callable[[int], None] | None = None,
    ) -> list[Result]:
        """See `VLM.in_batches`."""
        ...


def listed(asked: Prompts) -> list[Example]:
    """The examples that a model is asked."""
    if isinstance(asked, PromptCache):
        return asked.examples
    return [asked] if isinstance(asked, Example) else list(asked)


def over_starts(
    vlm: InBatches,
    asked: Prompts,
    batch_size: int | None,
    work: Work[Result],
    progress: Callable[[int], None] | None = None,
) -> list[Result]:
    """`work` on where the answers of each batch start; results in the order of the examples.

    `batch_size` and `progress` are those of `VLM.in_batches`.
    """
    examples = listed(asked)
    if not isinstance(asked, PromptCache):
        return vlm.in_batches(
            examples, batch_size, lambda rows: work(rows, _start(vlm, examples, rows)), progress
        )
    results: dict[int, Result] = {}
    for indices, start in asked.parts:
        held = [examples[index] for index in indices]
        part = partial(_on_rows, vlm, held, indices, start, work)
        found = vlm.in_batches(held, len(held), part, progress)
        results.update(zip(indices, found, strict=True))
    return [results[index] for index in range(len(examples))]


def _start(vlm: InBatches, examples: list[Example], rows: Sequence[int]) -> Start:
    """Whole prompts of some examples, not read yet."""
    return Start.of(vlm.batch([examples[row] for row in rows]))


def _on_rows(
    vlm: InBatches,
    held: list[Example],
    indices: list[int],
    start: Start,
    work: Work[Result],
    rows: list[int],
) -> Sequence[Result]:
    """`work` on some rows of a batch that was read; all, if memory suffices."""
    if rows != list(range(len(start))):
        start = _start(vlm, held, rows) if start.cache is None else start.part(rows)
    return work([indices[row] for row in rows], start)
