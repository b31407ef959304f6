"""Which answers of a model refuse, as the offline judge decides it; thoughts aren't looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from care.judges.refusal import judge_refusals
from care.models.responses import Answer
from care.models.thoughts import answer_of

if TYPE_CHECKING:
    from care.models.vlm import VLM


def refusing(vlm: VLM, answers: Sequence[Answer | None]) -> np.ndarray:
    """Which of N answers refuse (N,) of bool, as the offline judge decides it; thoughts aren't
    looked at, and what isn't there refuses nothing."""
    return judge_refusals([text or "" for text in shown_texts(vlm, answers)]).combined


def shown_texts(vlm: VLM, answers: Sequence[Answer | None]) -> list[str | None]:
    """What N answers say, without thoughts; None of one that isn't there, "" while it thinks."""
    return [each and (answer_of(each.text, vlm.thought_tags) or "") for each in answers]
