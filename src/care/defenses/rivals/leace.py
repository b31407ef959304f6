"""LEACE: the least change after which nothing linear tells whether an attack works.

With activations x of mean μ and covariance Σ, a label z, and W = Σ^(−1/2), the edit of least mean
square in x after which no linear classifier predicts z better than a constant is

    h' = h − W⁺ P W (h − μ), P the orthogonal projection to the span of W Σ_xz,

which for one label is h' = h − a Σ_xz (Σ_xzᵀ Σ⁻¹ (h − μ)) / (Σ_xzᵀ Σ⁻¹ Σ_xz), at a = 1.

Belrose et al. 2023, arXiv 2306.03819.

What had to be chosen, since it was no defense: z is whether a request is an attack that worked,
against refused and benign ones; x are the activations at the last token of prompts at one layer,
edited from there on; Σ is shrunk towards its mean eigenvalue (Ledoit and Wolf 2004), since there
are fewer examples than coordinates, which keeps the guarantee on the examples that it is fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from care.data.example import Example, Suite
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.material import Material, decision_rows, gather
from care.defenses.steering import Steering, layer_at
from care.defenses.stored import fitted_on
from care.errors import FitError
from care.models.sites import Site
from care.models.vlm import VLM
from care.statistics.moments import Moments, ledoit_wolf

LEAST_SHRINKAGE = 1e-3
"""So that Σ can be inverted."""


@register("leace")
@dataclass(frozen=True, eq=False, kw_only=True)
class Leace(Steering):
    """What tells attacks that work from other requests linearly is erased by the least change."""

    paper: ClassVar[str] = "Belrose et al. 2023, 2306.03819"
    cost: ClassVar[Cost] = Cost(needs=("attacks that worked", "refusals", "benign requests"))
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depth": (0.2, 0.35, 0.5, 0.65, 0.8, 0.95),
        "strength": (0.5, 1.0, 2.0, 4.0),
    }

    writing: np.ndarray
    """Σ_xz (1, D)."""
    reading: np.ndarray
    """Σ⁻¹ Σ_xz / (Σ_xzᵀ Σ⁻¹ Σ_xz) (1, D)."""
    mean: np.ndarray
    """μ (1, D)."""

    def moved(self, h: Tensor, place: int) -> Tensor:
        """h less what its concept says."""
        read = (h - self.number("mean", h)[place]) @ self.number("reading", h)[place]
        return h - self.strength * read[..., None] * self.number("writing", h)[place]

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        material: Material | None = None,
        depth: float = 0.5,
        strength: float = 1.0,
        batch_size: int = 16,
    ) -> Self:
        """Fit on requests; `material` is what they were answered, where that is known."""
        material = material or gather(vlm, list(attacks), list(benign))
        site = Site(layer_at(vlm, depth), "layer_out")
        complied, *others = decision_rows(vlm, material, [site], batch_size)[site]
        rows = np.concatenate([complied, *others]).astype(np.float64)
        writing, reading = erasing(rows, np.arange(len(rows)) < len(complied))
        return cls(
            layers=(site.layer,),
            strength=strength,
            writing=writing[None],
            reading=reading[None],
            mean=rows.mean(axis=0, keepdims=True),
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )


def erasing(rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ_xz and Σ⁻¹ Σ_xz / (Σ_xzᵀ Σ⁻¹ Σ_xz), (D,) each, of rows (N, D) and labels (N,)."""
    moments = Moments(rows.shape[1]).fit(rows)
    spread = moments.spread()
    share = max(ledoit_wolf(spread), LEAST_SHRINKAGE)
    ridge = share * spread.trace / spread.width
    covariance = (1 - share) * moments.covariance() + ridge * np.eye(spread.width)
    shared = (rows - rows.mean(axis=0)).T @ (labels - labels.mean()) / len(rows)
    if not (spread.trace > 0 and np.linalg.norm(shared) > 0):
        raise FitError(
            "attacks that worked have the mean of other requests, so there is nothing to erase; "
            "fit on other examples"
        )
    solved = np.linalg.solve(covariance, shared)
    return shared, solved / (shared @ solved)
