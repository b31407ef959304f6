"""Circuit breakers: what the model thinks while it complies is turned away from what it was.

With h the activations of the bare model and h' those of the trained one, at some layers and step t
of T:

    L   = c_s L_s + c_r L_r,      c_s = α (1 − t / 2T),      c_r = α t / 2T
    L_s = mean max(0, cos(h, h'))    at tokens of answers that comply with harmful requests
    L_r = mean ‖h − h'‖              at all tokens of what is to stay as it is

descended by low-rank additions to all linear maps up to the last of these layers (representation
rerouting, Zou et al. 2024, arXiv 2406.04313, algorithm 1; layers 10 and 20 of 32, α = 10, rank 16
with LoRA's α = 16, 150 steps of 16 examples at a rate of 1e-4, as published for Llama 3).

What had to be chosen: the answers are the model's own, where the paper has another model write
harmful ones; what stays are benign requests with their answers and malicious ones with the refusals
that they got, where the paper has UltraChat and XSTest beside refusals; no dropout; and where the
additions begin: at h' = h the cosine is at its greatest and has no slope, which others leave by
rounding alone, so B is drawn from N(0, 0.01²).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from care.data.example import Example, Suite
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.low_rank import Adapters, LowRank, adapters, batches, descend
from care.defenses.material import Answered, Material, gather
from care.defenses.steering import at_least, layer_at
from care.defenses.stored import fitted_on
from care.models.hooks import read
from care.models.sites import Scope, Site
from care.models.vlm import VLM

SPREAD = 0.01
"""Of B where training begins."""


@register("circuit-breakers")
@dataclass(frozen=True, eq=False, kw_only=True)
class CircuitBreakers(LowRank):
    """Weights are trained so that activations of complying answers are turned elsewhere."""

    paper: ClassVar[str] = "Zou et al. 2024, 2406.04313"
    cost: ClassVar[Cost] = Cost(
        trains=True, needs=("attacks that worked", "refusals", "benign requests")
    )
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depths": ((10 / 32, 20 / 32), (0.5, 0.75), (0.75, 1.0)),
        "weight": (5.0, 10.0),
        "steps": (50, 150),
    }

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        material: Material | None = None,
        depths: tuple[float, ...] = (10 / 32, 20 / 32),
        weight: float = 10.0,
        rank: int = 16,
        alpha: float = 16.0,
        steps: int = 150,
        rate: float = 1e-4,
        batch_size: int = 16,
        seed: int = 0,
        strength: float = 1.0,
    ) -> Self:
        """Train on requests; `material` is what they were answered, where that is known, and
        `weight` is the α of the losses."""
        material = material or gather(vlm, list(attacks), list(benign))
        harmful = [pair for pair in material.complied if vlm.response_ids(pair[1])]
        stays = [*material.answered, *material.refused]
        at_least(1, harmful, "attacks that worked and were answered with a word")
        layers = sorted({layer_at(vlm, depth) for depth in depths})
        sites = [Site(layer, "layer_out") for layer in layers]
        drawn = [batches(harmful, batch_size, [seed, 0]), batches(stays, batch_size, [seed, 1])]
        with adapters(vlm, range(layers[-1] + 1), rank, alpha, seed, SPREAD) as trained:

            def loss(step: int) -> Tensor:
                turned, kept = coefficients(step, steps, weight)
                away = rerouted(*activations(vlm, trained, next(drawn[0]), sites, "response"))
                same = moved(*activations(vlm, trained, next(drawn[1]), sites, "all"))
                return turned * away + kept * same

            descend(trained, steps, rate, loss)
            fields = trained.fields()
        manifest = fitted_on(vlm, [*attacks, *benign])
        return cls(**fields, strength=strength, manifest=manifest)


def coefficients(step: int, steps: int, weight: float) -> tuple[float, float]:
    """c_s and c_r at step t of T."""
    share = step / (2 * steps)
    return weight * (1 - share), weight * share


def rerouted(before: Tensor, after: Tensor) -> Tensor:
    """L_s of activations (n, D)."""
    return torch.cosine_similarity(before, after, dim=-1).clamp(min=0).mean()


def moved(before: Tensor, after: Tensor) -> Tensor:
    """L_r of activations (n, D)."""
    return torch.linalg.vector_norm(before - after, dim=-1).mean()


def activations(
    vlm: VLM, trained: Adapters, pairs: Sequence[Answered], sites: Sequence[Site], scope: Scope
) -> tuple[Tensor, Tensor]:
    """h and h' (n, D) of all sites at the tokens in scope, those of h' with their graph."""
    batch = vlm.batch([example for example, _ in pairs], [answer for _, answer in pairs])

    def rows(grad: bool) -> Tensor:
        with read(vlm, sites, (scope,)) as recorder:
            vlm.forward(batch, logits_to_keep=1, grad=grad)
        return torch.cat([recorder.rows(site).float().to(vlm.device) for site in sites])

    with trained.off():
        before = rows(False)
    return before, rows(True)
