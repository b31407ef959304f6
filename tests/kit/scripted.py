"""A model that answers as a function says, and tells what it was asked: for defenses that ask."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from care.data.example import Example
from care.errors import NotFiniteError
from care.models.responses import Answer, Score
from care.models.thoughts import TAGS


class Scripted:
    """Stands in for a `VLM`; None in the place of an answer, or NaN of a likelihood, is one with
    numbers that aren't."""

    name, dtype, context, thought_tags = "scripted", torch.float32, None, TAGS

    def __init__(
        self,
        says: Callable[[Example], str | None],
        likely: Callable[[Example, str], float] = lambda example, word: 0.0,
    ) -> None:
        self.says, self.likely = says, likely
        self.asked: list[list[Example]] = []
        self.how: list[dict[str, Any]] = []

    def answers(self, examples: Sequence[Example], **how: Any) -> list[Answer]:
        self.asked.append(list(examples))
        self.how.append(how)
        if (progress := how.get("progress")) is not None:
            progress(len(examples))
        said = [self.says(example) for example in examples]
        found = [None if text is None else Answer(text, 1, 1, True) for text in said]
        if None in found:
            raise NotFiniteError("no numbers", found)
        return found  # pyright: ignore[reportReturnType]

    def score(self, examples: Sequence[Example], words: Sequence[str], batch_size: int) -> Score:
        rows = [(self.likely(e, word), 1, False) for e, word in zip(examples, words, strict=True)]
        if any(math.isnan(total) for total, _, _ in rows):
            raise NotFiniteError("no numbers")
        return Score.of(rows)
