"""Difference of means, also called contrastive activation addition.

Of requests that were complied with, activations are taken over an answer that refuses and over the
one that the model gave; the mean difference, at one layer, is added at every token from the end of
the prompt on:

    v = mean_i [ h̄(x_i, refusal) − h̄(x_i, compliance) ],      h' = h + a v

Rimsky et al. 2024, arXiv 2312.06681 (section 2): pairs of the same question with the letters of two
answers, activations at the letter, all positions after the prompt, layers 13 to 15 of 32, a between
1 and 2. Here there are no lettered answers: both are the model's own, in words (a refusal is one of
those that it gave to other requests), and h̄ is the mean over the tokens of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from care.data.example import Example, Suite
from care.defenses.activations import pool, pooled_activations
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.material import Material, gather
from care.defenses.steering import Steering, layer_at
from care.defenses.stored import fitted_on
from care.models.sites import Site
from care.models.vlm import VLM


@register("difference-of-means")
@dataclass(frozen=True, eq=False, kw_only=True)
class DifferenceOfMeans(Steering):
    """The mean of refusing answers over complying ones is added to every token of an answer."""

    paper: ClassVar[str] = "Rimsky et al. 2024, 2312.06681"
    cost: ClassVar[Cost] = Cost(needs=("attacks that worked", "refusals"))
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depth": (0.3, 0.4, 0.5, 0.6, 0.75),
        "strength": (0.25, 0.5, 1.0, 2.0),
    }

    direction: np.ndarray
    """v (1, D)."""

    def moved(self, h, place):
        """h + a v."""
        return h + self.strength * self.number("direction", h)[place]

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        material: Material | None = None,
        depth: float = 0.4375,
        strength: float = 1.0,
        batch_size: int = 16,
    ) -> Self:
        """Fit on requests; `material` is what they were answered, where that is known."""
        material = material or gather(vlm, list(attacks), list(benign))
        layer = layer_at(vlm, depth)
        site, asked = Site(layer, "layer_out"), [example for example, _ in material.complied]
        said = {
            "refusing": material.refusing,
            "complying": [answer for _, answer in material.complied],
        }
        means = {
            name: pooled_activations(
                vlm,
                asked,
                [site],
                lambda h, roles: pool(h, roles, "response"),
                answers=answers,
                batch_size=batch_size,
            )[site].mean(axis=0, dtype=np.float64)
            for name, answers in said.items()
        }
        return cls(
            layers=(layer,),
            strength=strength,
            direction=(means["refusing"] - means["complying"])[None],
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )
