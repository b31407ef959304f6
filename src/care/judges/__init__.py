"""Judges: what became of an answer."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.judges.base import Judge as Judge
    from care.judges.base import Outcome as Outcome
    from care.judges.base import Verdict as Verdict

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "base": ["Judge", "Outcome", "Verdict"],
    },
)
