"""Random subspace: a control that takes away as many directions as a defense does, at random.

    h' = h − a Q Qᵀ (h − r),   Q (D, K) the orthonormal basis of K directions drawn at random

with r the mean of refusals at the last token of prompts, and the edit from there on. What a
subspace of rank K prevents beyond what any of that rank would shows beside this one, at the same
layer, rank and strength. For a repair there is `care.defenses.controls.random_control`, which keeps
its sites, gates and means.
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
from care.errors import FitError
from care.models.sites import Site
from care.models.vlm import VLM


@register("random-subspace")
@dataclass(frozen=True, eq=False, kw_only=True)
class RandomSubspace(Steering):
    """Activations are drawn towards refusals along random directions."""

    paper: ClassVar[str] = "none: a control"
    cost: ClassVar[Cost] = Cost(needs=("refusals",))
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depth": (0.3, 0.5, 0.7, 0.9),
        "rank": (1, 4, 8, 16),
        "strength": (1.0, 2.0, 4.0),
    }

    mean: np.ndarray
    """r (1, D)."""
    basis: np.ndarray
    """Qᵀ (K, D)."""

    def moved(self, h: Tensor, place: int) -> Tensor:
        """h − a Q Qᵀ (h − r)."""
        return out_of_span(h, self.number("basis", h), self.strength, self.number("mean", h))

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        material: Material | None = None,
        depth: float = 0.5,
        rank: int = 8,
        strength: float = 1.0,
        seed: int = 0,
        batch_size: int = 16,
    ) -> Self:
        """Draw directions; `material` is what the requests were answered, where that is known."""
        if not 1 <= rank <= vlm.anatomy.width:
            raise FitError(
                f"a subspace of rank {rank} was asked for in {vlm.anatomy.width} dimensions; ask "
                "for one from 1 up to these"
            )
        material = material or gather(vlm, list(attacks), list(benign))
        layer = layer_at(vlm, depth)
        site = Site(layer, "layer_out")
        refused = decision_rows(vlm, material, [site], batch_size)[site][1]
        drawn = np.random.default_rng(seed).standard_normal((vlm.anatomy.width, rank))
        return cls(
            layers=(layer,),
            strength=strength,
            mean=refused.mean(axis=0, keepdims=True, dtype=np.float64),
            basis=np.linalg.qr(drawn)[0].T,
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )
