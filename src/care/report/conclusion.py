"""One sentence of a verdict, and the figures in it: what the rules of `care.report.conclusions`
share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from care.diagnosis.reliability import MIN_SITES

MIN_RANK_AGREEMENT = 0.5
"""Spearman's ρ from which two looks at the same sites agree; a lower limit must exceed 0."""


class Finding(NamedTuple):
    """The outcome of one rule."""

    holds: bool
    """Whether the figures support it."""
    text: str
    """The sentence, with the figure."""


Tree = Mapping[str, Any]
"""A part of the `diagnosis` tree of report.json."""

Rule = Callable[[Tree], list[Finding]]
"""From the `diagnosis` tree to findings; none if the figures aren't there."""


def figure(interval: Tree, key: str = "rate", sign: int = 1) -> str:
    """`1.60 [1.40, 1.80]`; with `sign` −1 the figure and its limits turned round."""
    ends = sorted(sign * interval[end] for end in ("low", "high"))
    figures = (sign * interval[key], *ends)
    decimals = 2 if max(map(abs, figures)) >= 0.1 else 4
    middle, low, high = (f"{value:.{decimals}f}" for value in figures)
    return f"{middle} [{low}, {high}]"


def excludes_zero(interval: Tree) -> bool:
    """Whether both limits are on one side of 0."""
    return interval["low"] > 0.0 or interval["high"] < 0.0


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's ρ of effects on the same sites; None for too few of them, or if it's undefined."""
    if len(first) < MIN_SITES or np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        return None
    return float(np.asarray(spearmanr(first, second))[0])


def agreement(what: str, first: Sequence[float], second: Sequence[float]) -> list[Finding]:
    """Whether two lists of effects on the same sites rank them alike; nothing if that's undefined.

    `what` names the two, as in "the metrics a and b".
    """
    rho = correlation(first, second)
    if rho is None:
        return []
    holds = rho >= MIN_RANK_AGREEMENT
    verb = "agree" if holds else "disagree"
    text = f"{capital(what)} {verb} on which sites matter: ρ = {rho:.2f} over {len(first)}."
    return [Finding(holds, text)]


def capital(words: str) -> str:
    """The words with a capital first letter."""
    return words[:1].upper() + words[1:]
