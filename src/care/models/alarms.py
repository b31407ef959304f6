"""Where an answer comes from, and what was raised on the way to it.

Rows of evaluations hold these as answers do, so torch isn't imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["model", "text alone", "plain", "repaired", "refusal"]
"""Where an answer comes from: the model as it was asked, the model asked without the pictures, the
model asked plainly (without words that others began its answer with, and greedily), which refuses
then, the model begun again with its unsafe channels closed, or a refusal put in its place."""


PICTURED = "pictured"
"""Told in place of `request` where a request was read beside its picture (a control)."""


@dataclass(frozen=True)
class Alarm:
    """A monitor that was raised on the way to an answer."""

    monitor: str
    """What it reads: `request`, `answer` or `exchange`; `pictured` of a control."""

    score: float
    """Its score."""

    threshold: float
    """What the score is above."""

    tokens: int = 0
    """Tokens of the answer that had been read; 0 for a request."""

    @property
    def shown(self) -> str:
        """In words: "exchange 1.20 > 0.70 after 32 tokens"."""
        after = f" after {self.tokens} tokens" if self.tokens else ""
        return f"{self.monitor} {self.score:.2f} > {self.threshold:.2f}{after}"


@dataclass(frozen=True)
class Withdrawn:
    """What was shown of a streamed answer doesn't stand; another text follows in its place."""

    shown: str
    """What was shown, which can't be unsaid; may be empty."""

    alarm: Alarm | None = None
    """The alarm that the answer raised; None where a tokenizer writes its beginning otherwise now
    that more of it is known."""
