"""How sure a figure is asked to be: the settings of every bootstrap over goals.

    SamplingSpec(level=0.95, resamples=2000, seed=0)

A configuration that takes intervals holds one as its `sampling`, so that the three numbers are
written down and checked in one place. `flat` gives the plain values of such a configuration in the
form in which runs store them, with the three beside its own. Not here: the resampling itself
(`care.statistics.intervals`, `care.statistics.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from care.errors import UsageError
from care.statistics.bootstrap import Resamples, bootstrap_mean, bootstrap_ratio, draw
from care.statistics.correlation import spearman_bootstrap
from care.statistics.intervals import Interval


@dataclass(frozen=True)
class SamplingSpec:
    """Settings of a bootstrap."""

    level: float = 0.95
    """Confidence level of all intervals."""

    resamples: int = 2000
    """Bootstrap resamples (of goals)."""

    seed: int = 0
    """Seed of the bootstrap, and of whatever else is drawn."""

    def __post_init__(self) -> None:
        if isinstance(self.resamples, bool) or not isinstance(self.resamples, Integral):
            raise UsageError(f"resamples must be a number, got {self.resamples!r:.40}.")
        if self.resamples < 1:
            raise UsageError(f"resamples must be at least 1, got {self.resamples}.")
        if not 0.0 < self.level < 1.0:
            raise UsageError(f"level must lie between 0 and 1, got {self.level}.")

    def mean(self, values: ArrayLike, goals: ArrayLike) -> Interval:
        """Mean of one value an example (N,), resampled by goal."""
        return bootstrap_mean(values, goals, n=self.resamples, seed=self.seed, level=self.level)

    def ratio(self, part: ArrayLike, whole: ArrayLike, goals: ArrayLike) -> Interval:
        """Mean of `part` over that of `whole` (N,), both resampled together by goal."""
        return bootstrap_ratio(part, whole, goals, self.resamples, self.seed, self.level)

    def spearman(self, x: ArrayLike, y: ArrayLike) -> Interval:
        """Rank correlation of two lists over the same units, which are resampled."""
        return spearman_bootstrap(x, y, n=self.resamples, seed=self.seed, level=self.level)

    def draws(self, goals: int) -> NDArray[np.int64]:
        """How often each of G goals is drawn (R, G)."""
        return draw(goals, self.resamples, np.random.default_rng(self.seed))

    def drawings(self, goals: Sequence[object]) -> Resamples:
        """Drawings of the different `goals`, for figures that aren't plain means."""
        return Resamples(goals, self.resamples, self.seed, self.level)


def flat(config: Any) -> dict[str, Any]:
    """The fields of a configuration, those of its `sampling` in the place of that."""
    facts = asdict(config)
    return facts | facts.pop("sampling")
