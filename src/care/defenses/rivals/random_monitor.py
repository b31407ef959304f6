"""Random monitor: a control that refuses a stated share of requests, whatever they are.

    refused if u < rate,   u ∈ [0, 1) by SHA-256 of a seed and the example's suite and id

What a monitor prevents beyond what its alarms would at random shows beside this one, at the rate of
alarms that it raises on the same requests. By suite and id, so that u doesn't depend on what is
asked, and requests of two suites that number theirs alike are drawn apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from care.data.example import Example
from care.defenses.asking import Gated
from care.defenses.base import register
from care.defenses.stored import StoredDefense
from care.errors import UsageError
from care.models.responses import Answer, refusal
from care.models.vlm import VLM


@register("random-monitor")
@dataclass(frozen=True, eq=False, kw_only=True)
class RandomMonitor(Gated, StoredDefense):
    """A stated share of requests is refused at random."""

    paper: ClassVar[str] = "none: a control"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"rate": (0.05, 0.1, 0.25, 0.5)}

    rate: float = 0.05
    """The share."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rate <= 1:
            raise UsageError(f"A rate of alarms lies in [0, 1], got {self.rate!r:.40}.")

    def opened(self, vlm: VLM, examples: Sequence[Example], batch_size: int) -> np.ndarray:
        """Which requests are refused."""
        draws = [drawn(self.seed, example.suite, example.id) for example in examples]
        return np.array(draws) < self.rate

    def guarded(self, vlm: VLM, examples: Sequence[Example], **how: Any) -> list[Answer]:
        """Refusals."""
        return [refusal() for _ in examples]


def drawn(seed: int, suite: str, name: str) -> float:
    """u, uniform in [0, 1), of the example with that id in that suite."""
    told = hashlib.sha256(f"{seed} {suite}\0{name}".encode()).digest()
    return int.from_bytes(told[:8]) / 2**64
