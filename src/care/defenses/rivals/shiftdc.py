"""ShiftDC: what a picture adds along the direction of safety is taken out of an activation.

A picture shifts the activation of a request from what the same request in words gives, and so
towards what looks safe. At the last token of a prompt, at some layers,

    s = mean h(safe text) − mean h(unsafe text)
    m = h(picture, text) − h(caption, text)
    h' = h − a (mᵀ s / ‖s‖²) s

with a caption of the picture by the model itself. Zou et al. 2025, arXiv 2502.13095: 160 requests
of each kind, layers 10 to 31 of 32, captions of at most 128 tokens, a = 1; an answer costs a
caption and a pass more. Requests without a picture are the bare model's.

What had to be chosen: what is asked for a caption, that it stands in a line before the request, and
that h in m is what earlier layers' edits leave, so that nothing is taken out twice. Unsafe text is
that of refused requests, safe text that of answered ones. An attack on the picture can't descend
through the caption: it descends through the bare model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from care.data.example import WORDLESS, Example, Suite
from care.defenses.activations import at_decision
from care.defenses.asking import Gated, answers_by_batch
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.material import Answered, Material, gather
from care.defenses.steering import AtLayers, at_least, decisions_moved, layers_between, unit
from care.defenses.stored import fitted_on
from care.models.edit_stats import EditStats
from care.models.responses import Answer
from care.models.sites import Site
from care.models.vlm import VLM

QUESTION = "Describe the image."
"""Asked for a caption."""

MOST = 160
"""Requests of a kind."""


@register("shiftdc")
@dataclass(frozen=True, eq=False, kw_only=True)
class ShiftDC(Gated, AtLayers):
    """The part of a picture's shift that looks safe is removed, told by a caption in its place."""

    paper: ClassVar[str] = "Zou et al. 2025, 2502.13095"
    cost: ClassVar[Cost] = Cost(forwards=1, answers=1, needs=("refusals", "benign requests"))
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depths": ((0.3, 1.0), (0.3, 0.7), (0.5, 1.0)),
        "strength": (0.5, 1.0, 2.0),
    }

    direction: np.ndarray
    """s / ‖s‖ of each layer (L, D)."""
    caption_tokens: int = 128
    """Most of a caption."""

    def opened(self, vlm: VLM, examples: Sequence[Example], batch_size: int) -> np.ndarray:
        """Requests with a picture (N,)."""
        return np.array([bool(example.images) and self.strength != 0 for example in examples])

    def guarded(self, vlm: VLM, examples: Sequence[Example], **how: Any) -> list[Answer]:
        """Answers to requests with a picture."""
        self.check(vlm)
        return answers_by_batch(vlm, examples, partial(self.shifted, vlm), **how)

    def shifted(self, vlm: VLM, examples: list[Example]) -> AbstractContextManager[EditStats]:
        """A context in which these requests, asked together, are edited."""
        asked = [replace(example, prompt=QUESTION, opening="") for example in examples]
        size = len(examples)
        captions = vlm.generate(asked, max_new_tokens=self.caption_tokens, batch_size=size)
        worded = [captioned(e, caption) for e, caption in zip(examples, captions, strict=True)]
        rows = at_decision(vlm, worded, self.sites, size)
        edits = {site: self.calibrated(site, rows[site]) for site in self.sites}
        return decisions_moved(vlm, edits, size)

    def calibrated(self, site: Site, worded: np.ndarray) -> Callable[[Tensor], Tensor]:
        """h (B, D) -> h' where the same requests in words have `worded` (B, D)."""
        place, words = self.sites.index(site), torch.from_numpy(worded)

        def edit(h: Tensor) -> Tensor:
            direction = self.number("direction", h)[place]
            along = (h - words.to(h)) @ direction
            return h - self.strength * along[:, None] * direction

        return edit

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        material: Material | None = None,
        depths: tuple[float, float] = (0.3, 1.0),
        strength: float = 1.0,
        caption_tokens: int = 128,
        batch_size: int = 16,
    ) -> Self:
        """Fit on requests; `material` is what they were answered, where that is known."""
        material = material or gather(vlm, list(attacks), list(benign))
        layers = layers_between(vlm, depths)
        sites = [Site(layer, "layer_out") for layer in layers]
        unsafe, safe = (
            at_decision(vlm, _worded(part, what), sites, batch_size)
            for part, what in (
                (material.refused, "refused"),
                (material.answered, "answered benign"),
            )
        )
        means = [
            safe[site].mean(axis=0, dtype=np.float64) - unsafe[site].mean(axis=0, dtype=np.float64)
            for site in sites
        ]
        return cls(
            layers=layers,
            strength=strength,
            direction=unit(np.array(means)),
            caption_tokens=caption_tokens,
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )


def captioned(example: Example, caption: str) -> Example:
    """A request with a caption in place of its pictures."""
    words = [part for part in (caption.strip(), example.prompt) if part.strip()]
    return replace(example, images=(), prompt="\n".join(words) or WORDLESS, opening="")


def _worded(answered: Sequence[Answered], what: str) -> list[Example]:
    found = [example for example, _ in answered if not example.images][:MOST]
    at_least(1, found, f"{what} requests without a picture")
    return found
