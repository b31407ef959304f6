"""Randomised smoothing: noisy copies of a request are answered, and the majority decides.

    r  = share of n copies (picture + σ z_i, z_i ~ N(0, 1)) whose answers refuse
    y' = the first answer that refuses if r ≥ ½, else the first that doesn't

Noise: Cohen, Rosenfeld, Kolter 2019, arXiv 1902.02918 (σ 0.12 to 1, pixels in [0, 1]); the majority
of answers: Robey et al. 2023, arXiv 2310.03684 (SmoothLLM: n = 10 copies, an answer of the
majority; it perturbs letters, not pictures). What had to be chosen: a tie refuses; the answer is
the first of the majority's, not one at random; no certificate is computed, since n = 10 is far too
few for one. The words are the same in all copies, so a request without a picture gets the bare
answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from care.data.example import Example
from care.defenses.asking import AnswerCall, Turns, fill, merged
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.pictures import noisy, repictured
from care.defenses.refusals import refusing
from care.defenses.stored import StoredDefense
from care.errors import UsageError
from care.models.responses import Answer


@register("smoothing")
@dataclass(frozen=True, eq=False, kw_only=True)
class Smoothing(Turns, StoredDefense):
    """The majority of answers to noisy copies of a picture decides whether a request is refused."""

    paper: ClassVar[str] = "Cohen et al. 2019, 1902.02918; Robey et al. 2023, 2310.03684"
    cost: ClassVar[Cost] = Cost(answers=9)
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"sigma": (0.06, 0.12, 0.25, 0.5)}

    sigma: float = 0.12
    """σ."""
    copies: int = 10
    """n."""
    seed: int = 0
    """Of the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sigma <= 10 or self.copies < 1:
            raise UsageError(
                "Smoothing needs a sigma between 0 and 10 and at least one copy, got "
                f"{self.sigma!r:.40} and {self.copies}."
            )

    def turns(self, call: AnswerCall) -> list[Answer | None]:
        """The majority's answer to requests with a picture, the bare one to others."""
        pictured = np.array([bool(e.images) for e in call.examples])
        copies = [copy for e in call.examples if e.images for copy in self.noisy_copies(e)]
        answers = call.ask(copies)
        refused = refusing(call.vlm, answers)
        found = merged(~pictured, call.bare(np.flatnonzero(~pictured).tolist()))
        starts = range(0, len(copies), self.copies)
        parts = [slice(start, start + self.copies) for start in starts]
        fill(found, pictured, [majority(answers[part], refused[part]) for part in parts])
        return found

    def noisy_copies(self, example: Example) -> list[Example]:
        """The example `copies` times, each with noise of its own."""
        return [
            replace(repictured(example, self._noisy, self.seed, k), id=f"{example.id}-copy-{k}")
            for k in range(self.copies)
        ]

    def _noisy(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return noisy(image, self.sigma, rng)


def majority(answers: list[Answer | None], refused: np.ndarray) -> Answer | None:
    """The first answer of the majority, as `refused` (n,) of bool tells it; those that aren't there
    don't count, and None if none is."""
    there = [(answer, bool(no)) for answer, no in zip(answers, refused, strict=True) if answer]
    if not there:
        return None
    refuses = 2 * sum(no for _, no in there) >= len(there)
    return next(answer for answer, no in there if no == refuses)
