"""SPO-VLM: steering vectors of several sources, which preferences between answers then refine.

    I.   at each layer l, over sources s (suites of attacks) that worked,
         v_l = mean_s [ μ_l(refused) − μ_l(complied, s) ],      h' = h + a v_l
    II.  with answers y⁺ preferred to y⁻ and the bare model π₀, the v_l are descended by
         −log σ( b [ log π_v(y⁺|x)/π₀(y⁺|x) − log π_v(y⁻|x)/π₀(y⁻|x) ] ), all else frozen

Wu et al. 2025, arXiv 2509.00373, of which the abstract says: layer-specific steering vectors from
diverse data sources; their refinement by sequence-level preference optimisation, with rewards of a
toxicity assessment and of caption and image being consistent; the base model frozen. No code or
settings are public.

What had to be chosen: contrasts and tokens (activations at the last token of prompts, edited from
there on), layers from 0.3 to 0.7 of the depth, the loss (direct preference optimisation, b = 0.1),
Adam at 0.005 of the vectors' mean size, 60 steps of 8 pairs. Rewards become pairs, since no caption
reward is here offline: for an attack that worked a refusal is preferred to what the model said
(less toxic), for a benign request the model's own answer to a refusal (consistent with its image).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from care.data.example import Example, Suite
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.likelihood import logprobs, loss_value
from care.defenses.material import Material, decision_rows, gather
from care.defenses.steering import ANSWERING, Steering, layers_between
from care.defenses.stored import fitted_on
from care.models.gradients import differentiable
from care.models.hooks import edit
from care.models.sites import Site, scope_mask
from care.models.vlm import VLM

PAIRS = 8
"""In a step."""


class Preference(NamedTuple):
    """Of two answers to a request the better one."""

    example: Example
    preferred: str
    rejected: str


@register("spo-vlm")
@dataclass(frozen=True, eq=False, kw_only=True)
class SpoVlm(Steering):
    """Steering vectors of several layers and sources, refined by preferences between answers."""

    paper: ClassVar[str] = "Wu et al. 2025, 2509.00373"
    cost: ClassVar[Cost] = Cost(
        trains=True, needs=("attacks that worked", "refusals", "benign requests")
    )
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depths": ((0.3, 0.7), (0.2, 0.5), (0.5, 0.9)),
        "strength": (0.1, 0.25, 0.5),
        "steps": (0, 60),
    }
    unfitted: ClassVar[tuple[str, ...]] = ()

    direction: np.ndarray
    """v of each layer (L, D)."""

    def moved(self, h: Tensor, place: int) -> Tensor:
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
        depths: tuple[float, float] = (0.3, 0.7),
        strength: float = 0.25,
        steps: int = 60,
        rate: float = 0.005,
        sharpness: float = 0.1,
        seed: int = 0,
        batch_size: int = 16,
    ) -> Self:
        """Fit on requests; `material` is what they were answered, where that is known.

        `sharpness` is b; `steps` of 0 leave the vectors of the first stage.
        """
        material = material or gather(vlm, list(attacks), list(benign))
        layers = layers_between(vlm, depths)
        sites = [Site(layer, "layer_out") for layer in layers]
        found = decision_rows(vlm, material, sites, batch_size)
        sources = [example.suite for example, _ in material.complied]
        vectors = np.array([by_source(found[site][0], found[site][1], sources) for site in sites])
        if steps and strength:
            pairs = preferences(material)
            vectors = refined(vlm, pairs, sites, vectors, strength, steps, rate, sharpness, seed)
        return cls(
            layers=layers,
            strength=strength,
            direction=vectors,
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )


def by_source(complied: np.ndarray, refused: np.ndarray, sources: Sequence[str]) -> np.ndarray:
    """v (D,) of activations (N, D) with the source of each, and of refused requests (M, D)."""
    named = np.array(sources)
    means = [complied[named == each].mean(axis=0, dtype=np.float64) for each in np.unique(named)]
    return refused.mean(axis=0, dtype=np.float64) - np.mean(means, axis=0)


def preferences(material: Material) -> list[Preference]:
    """Refusals of attacks that worked, answers to benign requests; none of empty answers."""
    refusals = material.refusing
    found = [
        Preference(example, refusal, said)
        for (example, said), refusal in zip(material.complied, refusals, strict=True)
    ]
    for place, (example, said) in enumerate(material.answered):
        found.append(Preference(example, said, refusals[place % len(refusals)]))
    return [pair for pair in found if pair.preferred.strip() and pair.rejected.strip()]


def preference_loss(steered: Tensor, bare: Tensor, sharpness: float) -> Tensor:
    """Mean loss of log p (2, B) of preferred and rejected answers, steered and bare."""
    gain = steered - bare
    return -torch.nn.functional.logsigmoid(sharpness * (gain[0] - gain[1])).mean()


def refined(
    vlm: VLM,
    pairs: Sequence[Preference],
    sites: Sequence[Site],
    vectors: np.ndarray,
    strength: float,
    steps: int,
    rate: float,
    sharpness: float,
    seed: int,
) -> np.ndarray:
    """The vectors (L, D) after so many steps of Adam; FitError where the loss isn't finite."""
    rng = np.random.default_rng(seed)
    known = torch.tensor(vectors, dtype=torch.float32, device=vlm.device, requires_grad=True)
    adam = torch.optim.Adam([known], lr=rate * float(np.abs(vectors).mean()))

    def adding(place: int):
        def added(h: Tensor, roles: Tensor) -> Tensor:
            new = h + (strength * known[place]).to(h)
            return torch.where(scope_mask(roles, ANSWERING)[..., None], new, h)

        return added

    edits = {site: adding(place) for place, site in enumerate(sites)}
    with differentiable(vlm):
        for step in range(steps):
            chosen = [pairs[i] for i in rng.permutation(len(pairs))[:PAIRS]]
            bare = _both(vlm, chosen, grad=False)
            with edit(vlm, edits):
                loss = preference_loss(_both(vlm, chosen, grad=True), bare, sharpness)
            loss_value(loss, step, rate)
            adam.zero_grad()
            loss.backward()
            adam.step()
    return known.detach().cpu().numpy()


def _both(vlm: VLM, pairs: Sequence[Preference], grad: bool) -> Tensor:
    """log p (2, B) of preferred and of rejected answers."""
    asked = [pair.example for pair in pairs]
    return torch.stack(
        [
            logprobs(vlm, asked, [pair.preferred for pair in pairs], grad=grad)[0],
            logprobs(vlm, asked, [pair.rejected for pair in pairs], grad=grad)[0],
        ]
    )
