"""Would another look say the same? Agreement of effects across seeds, halves, families and more.

Takes effects of S units (sites, windows or neurons) on N examples, as
`care.diagnosis.scan.Scan.effects` holds them, so it costs no run of the model. Two vectors of mean
effects (S,) are compared by

    ρ = Spearman's rank correlation,    overlap = |top_k(a) ∩ top_k(b)| / k,   by chance k / S

Halves of the goals are drawn many times; as each has half of the data, the reliability of the whole
is the Spearman–Brown corrected ρ: 2 ρ / (1 + |ρ|) (for ρ < 0 the same in the mirror). Intervals of
the other agreements resample goals, which adds noise and so errs towards disagreement. Agreement
says that effects are repeatable, not that they are what they are taken for. Source of the
correction: Spearman (1910), Brown (1910).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np

from care.errors import UsageError
from care.runs.settings import require
from care.statistics.correlation import Correlation, rank_correlations
from care.statistics.intervals import Interval
from care.statistics.sampling import SamplingSpec
from care.typed import Positive, Range, Share, inside

Kind = Literal["seed", "half", "family", "intervention"]

MIN_SITES = 4
"""Sites below which a rank correlation says nothing."""


@dataclass(frozen=True)
class ReliabilityConfig:
    """Settings of all comparisons."""

    top: int = 5
    """Number k of units with the greatest effects whose overlap is counted."""

    splits: int = 200
    """Random halves."""

    sampling: SamplingSpec = field(default_factory=lambda: SamplingSpec(resamples=1000))
    """Confidence level, also the share of the splits between the limits, resamples, and seed, also
    of the halves."""

    def __post_init__(self) -> None:
        require(self, {"top": 1, "splits": 1})


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of S units on N examples."""

    values: np.ndarray
    """One effect for each unit and example (S, N)."""

    goals: tuple[str, ...]
    """The goal of each example (N,)."""

    families: tuple[str, ...] | None = None
    """The attack family of each example (N,), if families are to be compared."""

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        object.__setattr__(self, "values", values)
        if values.ndim != 2 or values.shape[0] < 3 or not np.isfinite(values).all():
            raise UsageError(
                "Effects must be finite numbers of shape (units, examples) with at least 3 units, "
                f"got shape {values.shape}."
            )
        for name in ("goals", "families"):
            given = getattr(self, name)
            if given is not None and len(given) != values.shape[1]:
                raise UsageError(
                    f"{values.shape[1]} examples need as many {name}, got {len(given)}."
                )

    def of_family(self, name: str, others: bool = False) -> Effects:
        """Only the examples of one family, or all but those."""
        if self.families is None:
            raise UsageError("These effects have no families; give one for each example.")
        keep = np.flatnonzero((np.array(self.families) == name) != others)
        return Effects(self.values[:, keep], tuple(self.goals[i] for i in keep))


@dataclass(frozen=True)
class Agreement:
    """How far two looks at the same units agree."""

    kind: Kind
    """What differs: the `seed`, the `half` of the goals, the attack `family`, or the
    `intervention` by which units are removed."""
    name: str
    """The two looks, in words."""
    spearman: Correlation
    """Rank correlation of the mean effects; for halves the mean over splits, with limits that hold
    the middle 95 % of them."""
    overlap: Annotated[Interval, Range(0.0, 1.0)]
    """Share of the top k that both have; likewise."""
    top: Positive
    """k."""
    chance: Share
    """Overlap to be expected by chance, k / S."""
    reliability: Correlation | None
    """Of halves: ρ corrected to the whole of the data."""

    def check(self) -> None:
        """Misfit unless each correlation lies between its limits."""
        inside(self.spearman, "rho", "spearman")
        if self.reliability is not None:
            inside(self.reliability, "rho", "reliability")


def agreement(
    first: Effects,
    second: Effects,
    name: str,
    kind: Kind = "seed",
    config: ReliabilityConfig | None = None,
) -> Agreement:
    """Agreement of two looks at the same units, on the same or on other examples.

    Goals that both have are resampled together. Raises UsageError for different numbers of units,
    a side on which all units have the same effect, or fewer than two goals.
    """
    config = config or ReliabilityConfig()
    if len(first.values) != len(second.values):
        raise UsageError(
            f"Both looks must be at the same units, got {len(first.values)} and "
            f"{len(second.values)}."
        )
    goals = [*first.goals, *second.goals]
    resamples = config.sampling.drawings(goals)
    left, right = (resamples.means(side.values, side.goals) for side in (first, second))
    if np.ptp(left[0]) == 0.0 or np.ptp(right[0]) == 0.0:
        raise UsageError(f"Agreement of {name} is undefined: all units of one side are equal.")
    n, top = min(len(first.goals), len(second.goals)), min(config.top, left.shape[1])
    complete = np.isfinite(left).all(axis=1) & np.isfinite(right).all(axis=1)
    left, right = left[complete], right[complete]  # row 0 always is
    return Agreement(
        kind=kind,
        name=name,
        spearman=Correlation.of(resamples.interval(rank_correlations(left, right), n)),
        overlap=resamples.interval(overlaps(left, right, top), n),
        top=top,
        chance=top / left.shape[1],
        reliability=None,
    )


def halves(effects: Effects, config: ReliabilityConfig | None = None) -> Agreement:
    """Agreement of random halves of the goals; with an odd number one goal sits out each time.

    Raises UsageError for fewer than four goals or units that all have the same effect.
    """
    config = config or ReliabilityConfig()
    names = sorted(set(effects.goals))
    if len(names) < 4:
        raise UsageError(f"Halves need at least 4 different goals, got {len(names)}.")
    member = np.array([names.index(goal) for goal in effects.goals])
    level = config.sampling.level
    rng, half = np.random.default_rng(config.sampling.seed), len(names) // 2
    sides = np.empty((2, config.splits, len(effects.values)))
    for split in range(config.splits):
        order = rng.permutation(len(names))
        for side, chosen in enumerate((order[:half], order[half : 2 * half])):
            sides[side, split] = effects.values[:, np.isin(member, chosen)].mean(axis=1)
    top = min(config.top, sides.shape[-1])
    rho = rank_correlations(sides[0], sides[1])
    if not np.isfinite(rho).any():
        raise UsageError("Halves can't be compared: all units have the same effect.")
    n = len(effects.goals)
    spearman = Correlation.of(_spread(rho, n, level))
    return Agreement(
        kind="half",
        name=f"{config.splits} random halves of {len(names)} goals",
        spearman=spearman,
        overlap=_spread(overlaps(sides[0], sides[1], top), n, level),
        top=top,
        chance=top / sides.shape[-1],
        reliability=Correlation(
            spearman_brown(spearman.rho),
            spearman_brown(spearman.low),
            spearman_brown(spearman.high),
            n,
        ),
    )


def families(
    effects: Effects, pairwise: bool = False, config: ReliabilityConfig | None = None
) -> tuple[Agreement, ...]:
    """Each family against all others, or every pair of families if `pairwise`.

    Two families are one pair either way. Raises UsageError for fewer than two families, or a
    family with fewer than two goals (leave it out of `effects`).
    """
    names = sorted(set(effects.families or ()))
    if len(names) < 2:
        raise UsageError(f"Families need at least 2 of them to be compared, got {len(names)}.")
    parts = {name: effects.of_family(name) for name in names}
    for name, part in parts.items():
        if len(set(part.goals)) < 2:
            raise UsageError(f"Family {name!r} has 1 goal; give it 2 or leave it out.")
    if pairwise or len(names) == 2:
        looks = [
            (f"{one} and {other}", parts[one], parts[other])
            for at, one in enumerate(names)
            for other in names[at + 1 :]
        ]
    else:
        looks = [
            (f"{name} and the others", parts[name], effects.of_family(name, others=True))
            for name in names
        ]
    return tuple(agreement(a, b, words, "family", config) for words, a, b in looks)


def spearman_brown(rho: float) -> float:
    """Reliability of twice the data, from the correlation of its halves: 2 ρ / (1 + |ρ|)."""
    return 2.0 * rho / (1.0 + abs(rho))


def overlaps(first: np.ndarray, second: np.ndarray, top: int) -> np.ndarray:
    """Share of the `top` greatest of each row of (R, S) that are in both; ties by position."""
    chosen = []
    for side in (first, second):
        order = np.argsort(-side, axis=1, kind="stable")[:, :top]
        mask = np.zeros(side.shape, dtype=bool)
        np.put_along_axis(mask, order, True, axis=1)
        chosen.append(mask)
    return (chosen[0] & chosen[1]).sum(axis=1) / top


def _spread(figures: np.ndarray, n: int, level: float) -> Interval:
    """Mean over splits, with the limits of their middle `level`."""
    known = figures[np.isfinite(figures)]
    mean, tail = float(known.mean()), (1.0 - level) / 2.0
    low, high = np.quantile(known, [tail, 1.0 - tail])
    return Interval(mean, min(mean, float(low)), max(mean, float(high)), n)
