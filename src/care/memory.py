"""Work in batches that are halved where memory doesn't suffice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, TypeVar

from care.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")


def out_of_memory(error: BaseException) -> bool:
    """True for CUDA's error class and for the plain RuntimeError that the CPU allocator raises."""
    return any(base.__name__ == "OutOfMemoryError" for base in type(error).__mro__) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def in_halves(
    items: Sequence[Item],
    batch_size: int,
    work: Callable[[Any], list[Result]],
    *,
    kind: Callable[[Item], Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Result]:
    """`work` on at most `batch_size` items at a time, one result for each, in their order.

    `work` gets a slice of `items`; where the `kind` of items changes, a new batch begins.
    `progress` gets the number just finished. A batch that doesn't fit into memory is halved, and
    later ones stay that small. Raises what `work` raises otherwise, also the lack of memory for a
    single item; UsageError below 1.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}.")
    found: list[Result] = []
    while len(found) < len(items):
        chunk = items[len(found) : len(found) + batch_size]
        if kind is not None:
            chunk = list(next(groupby(chunk, kind))[1])
        try:
            done = work(chunk)
        except RuntimeError as error:
            if not out_of_memory(error) or len(chunk) == 1:
                raise
            batch_size = len(chunk) // 2
            continue
        found += (result for _, result in zip(chunk, done, strict=True))
        if progress is not None:
            progress(len(chunk))
    return found
