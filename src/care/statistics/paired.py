"""Paired comparisons whose examples share goals: difference, interval, test, non-inferiority.

Examples with the same goal (one query in several wordings or beside several pictures) succeed and
fail together, so goals, not examples, are what was sampled. With d_i = after_i − before_i, cluster
sums s_g = Σ_{i in g} d_i and sizes n_g, N = Σ n_g:

    difference  d = Σ s_g / N
    interval    percentiles of Σ w_g s_g / Σ w_g n_g,  w ~ multinomial(G; 1/G … 1/G)
    robust SE   sqrt( G/(G−1) · Σ (s_g − n_g d)² ) / N               (CR1; Liang and Zeger 1986)
    test        sign flips: P( |Σ ±s_g| ≥ |Σ s_g| ), the same sign for a whole goal

Where every goal has one example the test is McNemar's exact one, and where every goal changed by
the same amount a bootstrap would say "no uncertainty": the limits are then those of Wilson for the
share of goals that change otherwise, none of which was seen.

Not here: unpaired rates (`statistics`), and how large a difference could be found (`power`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.stats import binom, norm

from care.errors import UsageError
from care.statistics.intervals import Interval, wilson

EXACT = 14
"""Most goals with a change for which all sign flips are counted; more are drawn."""
FLIPS = 20_000
"""Sign flips drawn otherwise."""
MANY = 4000
"""Goals above which drawing is left out: the normal limits are those of a bootstrap by then."""


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
    before: Any,
    after: Any,
    groups: Sequence[Any] | np.ndarray | None = None,
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
        half = float(norm.ppf(0.5 + level / 2.0)) * se
        low, high = rate - half, rate + half
    else:
        drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=n)
        tail = (1.0 - level) / 2.0
        low, high = np.quantile((drawn @ sums) / (drawn @ sizes), [tail, 1.0 - tail])
    interval = Interval(rate, min(rate, float(low)), max(rate, float(high)), int(total))
    return Difference(interval, se, count, _sign_flips(sums, rng))


def non_inferior(difference: Difference, margin: float) -> NonInferiority:
    """Whether `difference` rules out a loss of `margin` or more.

    A claim of "no loss" needs this, not a p-value above 0.05: that also comes from few examples.
    Raises UsageError unless 0 < margin < 1.
    """
    if not 0.0 < margin < 1.0:
        raise UsageError(f"the margin must lie between 0 and 1, got {margin}; 0.02 is 2 points")
    low = difference.interval.low
    return NonInferiority(margin, low, low > -margin)


def cluster_rate(
    values: Any,
    groups: Sequence[Any] | np.ndarray | None = None,
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


def _clusters(
    before: Any, after: Any, groups: Sequence[Any] | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of after − before and numbers of examples, (G,) each."""
    first, second = (np.asarray(values, dtype=np.float64) for values in (before, after))
    if first.ndim != 1 or first.shape != second.shape:
        raise UsageError(
            f"paired values must be two lists of one length, got {first.shape} and {second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UsageError("paired values must be finite; leave failed examples out of both sides")
    labels = np.arange(len(first)) if groups is None else np.asarray(groups)
    if labels.shape != first.shape:
        raise UsageError(f"got {len(first)} pairs but groups of shape {labels.shape}")
    inverse = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(inverse).astype(np.float64)
    if len(sizes) < 2:
        raise UsageError(f"a comparison needs at least 2 goals, got {len(sizes)}; add examples")
    return np.bincount(inverse, weights=second - first), sizes


def _sign_flips(sums: np.ndarray, rng: np.random.Generator) -> float:
    """Two-sided p; exact for singletons and for few goals, otherwise drawn."""
    moved = sums[np.abs(sums) > 1e-12]
    if not len(moved):
        return 1.0
    if np.allclose(np.abs(moved), abs(moved[0])):
        fewer = int(min((moved > 0).sum(), (moved < 0).sum()))
        return min(1.0, 2.0 * float(binom.cdf(fewer, len(moved), 0.5)))
    observed = abs(moved.sum()) - 1e-9
    if len(moved) <= EXACT:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(moved))))
        return float((np.abs(signs @ moved) >= observed).mean())
    if len(moved) > MANY:
        return min(1.0, 2.0 * float(norm.sf(abs(moved.sum()) / np.sqrt((moved**2).sum()))))
    signs = rng.integers(0, 2, size=(FLIPS, len(moved)), dtype=np.int8) * 2 - 1
    return float((1 + (np.abs(signs @ moved) >= observed).sum()) / (1 + FLIPS))
