"""Intervals and tests for rates of examples that are independent: Wilson, exact McNemar, Holm.

Everything is two-sided and takes plain arrays. Rates are paired by example. Not here: examples that
share a goal (`bootstrap`, `paired`), the errors of a judge (`judge_error`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from care.errors import UsageError
from care.statistics.distributions import binomial_two_sided, normal_quantile
from care.typed import WHEN_SET, Count, inside


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
        raise UsageError(f"A rate needs 0 <= k <= n and n >= 1, got k={k} and n={n}.")
    z = normal_quantile(0.5 + check_level(level) / 2.0)
    rate = k / n
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # At the ends the formula gives 0 and 1 exactly, up to rounding.
    low = 0.0 if k == 0 else max(0.0, float(centre - half))
    high = 1.0 if k == n else min(1.0, float(centre + half))
    return Interval(rate, low, high, int(n))


def mcnemar_exact(before: ArrayLike, after: ArrayLike) -> McNemar:
    """Exact (binomial) McNemar test of two boolean arrays (N,) over the same examples."""
    first, second = (np.asarray(values, dtype=bool) for values in (before, after))
    if first.ndim != 1 or first.shape != second.shape:
        raise UsageError(
            f"Paired outcomes must be two arrays of one length, got {first.shape} and "
            f"{second.shape}."
        )
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    return McNemar(b, c, binomial_two_sided(min(b, c), b + c) if b + c else 1.0)


def holm(pvalues: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjusted p-values, in the order given (m,).

    Source: Holm (1979). Controls the family-wise error under any dependence.
    """
    raw = np.asarray(pvalues, dtype=np.float64)
    if raw.ndim != 1 or not ((raw >= 0.0) & (raw <= 1.0)).all():
        raise UsageError(f"P-values must lie in [0, 1], got {raw.tolist()}.")
    order = np.argsort(raw, kind="stable")
    factors = len(raw) - np.arange(len(raw))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(raw[order] * factors))
    return adjusted


def difference(first: Interval, second: Interval) -> Interval:
    """`first` − `second` of two independent estimates; its n is the smaller one.

    Its limits are recovered from theirs (MOVER). Source: Zou and Donner (2008).
    """
    rate = first.rate - second.rate
    below = float(np.hypot(first.rate - first.low, second.high - second.rate))
    above = float(np.hypot(first.high - first.rate, second.rate - second.low))
    return Interval(rate, rate - below, rate + above, min(first.n, second.n))


def check_level(level: float) -> float:
    """The confidence level; UsageError unless it lies strictly between 0 and 1."""
    if not 0.0 < level < 1.0:
        raise UsageError(f"The confidence level must lie between 0 and 1, got {level}.")
    return level


def finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """The values (N,); UsageError, which says their name, unless there are some, all finite."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) == 0 or not np.isfinite(data).all():
        raise UsageError(
            f"{name} must be a non-empty list of finite numbers, got shape {data.shape} with "
            f"{int((~np.isfinite(data)).sum())} that aren't finite."
        )
    return data
