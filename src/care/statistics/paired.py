"""Paired comparisons whose examples share goals: difference, interval, test, non-inferiority.

Examples with the same goal (one query in several wordings or beside several pictures) succeed and
fail together, so goals, not examples, are what was sampled. With d_i = after_i − before_i, cluster
sums s_g = Σ_{i in g} d_i and sizes n_g, N = Σ n_g:

    difference  d = Σ s_g / N
    interval    percentiles of Σ w_g s_g / Σ w_g n_g            (`care.statistics.bootstrap`)
    robust SE   sqrt( G/(G−1) · Σ (s_g − n_g d)² ) / N               (CR1; Liang and Zeger 1986)
    test        sign flips of whole goals                       (`care.statistics.sign_flips`)

Where every goal has one example the test is McNemar's exact one, and where every goal changed by
the same amount a bootstrap would say "no uncertainty": the limits are then those of Wilson for the
share of goals that change otherwise, none of which was seen.

Not here: unpaired rates (`statistics`), and how large a difference could be found (`power`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from care.errors import UsageError
from care.statistics.bootstrap import goal_sums, number_goals, ratio_limits
from care.statistics.distributions import normal_quantile
from care.statistics.intervals import Interval, wilson
from care.statistics.sign_flips import MANY, exact_sign_flip_p

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How much a rate changes, with goals as the unit of sampling."""

    interval: Interval
    """after − before, with the cluster bootstrap's limits."""
    se: float
    """Cluster-robust standard error; 0 where every goal changed by the same amount."""
    clusters: int
    """Number of goals."""
    p: float
    """Two-sided sign-flip test over goals."""


@dataclass(frozen=True)
class NonInferiority:
    """Whether a rate was shown to fall by less than a margin."""

    margin: float
    """Largest loss that is accepted."""
    low: float
    """Lower limit of after − before; above −margin when the claim holds."""
    shown: bool
    """The whole interval lies above −margin. False means "not shown", not "worse"."""


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    n: int = 4000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """The change of a rate over N paired examples, with `groups` (N,) as the goals they share.

    Parameters:
        before, after: outcomes (N,), true or false, or scores; of the same examples in one order.
        groups: a label for each example; default each its own.
        n: resamples.
        level: of the interval.

    Raises UsageError for unequal lengths, values that aren't finite, or fewer than two goals.
    """
    sums, sizes = _clusters(before, after, groups)
    total, count = sizes.sum(), len(sizes)
    rate = float(sums.sum() / total)
    rng = np.random.default_rng(seed)
    residual = sums - sizes * rate
    se = float(np.sqrt(count / (count - 1) * (residual**2).sum()) / total)
    if np.allclose(residual, 0.0, atol=1e-12):
        # Wilson's limit for 0 of G: goals that would have changed otherwise and weren't drawn.
        unseen = wilson(0, count, level).high
        low, high = max(-1.0, rate - unseen), min(1.0, rate + unseen)
        se = 0.0
    elif count > MANY:
        half = normal_quantile(0.5 + level / 2.0) * se
        low, high = rate - half, rate + half
    else:
        low, high = ratio_limits(sums, sizes, n, rng, level)
    interval = Interval(rate, min(rate, low), max(rate, high), int(total))
    return Difference(interval, se, count, exact_sign_flip_p(sums, rng))


def non_inferior(difference: Difference, margin: float) -> NonInferiority:
    """Whether `difference` rules out a loss of `margin` or more.

    A claim of "no loss" needs this, not a p-value above 0.05: that also comes from few examples.
    Raises UsageError unless 0 < margin < 1.
    """
    if not 0.0 < margin < 1.0:
        raise UsageError(f"The margin must lie between 0 and 1, got {margin}; 0.02 is 2 points.")
    low = difference.interval.low
    return NonInferiority(margin, low, low > -margin)


def cluster_rate(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    n: int = 4000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """A rate (or mean score) of N examples, with limits that resample whole goals.

    Beside Wilson's limits, which take every example for a goal of its own. Where all goals agree
    the limits are Wilson's for so many goals. Raises as `paired_difference`.
    """
    data = np.asarray(values, dtype=np.float64)
    sums, sizes = _clusters(np.zeros_like(data), data, groups)
    rate = float(sums.sum() / sizes.sum())
    if rate in (0.0, 1.0):
        bound = wilson(round(rate) * len(sizes), len(sizes), level)
        return Interval(rate, bound.low, bound.high, len(data))
    found = paired_difference(np.zeros_like(data), data, groups, n=n, seed=seed, level=level)
    low, high = found.interval.low, found.interval.high
    return Interval(rate, max(0.0, low), min(1.0, high), len(data))


def _clusters(before: ArrayLike, after: ArrayLike, groups: ArrayLike | None) -> tuple[Array, Array]:
    """Sums of after − before and numbers of examples, (G,) each."""
    first, second = (np.asarray(values, dtype=np.float64) for values in (before, after))
    if first.ndim != 1 or first.shape != second.shape:
        raise UsageError(
            f"Paired values must be two lists of one length, got {first.shape} and {second.shape}."
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UsageError("Paired values must be finite; leave failed examples out of both sides.")
    goals = number_goals(groups, len(first), "pairs")
    sizes = np.bincount(goals).astype(np.float64)
    if len(sizes) < 2:
        raise UsageError(f"A comparison needs at least 2 goals, got {len(sizes)}; add examples.")
    return goal_sums(second - first, goals), sizes
