"""Work in batches that are bounded, and halved where memory doesn't suffice; how devices say that.

A batch of B items that are padded to the longest, of T tokens, takes memory like B T. So it holds

    B ≤ batch_size  and  B T ≤ PADDED_TOKENS,   but at least one item:

short requests, which are most, come as many at once as is asked for, and long ones fewer.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby
from typing import Any, TypeVar

from care.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

PADDED_TOKENS = 32_768
"""Most tokens of a batch, padding included. For keys and values alone that is 0.7 GiB of the
embedded model, and 16 GiB of one of 7 billion parameters that shares no heads."""

_CLASSES = frozenset({"OutOfMemoryError", "MemoryError"})
"""torch's class for devices, Python's and numpy's for the CPU."""

_SAID = re.compile(
    # CUDA, HIP, XPU, NPU, MPS and others: "X out of memory", "X error: out of memory", "X backend
    # out of memory", "X driver error: out of memory", "cuda runtime error (2) : out of memory"
    r"\b(?:cuda|hip|rocm|xpu|sycl|npu|mps|metal|mlu|musa|hpu|mtia|tpu|xla|vulkan|gpu|device|host"
    r"|accelerator|privateuseone)\b[\w ():\[\]]{0,24}\bout of memory\b"
    r"|^out of memory\b"
    r"|\bout of memory\b[^\n]{0,200}\btried to allocate\b"
    # Names of their codes: hipErrorOutOfMemory, CL_OUT_OF_HOST_MEMORY, UR_RESULT_ERROR_OUT_OF_…
    r"|\b\w*(?:Error)?OutOfMemory\b|\w*OUT_OF_(?:DEVICE_|HOST_)?MEMORY\b"
    r"|\bcudaErrorMemoryAllocation\b|\bACL_ERROR_\w*MEMORY_ALLOCATION\b"
    # Their libraries: cuBLAS, cuDNN, cuSOLVER, hipBLAS, rocBLAS
    r"|\b\w+_STATUS_(?:\w+_)?ALLOC(?:ATION)?_FAILED\b|\brocblas_status_memory_error\b"
    # XLA and TPUs; buffers that Metal can't make; Ascend
    r"|\bRESOURCE_EXHAUSTED\b|\bInvalid buffer size: [\d.]+ ?(?:[KMGT]i?B|bytes)\b"
    r"|\bfailed to allocate (?:(?:\w+ ){0,3}(?:memory|MTLBuffer)|\d+ bytes)\b"
    # The CPU: DefaultCPUAllocator on Linux and Windows, mmap, C++
    r"|\b(?:can't|cannot|could not|unable to) allocate memory\b"
    r"|\bnot enough memory: you tried to allocate\b|\bstd::bad_alloc\b",
    re.IGNORECASE,
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory didn't suffice, on whatever device.

    Some have a class of their own, others are a plain RuntimeError that is told by its words.
    """
    if any(base.__name__ in _CLASSES for base in type(error).__mro__):
        return True
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return out_of_memory(error.__cause__) or _SAID.search(str(error)) is not None
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _SAID.search(str(error)) is not None


def in_halves(
    items: Sequence[Item],
    batch_size: int,
    work: Callable[[Any], Sequence[Result]],
    *,
    kind: Callable[[Item], Any] | None = None,
    length: Callable[[Item], int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Result]:
    """`work` on at most `batch_size` items at a time, one result for each, in their order.

    `work` gets a slice of `items`; where the `kind` of items changes, a new batch begins, and where
    their `length` in tokens is told, a batch holds `PADDED_TOKENS` at most.
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
        if length is not None:
            chunk = chunk[: fitting([length(item) for item in chunk])]
        try:
            done = work(chunk)
        except Exception as error:
            if not out_of_memory(error) or len(chunk) == 1:
                raise
            batch_size = len(chunk) // 2
            continue
        found += (result for _, result in zip(chunk, done, strict=True))
        if progress is not None:
            progress(len(chunk))
    return found


def fitting(lengths: Sequence[int]) -> int:
    """How many of the first of some items, of so many tokens each, may be in one batch: one at
    least, and no more than `PADDED_TOKENS` where all are padded to the longest of them."""
    padded = [count * longest for count, longest in enumerate(accumulate(lengths, max), 1)]
    return max(1, sum(tokens <= PADDED_TOKENS for tokens in padded))
