"""SafeSteer: a steering vector, rebuilt in a safety subspace, where an activation looks harmful.

At the last token of prompts, at one layer, with refused requests r and attacks that worked m,

    D = [ h(r_i) − h(m_i) ]_i = U S Vᵀ,      v = mean_i D_i,      v_s = V_K V_Kᵀ v
    g(h) = clip( uᵀ (h − μ_b) / uᵀ (μ_m − μ_b), 0, 1),      u = V_K V_Kᵀ (μ_m − μ_b)
    h' = h + a g(h) v_s

Zeng et al. 2025, arXiv 2509.21400, of which the abstract says: a low-dimensional safety subspace by
a singular value decomposition; the raw steering vector is projected into it and reconstructed,
adaptively, in a single pass, with little effect on benign inputs.

What had to be chosen: the pairs (each attack that worked with a refused request, in turn), K = 8,
one layer at half depth, a = 1, tokens from the last of the prompt on, and what *adaptively* means:
the gate g is 0 at the mean of answered benign requests and 1 at that of attacks, in the subspace.
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
from care.defenses.steering import Steering, at_least, layer_at
from care.defenses.stored import fitted_on
from care.errors import FitError
from care.models.sites import Site
from care.models.vlm import VLM


@register("safesteer")
@dataclass(frozen=True, eq=False, kw_only=True)
class SafeSteer(Steering):
    """A refusing vector in a safety subspace is added, as far as an activation looks harmful."""

    paper: ClassVar[str] = "Zeng et al. 2025, 2509.21400"
    cost: ClassVar[Cost] = Cost(needs=("attacks that worked", "refusals", "benign requests"))
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depth": (0.3, 0.5, 0.7, 0.9),
        "rank": (2, 8),
        "strength": (0.5, 1.0, 2.0, 4.0),
    }

    direction: np.ndarray
    """v_s (1, D)."""
    gate: np.ndarray
    """u / uᵀ (μ_m − μ_b) (1, D)."""
    harmless: np.ndarray
    """μ_b (1, D)."""

    def moved(self, h: Tensor, place: int) -> Tensor:
        """h + a g(h) v_s."""
        apart = h - self.number("harmless", h)[place]
        opened = (apart @ self.number("gate", h)[place]).clamp(0, 1)
        return h + self.strength * opened[..., None] * self.number("direction", h)[place]

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
        batch_size: int = 16,
    ) -> Self:
        """Fit on requests; `material` is what they were answered, where that is known."""
        material = material or gather(vlm, list(attacks), list(benign))
        at_least(rank, material.complied, "attacks that worked, of which a subspace is made,")
        site = Site(layer_at(vlm, depth), "layer_out")
        complied, refused, answered = decision_rows(vlm, material, [site], batch_size)[site]
        direction, gate = subspace_steering(complied, refused, answered, rank)
        return cls(
            layers=(site.layer,),
            strength=strength,
            direction=direction[None],
            gate=gate[None],
            harmless=answered.mean(axis=0, keepdims=True, dtype=np.float64),
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )


def subspace_steering(
    complied: np.ndarray, refused: np.ndarray, answered: np.ndarray, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """v_s and u / uᵀ (μ_m − μ_b), (D,) each, of activations (N, D) of the three classes."""
    complied, refused = complied.astype(np.float64), refused.astype(np.float64)
    apart = refused[np.arange(len(complied)) % len(refused)] - complied
    basis = np.linalg.svd(apart, full_matrices=False)[2][:rank]
    harmful = complied.mean(axis=0) - answered.mean(axis=0, dtype=np.float64)
    within = (basis @ harmful) @ basis
    if not within @ harmful > 0:
        raise FitError(
            "attacks that worked have the same activations as benign requests in the safety "
            "subspace; fit at another depth, or on other examples"
        )
    return (basis @ apart.mean(axis=0)) @ basis, within / (within @ harmful)
