"""When a search is flat: from its losses alone, for who ends one and for who looks at one later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plateau:
    """When a descent is flat: more steps are no longer worth it."""

    gain: float = 0.02
    """Share of the least loss by which it has to fall."""

    steps: int = 25
    """Within so many steps."""

    enough: float = 0.01
    """A loss (nats a token) at which nothing is left to gain: its answers begin as wished."""

    def reached(self, losses: Sequence[float]) -> bool:
        """Whether the running least of `losses` has become flat, or small enough."""
        if len(losses) <= self.steps:
            return False
        before, now = min(losses[: -self.steps]), min(losses)
        return now <= self.enough or before - now < self.gain * abs(before)
