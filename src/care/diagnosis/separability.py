"""How far apart malicious and benign activations lie at one site.

Three figures over pooled rows, one row for each example: the silhouette, the class separation and
the Mahalanobis distance. They say that a class can be read off there, not that the site drives the
behaviour; compare them with the causal effects of `care.diagnosis.site_scan`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import solve
from sklearn.metrics import silhouette_score

from care.defenses.repair.eigensolver import benign_solve
from care.errors import FitError
from care.statistics.moments import Moments, as_rows, ledoit_wolf

_MIN_RIDGE = 1e-3


class Separability(NamedTuple):
    """Separability of two classes at one site."""

    silhouette: float
    """Mean silhouette under the Euclidean distance, in [−1, 1]."""
    class_separation: float
    """‖μ_m − μ_b‖ over the mean distance of a row to its own class mean."""
    mahalanobis: float
    """√(δᵀ Σ⁻¹ δ), δ = μ_m − μ_b, Σ the pooled within-class covariance after Ledoit–Wolf
    shrinkage. In sample, hence large by chance when rows are few: compare layers, not studies."""


def separability(malicious: Any, benign: Any) -> Separability:
    """Separability of malicious (N, D) and benign (M, D) rows.

    Raises:
        FitError: fewer than two rows in a class, different widths, NaN, or no variance at all.
    """
    first, second = as_rows(malicious, "malicious rows"), as_rows(benign, "benign rows")
    if min(len(first), len(second)) < 2 or first.shape[1] != second.shape[1]:
        raise FitError(
            f"separability needs at least 2 rows in each class and one width, got "
            f"{first.shape} and {second.shape}"
        )
    gap = first.mean(axis=0) - second.mean(axis=0)
    within = np.concatenate([first - first.mean(axis=0), second - second.mean(axis=0)])
    spread = float(np.linalg.norm(within, axis=1).mean())
    if spread == 0.0:
        raise FitError("rows within each class are all equal; are the activations constant?")
    labels = np.repeat([1, 0], [len(first), len(second)])
    return Separability(
        silhouette=float(silhouette_score(np.concatenate([first, second]), labels)),
        class_separation=float(np.linalg.norm(gap)) / spread,
        mahalanobis=_mahalanobis(within, gap),
    )


def _mahalanobis(within: np.ndarray, gap: np.ndarray) -> float:
    n, width = within.shape
    moments = Moments(width).fit(within)
    spread = moments.spread()
    rho = max(ledoit_wolf(spread), _MIN_RIDGE)
    ridge = rho * spread.trace / width
    if n < width:
        turned = benign_solve(within, gap, ridge, 1.0 - rho)
    else:
        covariance = (1.0 - rho) * moments.covariance()
        covariance[np.diag_indices(width)] += ridge
        turned = solve(covariance, gap, assume_a="pos")
    return float(np.sqrt(max(0.0, gap @ turned)))
