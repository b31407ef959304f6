"""Does a ranking of sites or neurons explain the behaviour? Curves against random rankings.

Units are removed (ablated) in sets, never one at a time, and a metric m is measured. M is all of
the N units, ∅ none of them, C the first k of the ranking:

    faithfulness   F(C) = (m(C) − m(∅)) / (m(M) − m(∅)),   everything outside C removed
    completeness   F(M \\ C),                               C removed; near 0 if nothing is missing
    necessity      m(M \\ C)                                in the metric's own unit

    CPR = ∫₀¹ F dx,    CMD = ∫₀¹ |1 − F| dx,    x = k / N   (trapezoids)

F says how much of the behaviour the units of C are enough for, F(M \\ C) how much is left without
them. A good ranking has a high CPR, a low CMD and a low area under F(M \\ C). Any set of a certain
size does something, hence the comparison with random rankings, which are shuffled among units of
similar weight if weights (such as activation norms) are given. Sources: Wang et al. 2023 (arXiv
2211.00593), Mueller et al. 2025 (MIB, arXiv 2504.13151), whose areas start at the smallest size and
not at F(∅) = 0. Not here: how units are ranked and removed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from scipy.stats import t as student

from care.errors import FitError, UsageError
from care.runs.settings import require
from care.statistics.bootstrap import Resamples
from care.statistics.intervals import Interval
from care.statistics.sampling import SamplingSpec
from care.typed import TOLERANCE, Count, Misfit, Positive, Range, Share, in_order

Unit = TypeVar("Unit", bound=Hashable)

_ZERO = 1e-9  # relative to the metric: less than this is no difference


@dataclass(frozen=True)
class FaithfulnessConfig:
    """Settings of `faithfulness`."""

    sizes: int = 8
    """Set sizes from 1 to the number of units, evenly spaced on a log scale (equal ones once)."""

    draws: int = 8
    """Random rankings."""

    strata: int = 5
    """Groups of similar weight within which units are shuffled; without weights there is one."""

    sampling: SamplingSpec = field(default_factory=lambda: SamplingSpec(resamples=1000))
    """Confidence level, also the share of the draws inside a band, resamples, and seed, also of the
    random rankings."""

    def __post_init__(self) -> None:
        require(self, {"sizes": 2, "draws": 1, "strata": 1})


@dataclass(frozen=True)
class Band:
    """A figure over the random rankings."""

    mean: float
    """Mean of the draws."""
    low: float
    """Lower quantile of the draws."""
    high: float
    """Upper quantile of the draws."""

    def check(self) -> None:
        """Misfit unless the quantiles are in order."""
        in_order(self)


@dataclass(frozen=True)
class CurvePoint:
    """One set size."""

    size: Count
    """Number k of units in C."""
    metric: Interval
    """m with the first k units removed."""
    faithfulness: Interval
    """F(C), only the first k units kept."""
    completeness: Interval
    """F(M \\ C), the first k units removed."""
    random_faithfulness: Band
    """F of k units of random rankings."""
    random_completeness: Band
    """F without k units of random rankings."""


@dataclass(frozen=True)
class Faithfulness:
    """How much of the behaviour the best units of one ranking account for."""

    units: str = field(default="", kw_only=True)
    """What is ranked, in words."""
    metric: str = field(default="", kw_only=True)
    """m in words."""
    n_units: Annotated[int, Range(2)]
    """Number N of units."""
    draws: Positive
    """Number of random rankings."""
    matched: bool
    """Whether these are matched by weight."""
    scale: Interval
    """m(M) − m(∅), what F is a share of."""
    points: tuple[CurvePoint, ...]
    """From size 0 to N."""
    cpr: Interval
    """Area under F(C)."""
    cmd: Interval
    """Area between F(C) and 1."""
    random_cpr: Band
    """The same area of the random rankings."""
    random_cmd: Band
    """The same area of the random rankings."""
    sufficiency_advantage: Interval
    """CPR less the mean CPR of random rankings; positive: keeping these units keeps more."""
    necessity_advantage: Interval
    """Mean area under F(M \\ C) of random rankings less that of the ranking; positive: removing
    these units removes more."""
    beaten: Share
    """Share of the random rankings whose CPR is smaller."""
    p_random: Share
    """One-sided p that another random ranking has as great a CPR: t-test of a new draw against the
    draws, t = (CPR − mean) / (s √(1 + 1 / draws)); 1 with fewer than two draws."""

    def check(self) -> None:
        """From no unit, where F is 0, to all of them, where it is 1; backwards for completeness."""
        sizes = [point.size for point in self.points]
        ends = (sizes[0], sizes[-1]) if len(sizes) > 1 else None
        if sizes != sorted(set(sizes)) or ends != (0, self.n_units):
            raise Misfit("points", f"has sizes {sizes}; they must rise from 0 to {self.n_units}")
        for at, name, expected in (
            (0, "faithfulness", 0.0),
            (-1, "faithfulness", 1.0),
            (0, "completeness", 1.0),
            (-1, "completeness", 0.0),
        ):
            value = getattr(self.points[at], name).rate
            if abs(value - expected) > TOLERANCE:
                words = f"has {name} {value:g} at size {sizes[at]}, where it is {expected:g}"
                raise Misfit("points", words)


def faithfulness(
    ranking: Sequence[Unit],
    metric_with: Callable[[Sequence[Unit]], Any],
    goals: Sequence[Any] | None = None,
    *,
    weights: Sequence[float] | None = None,
    config: FaithfulnessConfig | None = None,
    advance: Callable[[int], None] | None = None,
) -> Faithfulness:
    """Curves and areas of one ranking, beside those of random rankings of the same units.

    Parameters:
        ranking: the units, best first, each once.
        metric_with: given the units that are removed (none to all), the metric of each example
            (N,); for pairs, that of the attack less that of its benign counterpart. It is called
            at most `steps(len(ranking), config)` times, never twice for one set.
        goals: what the bootstrap resamples (N,); default each example its own.
        weights: one for each unit, in the order of `ranking`, to match random rankings by.
        advance: gets 1 after every call of `metric_with`.

    Raises: UsageError for fewer than two units, a repeated one, or weights that aren't one finite
    number a unit; FitError if values aren't finite or m(M) = m(∅), which leaves F undefined.
    """
    config = config or FaithfulnessConfig()
    units = _checked(ranking, weights)
    sizes = [0, *log_sizes(len(units), config.sizes)]
    orders = [units, *_random_rankings(units, weights, config)]
    measure = _Measured(metric_with, advance)
    values = np.stack(
        [
            [
                [measure(order[size:]) for size in sizes],
                [measure(order[:size]) for size in sizes],
            ]
            for order in orders
        ]
    )  # (orders, kept or removed, sizes, N)
    goals = list(range(values.shape[-1])) if goals is None else list(goals)
    resamples = config.sampling.drawings(goals)
    curves = _Curves.of(resamples.means(values, goals), sizes)
    return _summarised(curves, resamples, sizes, len(goals), weights is not None)


def log_sizes(n_units: int, points: int) -> list[int]:
    """At most `points` different set sizes from 1 to `n_units`, evenly spaced on a log scale."""
    return sorted({round(size) for size in np.geomspace(1, n_units, points).tolist()})


def steps(n_units: int, config: FaithfulnessConfig | None = None) -> int:
    """The most calls of `metric_with` that `faithfulness` makes."""
    config = config or FaithfulnessConfig()
    inner = len(log_sizes(n_units, config.sizes)) - 1
    return 2 + 2 * inner * (1 + config.draws)


class _Measured:
    """Metric values by the set of removed units, each set measured once."""

    def __init__(
        self, metric_with: Callable[[Sequence[Any]], Any], advance: Callable[[int], None] | None
    ) -> None:
        self.metric_with, self.advance = metric_with, advance
        self.known: dict[frozenset[Any], np.ndarray] = {}

    def __call__(self, removed: Sequence[Any]) -> np.ndarray:
        key = frozenset(removed)
        if key not in self.known:
            values = np.asarray(self.metric_with(removed), dtype=np.float64)
            shape = next(iter(self.known.values())).shape if self.known else values.shape
            if values.ndim != 1 or values.shape != shape:
                raise UsageError(
                    f"metric_with must give one value for each example, got shape {values.shape} "
                    f"with {len(key)} units removed and {shape} before."
                )
            self.known[key] = values
            if self.advance is not None:
                self.advance(1)
        return self.known[key]


class _Curves(NamedTuple):
    """Figures of every drawing of goals (R + 1 rows, the first being the plain one)."""

    sizes: np.ndarray
    """x = k / N (K,)."""
    metric: np.ndarray
    """m without the first k units (R + 1, K), of the ranking itself."""
    scale: np.ndarray
    """m(M) − m(∅) (R + 1,)."""
    kept: np.ndarray
    """F(C) (R + 1, orders, K)."""
    removed: np.ndarray
    """F(M \\ C) (R + 1, orders, K)."""

    @classmethod
    def of(cls, means: np.ndarray, sizes: Sequence[int]) -> _Curves:
        """From mean metrics (R + 1, orders, kept or removed, K)."""
        empty, whole = means[:, 0, 0, 0], means[:, 0, 1, 0]
        scale = whole - empty
        if abs(scale[0]) <= _ZERO * max(1.0, abs(whole[0]), abs(empty[0])):
            raise FitError(
                f"Faithfulness is undefined: the metric is {whole[0]:.3g} with all {sizes[-1]} "
                "units and the same without any of them; rank units that matter together, or use "
                "another metric."
            )
        divisor = np.where(scale == 0.0, np.nan, scale)[:, None, None, None]
        shares = (means - empty[:, None, None, None]) / divisor
        x = np.array(sizes) / sizes[-1]
        return cls(x, means[:, 0, 1], scale, shares[:, :, 0], shares[:, :, 1])

    def area(self, curve: np.ndarray) -> np.ndarray:
        """Area (R + 1, orders) under a curve (R + 1, orders, K)."""
        return np.trapezoid(curve, self.sizes, axis=-1)


def _summarised(
    curves: _Curves, resamples: Resamples, sizes: Sequence[int], n: int, matched: bool
) -> Faithfulness:
    cpr, cmd = curves.area(curves.kept), curves.area(np.abs(1.0 - curves.kept))
    left = curves.area(curves.removed)

    def interval(figures: np.ndarray) -> Interval:
        return resamples.interval(figures, n)

    def band(draws: np.ndarray) -> Band:
        tail = (1.0 - resamples.level) / 2.0
        low, high = np.quantile(draws, [tail, 1.0 - tail])
        return Band(float(draws.mean()), float(low), float(high))

    return Faithfulness(
        n_units=sizes[-1],
        draws=cpr.shape[1] - 1,
        matched=matched,
        scale=interval(curves.scale),
        points=tuple(
            CurvePoint(
                size=size,
                metric=interval(curves.metric[:, at]),
                faithfulness=interval(curves.kept[:, 0, at]),
                completeness=interval(curves.removed[:, 0, at]),
                random_faithfulness=band(curves.kept[0, 1:, at]),
                random_completeness=band(curves.removed[0, 1:, at]),
            )
            for at, size in enumerate(sizes)
        ),
        cpr=interval(cpr[:, 0]),
        cmd=interval(cmd[:, 0]),
        random_cpr=band(cpr[0, 1:]),
        random_cmd=band(cmd[0, 1:]),
        sufficiency_advantage=interval(cpr[:, 0] - cpr[:, 1:].mean(axis=1)),
        necessity_advantage=interval(left[:, 1:].mean(axis=1) - left[:, 0]),
        beaten=float((cpr[0, 1:] < cpr[0, 0]).mean()),
        p_random=_p_of_draw(float(cpr[0, 0]), cpr[0, 1:]),
    )


def _p_of_draw(value: float, draws: np.ndarray) -> float:
    """One-sided p that a new draw from where `draws` come from is at least `value`."""
    if len(draws) < 2:
        return 1.0
    spread = float(draws.std(ddof=1)) * math.sqrt(1.0 + 1.0 / len(draws))
    above = value - float(draws.mean())
    if spread <= _ZERO:
        return 0.0 if above > _ZERO else 1.0
    return float(student.sf(above / spread, len(draws) - 1))


def _checked(ranking: Sequence[Unit], weights: Sequence[float] | None) -> list[Unit]:
    units = list(ranking)
    if len(units) < 2 or len(set(units)) < len(units):
        raise UsageError(
            f"A ranking needs at least 2 units, each once, got {len(units)} of which "
            f"{len(set(units))} differ."
        )
    if weights is not None and (len(weights) != len(units) or not np.isfinite(weights).all()):
        raise UsageError(
            f"Weights must be one finite number for each of the {len(units)} units, got "
            f"{len(weights)}."
        )
    return units


def _random_rankings(
    units: list[Unit], weights: Sequence[float] | None, config: FaithfulnessConfig
) -> list[list[Unit]]:
    """The ranking with its units shuffled within strata of weight.

    So each of its first-k sets holds as many units of every stratum as that of the ranking.
    """
    by_weight = np.arange(len(units)) if weights is None else np.argsort(weights, kind="stable")
    strata = 1 if weights is None else min(config.strata, max(1, len(units) // 2))
    rng = np.random.default_rng(config.sampling.seed)
    rankings = []
    for _ in range(config.draws):
        places = np.arange(len(units))
        for stratum in np.array_split(by_weight, strata):
            places[stratum] = rng.permutation(stratum)
        rankings.append([units[place] for place in places])
    return rankings
