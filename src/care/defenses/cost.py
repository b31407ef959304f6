"""What a defense costs, as it declares it: passes and answers beyond the bare one, and its data.

Seconds aren't here: they are measured where defenses are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Need = Literal[
    "malicious requests",
    "benign requests",
    "attacks that worked",
    "refusals",
    "pictures of attacks",
    "pictures of benign requests",
]
"""What a fit asks for; the last four are told by the model's own answers, or by what is asked."""


@dataclass(frozen=True)
class Cost:
    """What an answer under a defense costs beyond the bare one, and what fitting it needs."""

    forwards: float = 0.0
    """Passes over the request (or a part of it) beyond the one that answers it; the mean where
    they differ."""
    answers: float = 0.0
    """Answers decoded beyond the one, captions and judgements included."""
    trains: bool = False
    """Whether fitting descends a loss through the model."""
    needs: tuple[Need, ...] = ()
    """What fitting asks for; empty: nothing is fitted."""
