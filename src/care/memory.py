"""Work in batches that are halved where memory doesn't suffice.

`care.vlm.VLM.in_batches` does the same for examples of the model under test; this is for everything
else that runs a model, such as judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    items: Sequence[Item], batch_size: int, work: Callable[[Sequence[Item]], list[Any]]
) -> list[Any]:
    """`work` on at most `batch_size` items at a time, one result for each, in their order.

    A batch that doesn't fit into memory is halved, and later ones stay that small. Raises what
    `work` raises otherwise, also the lack of memory for a single item; UsageError below 1.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}.")
    found: list[Any] = []
    while len(found) < len(items):
        chunk = items[len(found) : len(found) + batch_size]
        try:
            done = work(chunk)
        except RuntimeError as error:
            if not out_of_memory(error) or len(chunk) == 1:
                raise
            batch_size = len(chunk) // 2
        else:
            found += done
    return found
