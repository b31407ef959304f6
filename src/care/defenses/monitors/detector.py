"""A detector: Fisher's discriminant of harmful against harmless, on pooled activations.

With the means m of the harmful families and μ of the harmless kinds, each family and each kind
counted alike, and the mean scatter within them S,

    w = C⁻¹ (m − μ) / (m − μ)ᵀ C⁻¹ (m − μ),   C = (1 − γ) S + γ diag(S),   s(h) = wᵀ(h − μ)

so that s is 0 at the mean of what is harmless and 1 at that of what is harmful. It is solved in
closed form. Scores of the rows it was fitted on flatter it; `crossfit` gives each row the score of
a detector that hasn't seen its goal. Fisher 1936; shrinkage as in Friedman 1989.
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

SHRINKAGE = 0.2
"""γ: weight of the diagonal in C."""
FOLDS = 5
"""Parts of a cross-fit."""

_LEAST_ROWS = 4


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


def fit_detector(harmful: Families, harmless: Families, shrinkage: float = SHRINKAGE) -> Detector:
    """The detector of all rows; FitError for too few rows or coordinates that never vary."""
    _check(harmful, harmless)
    return _fitted(*_parts(harmful, harmless), shrinkage)


def crossfit(
    harmful: Families, harmless: Families, shrinkage: float = SHRINKAGE, folds: int = FOLDS
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
        detector = _fitted(kept[0], kept[1], shrinkage)
        for name, rows in classes.items():
            part = inside[name] == fold
            found[name][part] = detector(rows.x[part])
    return found


def _parts(harmful: Families, harmless: Families) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [rows.x for rows in harmful.values()], [rows.x for rows in harmless.values()]


def _fitted(
    harmful: Sequence[np.ndarray], harmless: Sequence[np.ndarray], shrinkage: float
) -> Detector:
    centres = [_mean_of_means(side) for side in (harmful, harmless)]
    within = (_scatter_within(harmful) + _scatter_within(harmless)) / 2
    spread = np.diagonal(within).copy()
    if not (spread > 0).all():
        raise FitError(
            f"{int((spread <= 0).sum())} of {len(spread)} coordinates never vary; fit on examples "
            "that differ."
        )
    within *= 1 - shrinkage
    within[np.diag_indices(len(spread))] = spread
    gap = centres[0] - centres[1]
    direction = cho_solve(cho_factor(within, lower=True, overwrite_a=True), gap)
    length = float(gap @ direction)
    if not length > 0:
        raise FitError("Harmful and harmless activations have equal means; are they the same rows?")
    return Detector((direction / length).astype(np.float32), centres[1].astype(np.float32))


def _mean_of_means(side: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean([rows.mean(axis=0, dtype=np.float64) for rows in side], axis=0)


def _scatter_within(side: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over the families of the scatter about their own means (D, D)."""
    total = np.zeros((side[0].shape[1],) * 2)
    for rows in side:
        away = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
        total += away.T @ away / len(rows)
    return total / len(side)


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
