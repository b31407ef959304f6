"""Spearman's rank correlation ρ, of many rows at once, and its interval over pairs.

The interval is that of a percentile bootstrap which draws pairs with replacement; pairs that share
goals are the business of `bootstrap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from care.errors import UsageError
from care.statistics.bootstrap import percentiles
from care.statistics.distributions import ranks
from care.statistics.intervals import Interval, finite
from care.typed import WHEN_SET, Change, Count, in_order

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """A rank correlation with its confidence limits."""

    rho: Change
    """Spearman's ρ."""
    low: Change
    """Lower limit."""
    high: Change
    """Upper limit."""
    n: Annotated[Count, WHEN_SET] = 0
    """Number of pairs; 0, and not written, where it isn't told."""

    @classmethod
    def of(cls, interval: Interval) -> Correlation:
        """The same figures under the name of a correlation."""
        return cls(interval.rate, interval.low, interval.high, interval.n)

    def check(self) -> None:
        """Misfit unless the limits are in order; a resampled one may lie beyond the estimate."""
        in_order(self)


def rank_correlations(x: Array, y: Array) -> Array:
    """Spearman's ρ of each row of (R, N) and (R, N); NaN where one of them is constant."""
    left, right = ranks(x), ranks(y)
    left -= left.mean(axis=1, keepdims=True)
    right -= right.mean(axis=1, keepdims=True)
    scale = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    return (left * right).sum(axis=1) / np.where(scale > 0.0, scale, np.nan)


def spearman_bootstrap(
    x: ArrayLike, y: ArrayLike, n: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Spearman's ρ of two arrays (N,) with a percentile bootstrap interval over pairs.

    Resamples in which either side is constant have no ρ and are left out. Raises UsageError for
    fewer than three pairs or a constant side.
    """
    first, second = finite(x, "x"), finite(y, "y")
    if first.shape != second.shape or len(first) < 3:
        raise UsageError(
            f"Rank correlation needs at least 3 pairs, got {len(first)} and {len(second)} values."
        )
    if np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        raise UsageError("Rank correlation is undefined where all values of one side are equal.")
    picks = np.random.default_rng(seed).integers(0, len(first), size=(n, len(first)))
    low, high = percentiles(rank_correlations(first[picks], second[picks]), level)
    return Interval(float(rank_correlations(first[None], second[None])[0]), low, high, len(first))
