"""Always refuse: a control that answers nothing, whatever is asked.

No attack works on it and it is of no use: where a table has it beside other defenses, a measure
that doesn't tell it from a good one measures refusals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from care.data.example import Example
from care.defenses.base import register
from care.defenses.stored import StoredDefense
from care.models.responses import Answer, refusal
from care.models.vlm import VLM


@register("always-refuse")
@dataclass(frozen=True, eq=False, kw_only=True)
class AlwaysRefuse(StoredDefense):
    """Every request is refused; the model isn't asked."""

    paper: ClassVar[str] = "none: a control"

    touches = "dialogue"

    def answer(self, vlm: VLM, examples: Sequence[Example], **how: Any) -> list[Answer]:
        """A refusal of each."""
        if (progress := how.get("progress")) is not None and examples:
            progress(len(examples))
        return [refusal() for _ in examples]
