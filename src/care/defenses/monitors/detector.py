"""A detector: Fisher's discriminant of harmful against harmless, on pooled activations.

With m the mean of the means of the harmful families, μ the mean of those of the harmless kinds k
with weights v_k, and S the mean scatter within both,

    w = C⁻¹ (m − μ) / (m − μ)ᵀ C⁻¹ (m − μ),   C = (1 − γ) S + γ diag(S),   s(h) = wᵀ(h − μ)

so that s is 0 at the mean of what is harmless and 1 at that of what is harmful, and ½ as far from
one as from the other. It is solved in closed form, twice: all kinds weigh the same at first, and
then as they are hard to tell apart, since it is the hardest kind that sets a threshold,

    v_k ∝ 0.1 + a_k / mean a,    a_k = P(s > t | kind k)

with t above all but the share α of harmless scores. Scores of the rows it was fitted on flatter a
detector: those in a_k, and what `crossfit` gives, are of one that hasn't seen the row's goal.
Fisher 1936; shrinkage as in Friedman 1989.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from care.errors import FitError, UsageError
from care.statistics.crossfit import FamilyRows, folds_of
from care.statistics.moments import towards_diagonal

SHRINKAGE = 0.2
"""γ: weight of the diagonal in C."""
FOLDS = 5
"""Parts of a cross-fit."""

_LEAST_ROWS = 4
_LEAST_WEIGHT = 0.1


@dataclass(frozen=True, eq=False)
class Detector:
    """A linear score of pooled activations."""

    direction: np.ndarray
    """w (D,) float32."""
    mean: np.ndarray
    """μ (D,) float32."""

    def __post_init__(self) -> None:
        shapes = (self.direction.shape, self.mean.shape)
        if self.direction.ndim != 1 or shapes[0] != shapes[1]:
            raise UsageError(
                f"A detector needs w (D,) and μ (D,), got {shapes[0]} and {shapes[1]}."
            )
        if not all(np.isfinite(part).all() for part in (self.direction, self.mean)):
            raise UsageError("A detector needs finite numbers; fit it again.")

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """w and μ (D,) float32 on a device."""
        return tuple(
            torch.from_numpy(part).float().to(device) for part in (self.direction, self.mean)
        )  # pyright: ignore[reportReturnType]

    def __call__(self, h: np.ndarray) -> np.ndarray:
        """s (N,) of pooled activations h (N, D), float64."""
        return (h.astype(np.float64) - self.mean) @ self.direction.astype(np.float64)


Families = Mapping[str, FamilyRows]
"""Pooled activations (N, D) of each family or kind, by name."""

Weights = Mapping[str, float]
"""v of each harmless kind; they need not sum to one."""


def fit_detector(
    harmful: Families,
    harmless: Families,
    weights: Weights | None = None,
    shrinkage: float = SHRINKAGE,
) -> Detector:
    """The detector of all rows; FitError for too few rows or coordinates that never vary.

    Without `weights` all kinds weigh the same.
    """
    _check(harmful, harmless)
    return _fitted(
        [rows.x for rows in harmful.values()],
        [rows.x for rows in harmless.values()],
        _shares(harmless, weights),
        shrinkage,
    )


def crossfit(
    harmful: Families,
    harmless: Families,
    weights: Weights | None = None,
    shrinkage: float = SHRINKAGE,
    folds: int = FOLDS,
) -> dict[str, np.ndarray]:
    """Scores (N,) of each family and kind, each row by a detector that hasn't seen its group."""
    _check(harmful, harmless)
    classes = {**harmful, **harmless}
    found = {name: np.zeros(len(rows.x)) for name, rows in classes.items()}
    inside = dict(zip(classes, folds_of(list(classes.values()), folds), strict=True))
    for fold in range(folds):
        kept = [
            [rows.outside(inside[name] == fold) for name, rows in side.items()]
            for side in (harmful, harmless)
        ]
        detector = _fitted(kept[0], kept[1], _shares(harmless, weights), shrinkage)
        for name, rows in classes.items():
            part = inside[name] == fold
            found[name][part] = detector(rows.x[part])
    return found


def hardness(
    harmful: Families, harmless: Families, false_alarms: float, shrinkage: float = SHRINKAGE
) -> dict[str, float]:
    """v of each harmless kind, by the share of its scores above all but `false_alarms` of them."""
    scores = crossfit(harmful, harmless, None, shrinkage)
    limit = np.quantile(np.concatenate([scores[kind] for kind in harmless]), 1 - false_alarms)
    above = {kind: float((scores[kind] > limit).mean()) for kind in harmless}
    mean = max(sum(above.values()) / len(above), 1e-9)
    return {kind: _LEAST_WEIGHT + share / mean for kind, share in above.items()}


def _shares(harmless: Families, weights: Weights | None) -> np.ndarray:
    found = np.array([1.0 if weights is None else weights[kind] for kind in harmless])
    return found / found.sum()


def _fitted(
    harmful: Sequence[np.ndarray],
    harmless: Sequence[np.ndarray],
    shares: np.ndarray,
    shrinkage: float,
) -> Detector:
    alike = np.full(len(harmful), 1 / len(harmful))
    sides = ((harmful, alike), (harmless, shares))
    centres = [_mean_of_means(side, weights) for side, weights in sides]
    scatters = [_scatter_within(side, weights) for side, weights in sides]
    within = (scatters[0] + scatters[1]) / 2
    within = towards_diagonal(within, shrinkage)
    gap = centres[0] - centres[1]
    direction = cho_solve(cho_factor(within, lower=True, overwrite_a=True), gap)
    length = float(gap @ direction)
    if not length > 0:
        raise FitError("Harmful and harmless activations have equal means; are they the same rows?")
    return Detector((direction / length).astype(np.float32), centres[1].astype(np.float32))


def _mean_of_means(side: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    return weights @ np.array([rows.mean(axis=0, dtype=np.float64) for rows in side])


def _scatter_within(side: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Weighted mean over the families of the scatter about their own means (D, D)."""
    total = np.zeros((side[0].shape[1],) * 2)
    for rows, weight in zip(side, weights, strict=True):
        away = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
        total += weight * (away.T @ away) / len(rows)
    return total


def _check(harmful: Families, harmless: Families) -> None:
    if not harmful or not harmless:
        raise FitError(
            "A monitor needs harmful and harmless examples to fit on; one side is empty."
        )
    for name, rows in {**harmful, **harmless}.items():
        if len(rows.x) < _LEAST_ROWS:
            raise FitError(
                f"{name!r} has {len(rows.x)} examples, and a monitor needs at least {_LEAST_ROWS} "
                "of each family; add some or leave it out."
            )
        if not np.isfinite(rows.x).all():
            raise FitError(
                f"Activations of {name!r} aren't finite; run the model in float32 or bfloat16."
            )
