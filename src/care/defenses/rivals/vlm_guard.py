"""VLM-Guard: activations are projected to the complement of the text model's safety directions.

Harmful and harmless requests without a picture are told apart by the text model that a
vision-language model is built on; of their differences at the last token, at one layer,

    D = [ h(harmful_i) − h(harmless_i) ]_i = U S Vᵀ,      h' = h − a V_K V_Kᵀ h.

Liu et al. 2025, arXiv 2502.10486, of which the abstract says: a safety steering direction is
extracted from the aligned text model, by a singular value decomposition, and representations are
projected to the subspace orthogonal to it, at inference.

What had to be chosen: the pairs (each harmful request with a harmless one, in turn), K = 1, one
layer at half depth, no centring, the full projection (a = 1), and its tokens: from the last of the
prompt on. Harmful requests are the refused ones, since there the text model's alignment shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from care.data.example import Example, Suite
from care.defenses.activations import at_decision
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.material import Material, gather
from care.defenses.steering import Steering, at_least, layer_at, out_of_span
from care.defenses.stored import fitted_on
from care.models.sites import Site
from care.models.vlm import VLM


@register("vlm-guard")
@dataclass(frozen=True, eq=False, kw_only=True)
class VlmGuard(Steering):
    """What tells harmful from harmless text is projected out."""

    paper: ClassVar[str] = "Liu et al. 2025, 2502.10486"
    cost: ClassVar[Cost] = Cost(needs=("refusals", "benign requests"))
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depth": (0.3, 0.5, 0.7, 0.9),
        "rank": (1, 2, 4),
        "strength": (0.5, 1.0, 2.0),
    }

    basis: np.ndarray
    """V_Kᵀ (1, K, D)."""

    def moved(self, h: Tensor, place: int) -> Tensor:
        """h − a V Vᵀ h."""
        return out_of_span(h, self.number("basis", h)[place], self.strength)

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
        rank: int = 1,
        batch_size: int = 16,
    ) -> Self:
        """Fit on requests; `material` is what they were answered, where that is known."""
        material = material or gather(vlm, list(attacks), list(benign))
        harmful, harmless = (
            [example for example, _ in part if not example.images]
            for part in (material.refused, material.answered)
        )
        at_least(max(rank, 1), harmful, "refused requests without a picture")
        at_least(1, harmless, "answered benign requests without a picture")
        site = Site(layer_at(vlm, depth), "layer_out")
        first, second = (
            at_decision(vlm, part, [site], batch_size)[site] for part in (harmful, harmless)
        )
        return cls(
            layers=(site.layer,),
            strength=strength,
            basis=safety_directions(first, second, rank)[None],
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )


def safety_directions(harmful: np.ndarray, harmless: np.ndarray, rank: int) -> np.ndarray:
    """V_Kᵀ (K, D) of the differences of (N, D) from (M, D), paired in turn."""
    apart = harmful - harmless[np.arange(len(harmful)) % len(harmless)]
    return np.linalg.svd(apart.astype(np.float64), full_matrices=False)[2][:rank]
