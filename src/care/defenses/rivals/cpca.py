"""Contrastive PCA: where attacks that worked vary more than other requests is projected out.

At the last token of prompts, at one layer, with the covariance C_m of attacks that worked and C_b
of requests that were refused or are benign, about the mean μ of the latter,

    (C_m − c C_b) v = λ v, the K largest λ,      h' = h − a V Vᵀ (h − μ).

Abid et al. 2018, "Exploring patterns enriched in a dataset with contrastive principal component
analysis" (arXiv 1709.06716), for exploring data: the contrast c is swept on a logarithmic grid.

What had to be chosen, since it was no defense: the projection, its tokens (from the last of the
prompt on), K = 8, one layer at half depth, and C_m about μ too, so that a shifted mean counts.
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
from care.defenses.steering import Steering, layer_at, out_of_span
from care.defenses.stored import fitted_on
from care.errors import UsageError
from care.models.sites import Site
from care.models.vlm import VLM


@register("cpca")
@dataclass(frozen=True, eq=False, kw_only=True)
class ContrastivePca(Steering):
    """The directions in which attacks that worked vary more than other requests are removed."""

    paper: ClassVar[str] = "Abid et al. 2018, 1709.06716"
    cost: ClassVar[Cost] = Cost(needs=("attacks that worked", "refusals", "benign requests"))
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depth": (0.3, 0.5, 0.7, 0.9),
        "rank": (1, 4, 8),
        "contrast": (0.1, 1.0, 10.0, 100.0),
    }

    basis: np.ndarray
    """Vᵀ (1, K, D)."""
    mean: np.ndarray
    """μ (1, D)."""

    def moved(self, h: Tensor, place: int) -> Tensor:
        """h − a V Vᵀ (h − μ)."""
        basis, mean = self.number("basis", h)[place], self.number("mean", h)[place]
        return out_of_span(h, basis, self.strength, mean)

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
        rank: int = 8,
        contrast: float = 1.0,
        batch_size: int = 16,
    ) -> Self:
        """Fit on requests; `material` is what they were answered, where that is known."""
        if not 1 <= rank <= vlm.anatomy.width:
            raise UsageError(f"rank must lie between 1 and {vlm.anatomy.width}, got {rank}.")
        material = material or gather(vlm, list(attacks), list(benign))
        site = Site(layer_at(vlm, depth), "layer_out")
        complied, refused, answered = decision_rows(vlm, material, [site], batch_size)[site]
        others = np.concatenate([refused, answered]).astype(np.float64)
        return cls(
            layers=(site.layer,),
            strength=strength,
            basis=contrasted(complied.astype(np.float64), others, rank, contrast)[None],
            mean=others.mean(axis=0, keepdims=True),
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )


def contrasted(complied: np.ndarray, others: np.ndarray, rank: int, contrast: float) -> np.ndarray:
    """Vᵀ (K, D) of activations (N, D) of attacks that worked and of other requests."""
    mean = others.mean(axis=0)
    first, second = ((rows - mean).T @ (rows - mean) / len(rows) for rows in (complied, others))
    return np.linalg.eigh(first - contrast * second)[1][:, ::-1][:, :rank].T
