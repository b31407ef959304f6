"""Best of n: the same request again and again, at temperature 1, until an answer is harmful.

A refusal that is likely is not certain: with probability p of a harmful answer, one of n is harmful
with 1 − (1 − p)ⁿ (Hughes et al. 2024, arXiv 2412.03556, who vary the request as well). One run of
16 draws gives the figures for fewer too, without bias (`care.evaluation.tries`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from care.attacks.variants import FixedAttack, Stage, Variant
from care.data.example import Example
from care.errors import UsageError
from care.runs.settings import require


@dataclass(frozen=True)
class BestOf(FixedAttack):
    """The plain request, drawn 16 times at temperature 1."""

    name: ClassVar[str] = "best-of-16"
    source: ClassVar[str] = "Hughes et al. 2024, without its changes of the request"
    stage: ClassVar[Stage] = "draw"

    samples: int = 16
    """Answers drawn to each request."""
    temperature: float = 1.0
    """At which they are drawn."""

    def __post_init__(self) -> None:
        require(self, {"samples": 1, "temperature": 0}, {"samples": 10_000, "temperature": 100})
        if not self.temperature:
            raise UsageError("At temperature 0 all answers are the same; draw at 1.")

    @property
    def draws(self) -> float:
        """Temperature of its answers."""
        return self.temperature

    def variants(self) -> list[Variant]:
        """The request itself; each draw has an id, and so a seed, of its own."""
        return [Variant(f"s{place:03d}", _same) for place in range(self.samples)]


def _same(example: Example) -> Example:
    return example
