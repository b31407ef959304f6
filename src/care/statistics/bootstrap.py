"""Goals drawn with replacement: the one bootstrap, of means, of shares and of any other figure.

Examples with the same goal succeed and fail together, so goals, not examples, are what was sampled.
A figure is a ratio of sums: with s_g and t_g the sums over the examples of goal g of two values (of
the values and of ones, where it is a mean),

    figure    Σ_g s_g / Σ_g t_g
    drawings  Σ_g w_rg s_g / Σ_g w_rg t_g,    w_r ~ multinomial(G; 1/G … 1/G),  r = 1 … R
    interval  percentiles of the drawings

`Resamples` gives drawings of many means at once, the same ones for every array, for figures that
are functions of means (a curve, an area under it); a difference of two such figures stays paired.
Not here: rank correlations of examples without goals (`correlation`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from care.errors import FitError, UsageError
from care.statistics.intervals import Interval, check_level, finite

Array = NDArray[np.float64]


def draw(goals: int, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How often each of G goals is in each of `n` drawings of G goals (n, G)."""
    return rng.multinomial(goals, np.full(goals, 1.0 / goals), size=n)


def percentiles(drawings: Array, level: float) -> tuple[float, float]:
    """Limits between which `level` of the drawings lie; undefined ones (NaN) are left out."""
    tail = (1.0 - check_level(level)) / 2.0
    low, high = np.nanquantile(drawings, [tail, 1.0 - tail])
    return float(low), float(high)


def ratio_limits(
    sums: Array, sizes: Array, n: int, rng: np.random.Generator, level: float
) -> tuple[float, float]:
    """Limits of Σ s_g / Σ t_g from `sums` and `sizes` (G,) of each goal, by `n` drawings."""
    drawn = draw(len(sums), n, rng)
    return percentiles((drawn @ sums) / (drawn @ sizes), level)


def number_goals(groups: ArrayLike | None, count: int, what: str = "values") -> NDArray[np.intp]:
    """Each example's goal as a number from 0 (N,), in the order of the names.

    Without `groups` each of the `count` examples has a goal of its own. UsageError, which says
    `what` they are, unless there are as many labels as examples.
    """
    labels = np.arange(count) if groups is None else np.asarray(groups)
    if labels.shape != (count,):
        raise UsageError(f"Got {count} {what} but groups of shape {labels.shape}.")
    return np.unique(labels, return_inverse=True)[1]


def goal_sums(values: Array, goals: NDArray[np.intp]) -> Array:
    """Sums (G,) of the values (N,) of each numbered goal."""
    return np.asarray(np.bincount(goals, weights=values), dtype=np.float64)


def bootstrap_ratio(
    part: ArrayLike,
    whole: ArrayLike,
    groups: ArrayLike | None = None,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of `part` (N,) as a share of that of `whole` (N,), with an interval over whole groups.

    Parameters:
        part, whole: finite numbers of the same examples.
        groups: a label for each value (N,), such as the goal it belongs to; default each its own.
        n: drawings.

    Raises:
        UsageError: not one-dimensional and finite, or fewer than two groups (one group says
            nothing about the spread).
    """
    first, second = finite(part, "values"), finite(whole, "values")
    goals = number_goals(groups, len(first))
    sums, sizes = (goal_sums(values, goals) for values in (first, second))
    if len(sizes) < 2:
        raise UsageError(f"An interval needs at least 2 groups, got {len(sizes)}; add examples.")
    low, high = ratio_limits(sums, sizes, n, np.random.default_rng(seed), level)
    return Interval(float(first.mean() / second.mean()), low, high, len(first))


def bootstrap_mean(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of `values` (N,) with an interval over whole groups; see `bootstrap_ratio`."""
    return bootstrap_ratio(values, np.ones(np.shape(values)), groups, n, seed, level)


class Resamples:
    """R drawings of G goals, to be applied to any arrays over examples with these goals."""

    def __init__(
        self, goals: Sequence[object], n: int = 1000, seed: int = 0, level: float = 0.95
    ) -> None:
        """Draw `n` times from the different `goals`.

        Raises UsageError for fewer than two goals, a level outside (0, 1) or `n` below 1.
        """
        if not 0.0 < level < 1.0 or n < 1:
            raise UsageError(f"A bootstrap needs 0 < level < 1 and n >= 1, got {level} and {n}.")
        names = sorted({str(goal) for goal in goals})
        if len(names) < 2:
            raise UsageError(
                f"An interval needs examples with at least 2 different goals, got {len(names)}."
            )
        self.level = level
        self._index = {name: row for row, name in enumerate(names)}
        drawn = draw(len(names), n, np.random.default_rng(seed))
        self._weights = np.vstack([np.ones(len(names)), drawn])

    def means(self, values: ArrayLike, goals: Sequence[object]) -> Array:
        """Means (R + 1, …) over the last axis of `values` (…, N), whose examples have `goals` (N,).

        Row 0 is of the examples as they are, the others are of the drawings; NaN in those that hold
        none of the goals. Raises UsageError for a goal that wasn't among those drawn from, FitError
        for values that aren't finite.
        """
        data = np.asarray(values, dtype=np.float64)
        if data.ndim < 1 or data.shape[-1] != len(goals):
            raise UsageError(f"Got values of shape {data.shape} for {len(goals)} examples.")
        if not np.isfinite(data).all():
            bad = int((~np.isfinite(data)).sum())
            raise FitError(f"{bad} of {data.size} values aren't finite; leave those examples out.")
        if unknown := [goal for goal in goals if str(goal) not in self._index]:
            raise UsageError(f"The goal {unknown[0]!r} isn't among those that are resampled.")
        member = np.zeros((len(goals), len(self._index)))
        member[np.arange(len(goals)), [self._index[str(goal)] for goal in goals]] = 1.0
        sums = np.tensordot(self._weights, data @ member, axes=(1, -1))  # (R + 1, …)
        counts = (self._weights @ member.sum(axis=0)).reshape(-1, *[1] * (data.ndim - 1))
        return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0.0)

    def interval(self, figures: ArrayLike, n: int) -> Interval:
        """The figure of row 0 with percentile limits over the other rows of `figures` (R + 1,).

        `n` is the number of observations to state. Rows in which the figure is undefined (NaN) are
        left out. The limits are widened to hold the figure, since resampling adds noise, which
        pulls e.g. a correlation towards 0. Raises FitError if row 0 or all others are undefined.
        """
        data = np.asarray(figures, dtype=np.float64)
        drawings = data[1:][np.isfinite(data[1:])]
        if not np.isfinite(data[0]) or not len(drawings):
            raise FitError("A figure is undefined, so it has no interval; are all values equal?")
        rate, (low, high) = float(data[0]), percentiles(drawings, self.level)
        return Interval(rate, min(rate, low), max(rate, high), n)
