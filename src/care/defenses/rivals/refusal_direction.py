"""The refusal direction: the one that separates harmful from harmless requests is added.

At each layer l and each of the last tokens i of a prompt, those of its template,

    r_li = μ_li(harmful) − μ_li(harmless),      addition h' = h + a r,      ablation h' = h − r̂ r̂ᵀ h

of which the pair (l, i) is taken that gives the least refusal of harmful requests once r is ablated
(at every layer and token), among those with a divergence of ablated from bare answers to harmless
requests under 0.1, a positive refusal metric of harmless requests once r is added, and l < 0.8 L.
The metric is log P(R) − log(1 − P(R)) of the first tokens R of refusals, averaged; the divergence
KL(bare ‖ ablated) at the first token of an answer. As a defense r is added, at every token.

Arditi et al. 2024, arXiv 2406.11717 (sections 2.3 and 2.4, appendix C): 128 requests of each kind
to fit on, 32 to choose by, those that the model does refuse and does answer.

Deviations: activations are outputs of layers, not their inputs; what attention of the first layer
reads isn't ablated. Harmful requests are the refused ones, harmless ones those that were answered,
pictures included.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from care.data.example import Example, Suite
from care.defenses.activations import pooled_activations
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.material import Answered, Material, gather
from care.defenses.steering import Steering, at_least
from care.defenses.stored import fitted_on
from care.errors import FitError
from care.models.hooks import edit
from care.models.sites import Scope, Site, SiteKind, scope_mask
from care.models.vlm import VLM

DEPTH = 0.8
"""Share of the layers that are candidates."""

KINDS: tuple[SiteKind, ...] = ("mhsa_out", "ffn_out", "layer_out")
"""Where a direction is ablated: everything that is written to the residual stream."""


@register("refusal-direction")
@dataclass(frozen=True, eq=False, kw_only=True)
class RefusalDirection(Steering):
    """The direction from harmless to harmful requests is added, at the layer that refuses by it."""

    paper: ClassVar[str] = "Arditi et al. 2024, 2406.11717"
    cost: ClassVar[Cost] = Cost(needs=("refusals", "benign requests"))
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"strength": (0.1, 0.25, 0.5, 1.0, 1.5)}
    scopes: ClassVar[tuple[Scope, ...]] = ("all",)

    direction: np.ndarray
    """r (1, D)."""
    position: int = -1
    """Where r was taken, from the end of the prompt."""

    def moved(self, h: Tensor, place: int) -> Tensor:
        """h + a r."""
        return h + self.strength * self.number("direction", h)[place]

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        material: Material | None = None,
        strength: float = 1.0,
        train: int = 128,
        validation: int = 32,
        most_divergence: float = 0.1,
        least_induced: float = 0.0,
        batch_size: int = 16,
    ) -> Self:
        """Fit on requests; `material` is what they were answered, where that is known.

        At most `train` of a kind are averaged, at most `validation` choose. FitError where no
        candidate has a divergence below `most_divergence` and induces more than `least_induced`.
        """
        material = material or gather(vlm, list(attacks), list(benign))
        harmful, chosen_by = _parts(material.refused, train, validation)
        harmless, kept_by = _parts(material.answered, train, validation)
        sites = [Site(layer, "layer_out") for layer in range(_candidates(vlm))]
        directions = differences(vlm, harmful, harmless, sites, batch_size)
        choosing = Choosing(vlm, chosen_by, kept_by, batch_size, most_divergence, least_induced)
        best: tuple[float, Site, int] | None = None
        for site, rows in directions.items():
            for place in range(len(rows)):
                left = choosing.left(site, rows[place])
                if left is not None and (best is None or left < best[0]):
                    best = left, site, place - len(rows)
        if best is None:
            raise FitError(
                f"none of {sum(map(len, directions.values()))} directions induces refusals and "
                f"leaves harmless answers (divergence below {most_divergence}); pass more examples "
                "or another most_divergence"
            )
        _, site, position = best
        return cls(
            layers=(site.layer,),
            strength=strength,
            direction=directions[site][position][None],
            position=position,
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )


def differences(
    vlm: VLM,
    harmful: Sequence[Example],
    harmless: Sequence[Example],
    sites: Sequence[Site],
    batch_size: int = 16,
) -> dict[Site, np.ndarray]:
    """r (P, D) at each site, for the last P tokens of prompts, those of the template."""
    last, width = template_tokens(vlm), vlm.anatomy.width

    def ends(h: Tensor, roles: Tensor) -> Tensor:
        return h[:, -last:].float().flatten(1)

    means = []
    for part in (harmful, harmless):
        found = pooled_activations(vlm, part, sites, ends, batch_size=batch_size)
        means.append({site: rows.mean(axis=0, dtype=np.float64) for site, rows in found.items()})
    return {site: (means[0][site] - means[1][site]).reshape(last, width) for site in sites}


def template_tokens(vlm: VLM) -> int:
    """How many last tokens of prompts are their template's: the same whatever is asked."""
    ids = vlm.batch([Example("one", "Hello there"), Example("two", "7 dogs?")]).inputs["input_ids"]
    same = (ids[0] == ids[1]).flip(0).long()
    return max(int(same.cumprod(0).sum()), 1)


class Choosing:
    """What a direction does to requests that choose between candidates."""

    def __init__(
        self,
        vlm: VLM,
        harmful: list[Example],
        harmless: list[Example],
        batch_size: int,
        most_divergence: float,
        least_induced: float,
    ) -> None:
        self.vlm, self.batch_size = vlm, batch_size
        self.harmful, self.harmless = harmful, harmless
        self.most_divergence, self.least_induced = most_divergence, least_induced
        self.bare = self._first()

    def left(self, site: Site, r: np.ndarray) -> float | None:
        """The refusal metric of harmful requests once r (D,) is ablated; None for a candidate that
        is out."""
        if not np.linalg.norm(r) > 0:
            return None
        added = torch.from_numpy(r).float()  # first, since an edit of one site costs least
        with edit(self.vlm, {site: lambda h, roles: _everywhere(h, roles, h + added.to(h))}):
            induced = self.vlm.refusal_log_odds(self.harmless, self.batch_size).mean()
        if not induced > self.least_induced:
            return None
        with ablated(self.vlm, r):
            if not divergence(self.bare, self._first()) < self.most_divergence:
                return None
            return float(self.vlm.refusal_log_odds(self.harmful, self.batch_size).mean())

    def _first(self) -> Tensor:
        """log p (N, vocabulary) of the first token of answers to harmless requests."""

        def work(chunk: list[int]) -> list[Tensor]:
            batch = self.vlm.batch([self.harmless[place] for place in chunk])
            logits = self.vlm.forward(batch, logits_to_keep=1)[:, -1].float()
            return list(logits.log_softmax(-1).cpu())

        return torch.stack(self.vlm.in_batches(self.harmless, self.batch_size, work))


def ablated(vlm: VLM, r: np.ndarray) -> AbstractContextManager[Any]:
    """h − r̂ r̂ᵀ h at all sites and tokens, while the context is open."""
    direction = torch.from_numpy(r / np.linalg.norm(r)).float()

    def without(h: Tensor, roles: Tensor) -> Tensor:
        unit = direction.to(h)
        return _everywhere(h, roles, h - (h @ unit)[..., None] * unit)

    return edit(vlm, {site: without for kind in KINDS for site in vlm.anatomy.sites(kind)})


def divergence(one: Tensor, other: Tensor) -> float:
    """Mean KL(one ‖ other) of rows of log p (N, V)."""
    return float((one.exp() * (one - other)).sum(-1).mean())


def _everywhere(h: Tensor, roles: Tensor, new: Tensor) -> Tensor:
    return torch.where(scope_mask(roles, ("all",))[..., None], new, h)


def _candidates(vlm: VLM) -> int:
    """How many layers l there are with l < 0.8 L."""
    return max(int(np.ceil(DEPTH * vlm.anatomy.n_layers - 1e-9)), 1)


def _parts(
    answered: Sequence[Answered], train: int, validation: int
) -> tuple[list[Example], list[Example]]:
    """Requests to fit on, and every fifth to choose by."""
    asked = [replace(example, opening="") for example, _ in answered]
    at_least(2, asked, "requests of a kind to fit on and to choose by")
    chosen = asked[1::5][:validation]
    return [e for place, e in enumerate(asked) if place % 5 != 1][:train], chosen
