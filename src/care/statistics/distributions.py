"""Quantiles and tails of distributions, and ranks: scipy's figures as plain floats and arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]


def normal_quantile(share: float) -> float:
    """The z below which a standard normal value lies with this probability."""
    return float(stats.norm.ppf(share))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def normal_tail(z: float) -> float:
    """The probability of a standard normal value above z."""
    return float(stats.norm.sf(z))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def binomial_two_sided(k: int, n: int) -> float:
    """Two-sided p of k heads and n − k tails, k the fewer, of a fair coin."""
    share = stats.binom.cdf(k, n, 0.5)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return min(1.0, 2.0 * float(share))


def ranks(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks within each row of (R, N), from 1; equal values share their mean rank."""
    found = stats.rankdata(rows, axis=1)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return np.asarray(found, dtype=np.float64)
