"""Intervals and paired tests for rates: Wilson, exact McNemar, Holm, bootstrap.

Everything is two-sided, deterministic under a seed, and takes plain arrays. Rates are paired by
example (McNemar) and examples may share a goal (the bootstrap resamples whole groups). Nothing
here corrects for the errors of a judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
from scipy.stats import binom, norm, rankdata

from care.errors import UsageError
from care.typed import WHEN_SET, Change, Count, in_order, inside


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence limits, in the unit that the place says."""

    rate: float
    """The point estimate: a share, a mean or a coefficient."""
    low: float
    """Lower limit."""
    high: float
    """Upper limit."""
    n: Annotated[Count, WHEN_SET] = 0
    """Number of observations; 0, and not written, where it isn't told."""

    def check(self) -> None:
        """Misfit unless the estimate lies between its limits."""
        inside(self)


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


class McNemar(NamedTuple):
    """Exact McNemar test of paired outcomes."""

    b: int
    """True before, false after."""
    c: int
    """False before, true after."""
    p: float
    """Two-sided p-value; 1 when no pair differs."""


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of k successes in n trials, without continuity correction.

    Source: Wilson (1927). Raises UsageError unless 0 <= k <= n and n >= 1.
    """
    if n < 1 or not 0 <= k <= n:
        raise UsageError(f"a rate needs 0 <= k <= n and n >= 1, got k={k} and n={n}")
    z = float(norm.ppf(0.5 + _checked_level(level) / 2.0))
    rate = k / n
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # At the ends the formula gives 0 and 1 exactly, up to rounding.
    low = 0.0 if k == 0 else max(0.0, float(centre - half))
    high = 1.0 if k == n else min(1.0, float(centre + half))
    return Interval(rate, low, high, int(n))


def mcnemar_exact(before: Any, after: Any) -> McNemar:
    """Exact (binomial) McNemar test of two boolean arrays (N,) over the same examples."""
    first, second = (np.asarray(values, dtype=bool) for values in (before, after))
    if first.ndim != 1 or first.shape != second.shape:
        raise UsageError(
            f"paired outcomes must be two arrays of one length, got {first.shape} and "
            f"{second.shape}"
        )
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    p = min(1.0, 2.0 * float(binom.cdf(min(b, c), b + c, 0.5))) if b + c else 1.0
    return McNemar(b, c, p)


def holm(pvalues: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values, in the order given (m,).

    Source: Holm (1979). Controls the family-wise error under any dependence.
    """
    raw = np.asarray(pvalues, dtype=np.float64)
    if raw.ndim != 1 or not ((raw >= 0.0) & (raw <= 1.0)).all():
        raise UsageError(f"p-values must lie in [0, 1], got {raw.tolist()}")
    order = np.argsort(raw, kind="stable")
    factors = len(raw) - np.arange(len(raw))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(raw[order] * factors))
    return adjusted


def bootstrap_mean(
    values: Any,
    groups: Sequence[Any] | np.ndarray | None = None,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of `values` (N,) with a percentile bootstrap interval over whole groups.

    Parameters:
        values: finite numbers.
        groups: a label for each value (N,), such as the goal it belongs to; default each its own.
        n: resamples.

    Raises:
        UsageError: not one-dimensional and finite, or fewer than two groups (one group says
            nothing about the spread).
    """
    data = _finite(values, "values")
    labels = np.arange(len(data)) if groups is None else np.asarray(groups)
    if labels.shape != data.shape:
        raise UsageError(f"got {len(data)} values but groups of shape {labels.shape}")
    inverse = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(inverse).astype(np.float64)
    sums = np.bincount(inverse, weights=data)
    if len(sizes) < 2:
        raise UsageError(f"an interval needs at least 2 groups, got {len(sizes)}; add examples")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1.0 / len(sizes)), size=n)
    low, high = _limits((drawn @ sums) / (drawn @ sizes), level)
    return Interval(float(data.mean()), low, high, len(data))


def difference(first: Interval, second: Interval) -> Interval:
    """`first` − `second` of two independent estimates; its n is the smaller one.

    Its limits are recovered from theirs (MOVER). Source: Zou and Donner (2008).
    """
    rate = first.rate - second.rate
    below = float(np.hypot(first.rate - first.low, second.high - second.rate))
    above = float(np.hypot(first.high - first.rate, second.rate - second.low))
    return Interval(rate, rate - below, rate + above, min(first.n, second.n))


def spearman_bootstrap(
    x: Any, y: Any, n: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Spearman's ρ of two arrays (N,) with a percentile bootstrap interval over pairs.

    Resamples in which either side is constant have no ρ and are left out. Raises UsageError for
    fewer than three pairs or a constant side.
    """
    first, second = _finite(x, "x"), _finite(y, "y")
    if first.shape != second.shape or len(first) < 3:
        raise UsageError(
            f"rank correlation needs at least 3 pairs, got {len(first)} and {len(second)} values"
        )
    if np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        raise UsageError("rank correlation is undefined when all values of one side are equal")
    picks = np.random.default_rng(seed).integers(0, len(first), size=(n, len(first)))
    low, high = _limits(rank_correlations(first[picks], second[picks]), level)
    return Interval(float(rank_correlations(first[None], second[None])[0]), low, high, len(first))


def rank_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's ρ of each row of (R, N) and (R, N); NaN where one of them is constant."""
    left, right = rankdata(x, axis=1), rankdata(y, axis=1)
    left -= left.mean(axis=1, keepdims=True)
    right -= right.mean(axis=1, keepdims=True)
    scale = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    return (left * right).sum(axis=1) / np.where(scale > 0.0, scale, np.nan)


def _limits(resampled: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1.0 - _checked_level(level)) / 2.0
    low, high = np.nanquantile(resampled, [tail, 1.0 - tail])
    return float(low), float(high)


def _checked_level(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise UsageError(f"the confidence level must lie between 0 and 1, got {level}")
    return level


def _finite(values: Any, name: str) -> np.ndarray:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) == 0 or not np.isfinite(data).all():
        raise UsageError(
            f"{name} must be a non-empty list of finite numbers, got shape {data.shape} with "
            f"{int((~np.isfinite(data)).sum())} that aren't finite"
        )
    return data
