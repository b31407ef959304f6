"""CAST: a refusing vector is added to requests that meet a condition on their activations.

Both vectors are first principal components, of activations centred between two classes. With the
means h̄ over the words of malicious and benign prompts, c, at a layer of the condition; with those
over refusing and complying answers to the same requests, v, at each layer of the behaviour. Then

    p = tanh(c cᵀ h̄),      the condition holds where cos(h̄, p) is above (or below) θ
    h' = h + a v at every token, if it holds for the prompt.

Lee et al. 2024, arXiv 2409.05907: layer, θ and side by the best F1 over a grid, on what is fitted
on, within the first third of the layers; behaviour in the middle to late layers (about 0.45 to 0.75
of the depth), a between 1 and 2.

Deviations: tokens of pictures aren't averaged, or c would tell requests with a picture from others.
θ is sought among all values that tell two examples apart, in place of a grid. v is as
long as half the mean difference along it, so that a means the same in every model. The condition is
read in a pass of its own that ends at its layer, where it could be read on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from care.data.example import Example, Suite
from care.defenses.activations import pool, pooled_activations
from care.defenses.asking import Gated
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.material import Material, gather
from care.defenses.steering import Steering, layer_at, layers_between
from care.defenses.stored import fitted_on
from care.models.sites import Scope, Site
from care.models.vlm import VLM

CONDITION = 1 / 3
"""Depth up to which a condition is sought."""


@register("cast")
@dataclass(frozen=True, eq=False, kw_only=True)
class Cast(Gated, Steering):
    """Requests whose activations meet a condition are answered with a refusing vector added."""

    paper: ClassVar[str] = "Lee et al. 2024, 2409.05907"
    cost: ClassVar[Cost] = Cost(
        forwards=0.3, needs=("attacks that worked", "refusals", "benign requests")
    )
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depths": ((0.45, 0.75), (0.3, 0.5), (0.6, 0.9)),
        "strength": (0.05, 0.1, 0.25, 0.5, 1.0),
    }
    scopes: ClassVar[tuple[Scope, ...]] = ("all",)

    direction: np.ndarray
    """v of each layer (L, D), as long as half the mean difference along it."""
    condition: np.ndarray
    """c (1, D), of length 1."""
    condition_layer: int
    """Where the condition is read."""
    threshold: float
    """θ."""
    above: bool
    """Whether it holds above θ or below."""

    def moved(self, h: Tensor, place: int) -> Tensor:
        """h + a v."""
        return h + self.strength * self.number("direction", h)[place]

    def opened(self, vlm: VLM, examples: Sequence[Example], batch_size: int) -> np.ndarray:
        """Requests that meet the condition (N,)."""
        if self.strength == 0:
            return np.zeros(len(examples), dtype=bool)
        self.check(vlm)
        site = Site(self.condition_layer, "layer_out")
        found = likeness(prompts(vlm, examples, [site], batch_size)[site], self.condition[0])
        return found > self.threshold if self.above else found < self.threshold

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        material: Material | None = None,
        depths: tuple[float, float] = (0.45, 0.75),
        strength: float = 1.0,
        batch_size: int = 16,
    ) -> Self:
        """Fit on requests; `material` is what they were answered, where that is known."""
        material = material or gather(vlm, list(attacks), list(benign))
        layers = layers_between(vlm, depths)
        at, condition, threshold, above = _condition(vlm, material, batch_size)
        return cls(
            layers=layers,
            strength=strength,
            direction=_behaviour(vlm, material, layers, batch_size),
            condition=condition[None],
            condition_layer=at,
            threshold=threshold,
            above=above,
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )


def prompts(
    vlm: VLM, examples: Sequence[Example], sites: Sequence[Site], batch_size: int
) -> dict[Site, np.ndarray]:
    """Means (N, D) over the words of prompts."""
    return pooled_activations(
        vlm, examples, sites, lambda h, roles: pool(h, roles, "text"), batch_size=batch_size
    )


def likeness(rows: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """cos(h, tanh(c cᵀ h)) (N,) of rows (N, D) and c (D,) of length 1; 0 where there is none."""
    rows = rows.astype(np.float64)
    projected = np.tanh(np.outer(rows @ condition, condition))
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(projected, axis=1)
    along = np.einsum("nd,nd->n", rows, projected)
    return np.divide(along, lengths, out=np.zeros(len(rows)), where=lengths > 0)


def best_threshold(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float, bool]:
    """F1, θ and whether positives are above it, of the best threshold between (N,) and (M,)."""
    values = np.unique(np.concatenate([positive, negative]))
    between = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    best = (-1.0, 0.0, True)
    for above in (True, False):
        side = 1 if above else -1
        hits, false = (
            (side * part[:, None] > side * between).sum(axis=0) for part in (positive, negative)
        )
        scores = 2 * hits / (len(positive) + hits + false)
        place = int(np.argmax(scores))
        if scores[place] > best[0]:
            best = float(scores[place]), float(between[place]), above
    return best


def leading(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """First principal component (D,) of two classes about the middle of their means, from the
    second to the first."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    middle = (first.mean(axis=0) + second.mean(axis=0)) / 2
    found = np.linalg.svd(np.concatenate([first, second]) - middle, full_matrices=False)[2][0]
    return found * (1.0 if found @ (first.mean(axis=0) - second.mean(axis=0)) >= 0 else -1.0)


def _condition(
    vlm: VLM, material: Material, batch_size: int
) -> tuple[int, np.ndarray, float, bool]:
    """Layer, c, θ and side of the condition that tells malicious prompts best."""
    sites = [Site(layer, "layer_out") for layer in range(layer_at(vlm, CONDITION) + 1)]
    malicious, benign = (
        prompts(vlm, [example for example, _ in part], sites, batch_size)
        for part in ((*material.complied, *material.refused), material.answered)
    )
    best: tuple[float, int, np.ndarray, float, bool] | None = None
    for site in sites:
        condition = leading(malicious[site], benign[site])
        positive, negative = (likeness(part[site], condition) for part in (malicious, benign))
        score, threshold, above = best_threshold(positive, negative)
        if best is None or score > best[0]:
            best = score, site.layer, condition, threshold, above
    assert best is not None  # there is a first layer
    return best[1:]


def _behaviour(
    vlm: VLM, material: Material, layers: tuple[int, ...], batch_size: int
) -> np.ndarray:
    """v (L, D) of refusing over complying answers to the same requests."""
    sites = [Site(layer, "layer_out") for layer in layers]
    asked = [example for example, _ in material.complied]
    refusing, complying = (
        pooled_activations(
            vlm,
            asked,
            sites,
            lambda h, roles: pool(h, roles, "response"),
            answers=answers,
            batch_size=batch_size,
        )
        for answers in (material.refusing, [answer for _, answer in material.complied])
    )
    found = []
    for site in sites:
        # Pairs are centred each by itself, so that what was asked doesn't count.
        middle = (refusing[site] + complying[site]) / 2
        first, second = refusing[site] - middle, complying[site] - middle
        direction = leading(first, second)
        found.append(direction * float((first @ direction).mean()))
    return np.array(found)
