"""Text first: the request is read without its picture, and a refusal of that stands.

    y' = y(text) if that refuses, else y(text, picture)

No paper's: the baseline that whatever reads requests as text has to beat, since it needs neither a
fit nor a threshold, only what the model itself says. Words that others put into the beginning of an
answer are left out with the picture (`Example.text_alone`). Of requests without a picture and such
words the answer is the bare model's. Where a goal stands in the picture alone it can't help.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from care.defenses.asking import AnswerCall, Turns, fill, merged
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.refusals import refusing
from care.defenses.stored import StoredDefense
from care.models.responses import Answer


@register("text-first")
@dataclass(frozen=True, eq=False, kw_only=True)
class TextFirst(Turns, StoredDefense):
    """What the model refuses without the picture stays refused beside it."""

    paper: ClassVar[str] = "none: a baseline"
    cost: ClassVar[Cost] = Cost(answers=1)

    def turns(self, call: AnswerCall) -> list[Answer | None]:
        """Refusals of the text alone where it is refused, the bare answers elsewhere."""
        added = np.array([bool(e.images or e.opening) for e in call.examples])
        alone = call.ask([e.text_alone() for e in call.examples if e.images or e.opening])
        found = merged(added, alone)
        others = ~added
        others[added] = ~refusing(call.vlm, alone)
        fill(found, others, call.bare(np.flatnonzero(others).tolist()))
        return found
