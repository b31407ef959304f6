"""Goals drawn with replacement: the bootstrap of figures that aren't plain means.

A curve, an area under it and a rank correlation are functions of means over examples. `Resamples`
gives these means for the examples as they are (row 0) and for R drawings of goals, the same
drawings for every array, so that a difference of two figures stays paired:

    mean_r = Σ_g w_rg Σ_{i in g} x_i / Σ_g w_rg n_g,    w_0g = 1,  w_r ~ multinomial(G; 1/G … 1/G)

Not here: the interval of a single mean (`care.statistics.intervals.bootstrap_mean`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from care.errors import FitError, UsageError
from care.statistics.intervals import Interval


class Resamples:
    """R drawings of G goals, to be applied to any arrays over examples with these goals."""

    def __init__(
        self, goals: Sequence[Any], n: int = 1000, seed: int = 0, level: float = 0.95
    ) -> None:
        """Draw `n` times from the different `goals`.

        Raises UsageError for fewer than two goals, a level outside (0, 1) or `n` below 1.
        """
        if not 0.0 < level < 1.0 or n < 1:
            raise UsageError(f"a bootstrap needs 0 < level < 1 and n >= 1, got {level} and {n}")
        names = sorted({str(goal) for goal in goals})
        if len(names) < 2:
            raise UsageError(
                f"an interval needs examples with at least 2 different goals, got {len(names)}"
            )
        self.level = level
        self._index = {name: row for row, name in enumerate(names)}
        drawn = np.random.default_rng(seed).multinomial(
            len(names), np.full(len(names), 1.0 / len(names)), size=n
        )
        self._weights = np.vstack([np.ones(len(names)), drawn])

    def means(self, values: Any, goals: Sequence[Any]) -> np.ndarray:
        """Means (R + 1, …) over the last axis of `values` (…, N), whose examples have `goals` (N,).

        NaN in drawings that hold none of the goals. Raises UsageError for a goal that wasn't among
        those drawn from, FitError for values that aren't finite.
        """
        data = np.asarray(values, dtype=np.float64)
        if data.ndim < 1 or data.shape[-1] != len(goals):
            raise UsageError(f"got values of shape {data.shape} for {len(goals)} examples")
        if not np.isfinite(data).all():
            bad = int((~np.isfinite(data)).sum())
            raise FitError(f"{bad} of {data.size} values aren't finite; leave those examples out")
        if unknown := [goal for goal in goals if str(goal) not in self._index]:
            raise UsageError(f"goal {unknown[0]!r} isn't among those that are resampled")
        member = np.zeros((len(goals), len(self._index)))
        member[np.arange(len(goals)), [self._index[str(goal)] for goal in goals]] = 1.0
        sums = np.tensordot(self._weights, data @ member, axes=(1, -1))  # (R + 1, …)
        counts = (self._weights @ member.sum(axis=0)).reshape(-1, *[1] * (data.ndim - 1))
        return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0.0)

    def interval(self, figures: Any, n: int) -> Interval:
        """The figure of row 0 with percentile limits over the other rows of `figures` (R + 1,).

        `n` is the number of observations to state. Rows in which the figure is undefined (NaN) are
        left out. The limits are widened to hold the figure, since resampling adds noise, which
        pulls e.g. a correlation towards 0. Raises FitError if row 0 or all others are undefined.
        """
        data = np.asarray(figures, dtype=np.float64)
        drawn = data[1:][np.isfinite(data[1:])]
        if not np.isfinite(data[0]) or not len(drawn):
            raise FitError("a figure is undefined, so it has no interval; are all values equal?")
        tail = (1.0 - self.level) / 2.0
        low, high = np.quantile(drawn, [tail, 1.0 - tail])
        rate = float(data[0])
        return Interval(rate, min(rate, float(low)), max(rate, float(high)), n)
