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

from collections.abc import Mapping
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

_NO_FOLD = -1
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

    def of_tokens(self, h: Tensor) -> Tensor:
        """s (…) of activations h (…, D) of single tokens, float32; differentiable."""
        direction, mean = (
            torch.from_numpy(part).float().to(h.device) for part in (self.direction, self.mean)
        )
        return (h.float() - mean) @ direction

    def __call__(self, h: np.ndarray) -> np.ndarray:
        """s (N,) of pooled activations h (N, D), float64."""
        return (h.astype(np.float64) - self.mean) @ self.direction.astype(np.float64)


Families = Mapping[str, FamilyRows]
"""Pooled activations (N, D) of each family or kind, by name."""

Weights = Mapping[str, float]
"""v of each harmless kind; they need not sum to one."""


class DetectorFit:
    """The rows of both sides, from which every detector of a cross-fit is solved.

    FitError for a side without families, too few rows of one, or numbers that aren't finite.
    """

    def __init__(
        self,
        harmful: Families,
        harmless: Families,
        shrinkage: float = SHRINKAGE,
        folds: int = FOLDS,
    ) -> None:
        _check(harmful, harmless)
        self._harmful, self._harmless = _Side(harmful), _Side(harmless)
        self._classes = {**harmful, **harmless}
        inside = folds_of(list(self._classes.values()), folds)
        self._inside = dict(zip(self._classes, inside, strict=True))
        self._shrinkage, self._folds = shrinkage, folds
        self._of_harmful: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def detector(self, weights: Weights | None = None) -> Detector:
        """The detector of all rows; without `weights` all harmless kinds weigh the same.

        FitError for equal means, or coordinates that never vary.
        """
        return self._outside(_NO_FOLD, weights)

    def crossfit(self, weights: Weights | None = None) -> dict[str, np.ndarray]:
        """Scores (N,) of each family and kind, each row by a detector that hasn't seen its group.

        FitError as of `detector`.
        """
        found = {name: np.zeros(len(rows.x)) for name, rows in self._classes.items()}
        for fold in range(self._folds):
            detector = self._outside(fold, weights)
            for name, rows in self._classes.items():
                part = self._inside[name] == fold
                found[name][part] = detector(rows.x[part])
        return found

    def hardness(self, false_alarms: float) -> dict[str, float]:
        """v of each harmless kind, by the share of its scores above all but `false_alarms`."""
        scores, kinds = self.crossfit(), self._harmless.names
        limit = np.quantile(np.concatenate([scores[kind] for kind in kinds]), 1 - false_alarms)
        above = {kind: float((scores[kind] > limit).mean()) for kind in kinds}
        mean = max(sum(above.values()) / len(above), 1e-9)
        return {kind: _LEAST_WEIGHT + share / mean for kind, share in above.items()}

    def _outside(self, fold: int, weights: Weights | None) -> Detector:
        """The detector of the rows that aren't in a fold."""
        used = [
            np.concatenate([self._inside[name] != fold for name in side.names])
            for side in (self._harmful, self._harmless)
        ]
        if fold not in self._of_harmful:  # the same whatever the harmless kinds weigh
            self._of_harmful[fold] = self._harmful.moments(used[0])
        (centre, scatter), (mean, other) = (
            self._of_harmful[fold],
            self._harmless.moments(used[1], weights),
        )
        within = towards_diagonal((scatter + other) / 2, self._shrinkage)
        gap = centre - mean
        direction = cho_solve(cho_factor(within, lower=True, overwrite_a=True), gap)
        length = float(gap @ direction)
        if not length > 0:
            raise FitError(
                "Harmful and harmless activations have equal means; are they the same rows?"
            )
        return Detector((direction / length).astype(np.float32), mean.astype(np.float32))


class _Side:
    """Rows of K families or kinds, one after the other and about their own means."""

    def __init__(self, families: Families) -> None:
        self.names = list(families)
        self._own = np.array([rows.mean for rows in families.values()])  # (K, D)
        about = (rows.x - own for rows, own in zip(families.values(), self._own, strict=True))
        self._x = np.concatenate(list(about))  # (N, D)
        counts = [len(rows.x) for rows in families.values()]
        self._of = np.repeat(np.eye(len(counts)), counts, axis=1)  # (K, N)

    def moments(
        self, used: np.ndarray, weights: Weights | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weighted mean over families of their means (D,) and of the scatters about these (D, D).

        Of the rows that are `used` (N,) of bool. The scatters of all families are one product,

            Σ v_k/n_k Σ (x − m_k)(x − m_k)ᵀ = Σ v_k/n_k Σ x xᵀ − Σ v_k m_k m_kᵀ
        """
        v = np.array([1.0 if weights is None else float(weights[name]) for name in self.names])
        v /= v.sum()
        each = self._of * used
        each /= each.sum(axis=1, keepdims=True)  # 1/n_k at the rows of k
        means = each @ self._x
        rows = self._x * np.sqrt(v @ each)[:, None]
        return v @ (self._own + means), rows.T @ rows - (means.T * v) @ means


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
