"""AlphaSteer: a refusal vector is added by a linear map that is null on benign activations.

With benign activations H_b (D, N_b), malicious ones H_m (D, N_m), a refusal vector r and R = r 1ᵀ,

    P = Û Ûᵀ, Û the eigenvectors of H_b H_bᵀ with the least share p of the eigenvalues
    Δ̃ = argmin ‖Δ̃ P H_m − R‖² + γ ‖Δ̃ P‖² = R H_mᵀ P (P H_m H_mᵀ P + γ P)⁺
    h' = h + a Δ̃ P h

at some layers. Since every column of R is r, the map has rank one: Δ̃ P = r wᵀ with

    w = Û (A Aᵀ + γ I)⁻¹ A 1,      A = Ûᵀ H_m.

Sheng et al. 2025, arXiv 2506.07022; r is the difference of the means of refused and complied
requests, as there; a, p and layers are chosen for each model.

What had to be chosen: layers from 0.3 to 0.6 of the depth, p = 0.6, γ = 0.01 of the mean eigenvalue
of A Aᵀ, and tokens: activations are of the last token of a prompt, and are edited from there on.
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
from care.defenses.steering import Steering, layers_between
from care.defenses.stored import fitted_on
from care.errors import FitError, UsageError
from care.models.sites import Site
from care.models.vlm import VLM


@register("alphasteer")
@dataclass(frozen=True, eq=False, kw_only=True)
class AlphaSteer(Steering):
    """A refusal vector is added as far as an activation isn't in the span of benign ones."""

    paper: ClassVar[str] = "Sheng et al. 2025, 2506.07022"
    cost: ClassVar[Cost] = Cost(needs=("attacks that worked", "refusals", "benign requests"))
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depths": ((0.3, 0.6), (0.3, 0.9), (0.5, 0.8)),
        "share": (0.3, 0.6, 0.9),
        "strength": (0.02, 0.05, 0.1, 0.25, 0.5, 1.0),
    }

    direction: np.ndarray
    """r of each layer (L, D)."""
    reading: np.ndarray
    """w of each layer (L, D)."""

    def moved(self, h: Tensor, place: int) -> Tensor:
        """h + a r (wᵀ h)."""
        read = h @ self.number("reading", h)[place]
        return h + self.strength * read[..., None] * self.number("direction", h)[place]

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        material: Material | None = None,
        depths: tuple[float, float] = (0.3, 0.6),
        strength: float = 0.5,
        share: float = 0.6,
        ridge: float = 0.01,
        batch_size: int = 16,
    ) -> Self:
        """Fit on requests; `material` is what they were answered, where that is known."""
        if not 0 < share <= 1:
            raise UsageError(f"share must lie in (0, 1], got {share}.")
        material = material or gather(vlm, list(attacks), list(benign))
        layers = layers_between(vlm, depths)
        sites = [Site(layer, "layer_out") for layer in layers]
        found = decision_rows(vlm, material, sites, batch_size)
        directions, readings = [], []
        for site in sites:
            complied, refused, answered = (rows.astype(np.float64) for rows in found[site])
            directions.append(refused.mean(axis=0) - complied.mean(axis=0))
            malicious = np.concatenate([complied, refused])
            readings.append(null_reading(malicious, answered, share, ridge))
        return cls(
            layers=layers,
            strength=strength,
            direction=np.array(directions),
            reading=np.array(readings),
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )


def null_reading(
    malicious: np.ndarray, benign: np.ndarray, share: float, ridge: float
) -> np.ndarray:
    """w (D,) of malicious (N_m, D) and benign (N_b, D) activations."""
    _, vectors = np.linalg.eigh(benign.T @ benign)
    kept = vectors[:, : max(int(share * len(vectors)), 1)]
    within = kept.T @ malicious.T
    gram = within @ within.T
    size = np.trace(gram) / len(gram)
    if not size > 0:
        raise FitError(
            "malicious activations lie in the span of benign ones, so none of them can be told "
            "apart; pass a greater share, or other examples"
        )
    solved = np.linalg.solve(gram + ridge * size * np.eye(len(gram)), within.sum(axis=1))
    return kept @ solved
