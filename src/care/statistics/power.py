"""How large a difference could be found at all: power, for two samples and for paired examples.

A table whose differences lie below these figures says nothing by being without significance. Two
samples of n each, by the arcsine transform (Cohen 1988, chapter 6), φ(p) = 2 asin √p:

    |φ(p₁) − φ(p₂)| = (z_{1−α/2} + z_{power}) · √(2/n)

The same examples before and after, of which a share ψ changes at all and δ more one way than the
other (Connor 1987, McNemar's test):

    n = ( z_{1−α/2} √ψ + z_{power} √(ψ − δ²) )² / δ²

With every change in one direction ψ = δ: that is the least difference pairing can find.
Not here: power under clustering; examples that share a goal count for less than n.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]

from care.errors import UsageError
from care.statistics.distributions import normal_quantile

POWER = 0.8
"""Chance of finding a difference that is there."""
ALPHA = 0.05
"""Two-sided level of the test."""


class Detectable(NamedTuple):
    """The nearest rates that can be told from a rate with two samples of n."""

    low: float | None
    """The greatest lower rate; None where even 0 can't be told apart."""
    high: float | None
    """The least higher rate; None where even 1 can't be told apart."""


def detectable_unpaired(
    rate: float, n: int, power: float = POWER, alpha: float = ALPHA
) -> Detectable:
    """What can be told from `rate` with two independent samples of `n` examples each."""
    _check(n, power, alpha)
    if not 0.0 <= rate <= 1.0:
        raise UsageError(f"A rate lies between 0 and 1, got {rate}.")
    step = (normal_quantile(1 - alpha / 2) + normal_quantile(power)) * np.sqrt(2.0 / n)
    angle = 2.0 * np.arcsin(np.sqrt(rate))
    low, high = angle - step, angle + step
    return Detectable(
        float(np.sin(low / 2.0) ** 2) if low >= 0.0 else None,
        float(np.sin(high / 2.0) ** 2) if high <= np.pi else None,
    )


def detectable_paired(
    n: int, discordant: float = 0.0, power: float = POWER, alpha: float = ALPHA
) -> float | None:
    """Least difference that McNemar's test finds among `n` pairs; None if none can be.

    `discordant` is the share of pairs that differ in either direction; the least difference is at
    most that share, so where fewer differ all are taken to differ one way.
    """
    _check(n, power, alpha)
    if not 0.0 <= discordant <= 1.0:
        raise UsageError(f"The share of discordant pairs lies between 0 and 1, got {discordant}.")
    a, b = normal_quantile(1 - alpha / 2), normal_quantile(power)

    def short(delta: float) -> float:
        """How many more pairs than n are needed."""
        share = max(discordant, delta)
        return (a * share**0.5 + b * max(0.0, share - delta**2) ** 0.5) ** 2 / delta**2 - n

    if short(1.0) > 0.0:
        return None
    found = optimize.brentq(short, 1e-6, 1.0)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return float(found)  # pyright: ignore[reportArgumentType]


def power_note(name: str, n: int, rate: float, discordant: float | None = None) -> str:
    """One sentence: which differences of a suite with `n` examples and `rate` can be seen."""
    found = detectable_unpaired(rate, n)
    parts: list[str] = []
    if found.low is not None:
        parts.append(f"a fall to {_percent(found.low)}")
    if found.high is not None:
        parts.append(f"a rise to {_percent(found.high)}")
    seen = " or ".join(parts) or "no other rate at all"
    text = f"{name}: n = {n}; two samples can tell {_percent(rate)} from {seen}"
    if discordant is not None:
        least = detectable_paired(n, discordant)
        if least is None:
            text += "; no paired difference can be found"
        else:
            text += (
                f"; paired, with {_percent(discordant)} of the examples changing, a difference of "
                f"{100 * least:.1f} points"
            )
    return text + "."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _check(n: int, power: float, alpha: float) -> None:
    if n < 1 or not 0.0 < alpha < 1.0 or not 0.0 < power < 1.0:
        raise UsageError(
            f"Power needs n >= 1 and alpha and power between 0 and 1, got {n}, {alpha}, {power}."
        )
