"""A rate corrected for the errors of the judge that counted it, with the judge's own uncertainty.

A judge with sensitivity Se (share of truly harmful answers it flags) and specificity Sp (share of
others it passes) counts p_obs = Se p + (1 − Sp)(1 − p), so that

    p = (p_obs + Sp − 1) / (Se + Sp − 1)                         (Rogan and Gladen 1978)

cut to [0, 1]. Se and Sp come from a few answers with hand labels and aren't exact. The interval is
the posterior of p under a flat prior, with Se and Sp drawn from theirs under Jeffreys' prior:

    density(p) ∝ E_{Se, Sp} [ Binomial( k; n, Se p + (1 − Sp)(1 − p) ) ]

so that a count that is lower than the false alarms alone would make it also tells of Sp, and no
interval shrinks to a point. Where answers share goals, n is the number of independent ones that
would have the same variance, p_obs (1 − p_obs) / robust SE² (Kish 1965).

Holds as far as the labelled answers are like those that are corrected. A judge's errors differ by
model, attack and defense; label answers of the same run where it matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from care.errors import DataError, UsageError
from care.statistics.bootstrap import number_goals
from care.statistics.intervals import Interval, wilson
from care.statistics.paired import paired_difference

DRAWS = 400
"""Draws of sensitivity and specificity."""
GRID = 501
"""Rates at which the posterior is computed."""
HOPELESS = 0.01
"""Most draws in which the judge may be no better than chance before a correction is refused."""


@dataclass(frozen=True)
class JudgeAccuracy:
    """A judge's decisions on answers with hand labels, counted."""

    true_positives: int
    """Harmful answers that it flagged."""
    false_negatives: int
    """Harmful answers that it passed."""
    true_negatives: int
    """Other answers that it passed."""
    false_positives: int
    """Other answers that it flagged."""

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0:
            raise UsageError(f"Counts can't be negative, got {vars(self)}.")
        if not self.harmful or not self.harmless:
            raise DataError(
                f"A correction needs hand labels of both kinds, got {self.harmful} harmful and "
                f"{self.harmless} harmless answers; label more."
            )

    @property
    def harmful(self) -> int:
        """Number of answers labelled harmful."""
        return self.true_positives + self.false_negatives

    @property
    def harmless(self) -> int:
        """Number of answers labelled otherwise."""
        return self.true_negatives + self.false_positives

    @property
    def sensitivity(self) -> Interval:
        """Share of harmful answers that are flagged."""
        return wilson(self.true_positives, self.harmful)

    @property
    def specificity(self) -> Interval:
        """Share of other answers that are passed."""
        return wilson(self.true_negatives, self.harmless)

    @classmethod
    def of(cls, decisions: Any, truth: Any) -> JudgeAccuracy:
        """From decisions and labels, two boolean arrays (N,)."""
        said, true = np.asarray(decisions, dtype=bool), np.asarray(truth, dtype=bool)
        if said.ndim != 1 or said.shape != true.shape:
            raise UsageError(f"Got {said.shape} decisions for {true.shape} labels.")
        return cls(
            true_positives=int((said & true).sum()),
            false_negatives=int((~said & true).sum()),
            true_negatives=int((~said & ~true).sum()),
            false_positives=int((said & ~true).sum()),
        )


def rogan_gladen(rate: float, sensitivity: float, specificity: float) -> float:
    """The corrected rate, cut to [0, 1]; DataError for a judge no better than chance."""
    gain = sensitivity + specificity - 1.0
    if gain <= 0.0:
        raise DataError(
            f"A judge with sensitivity {sensitivity:.3f} and specificity {specificity:.3f} is no "
            "better than chance, so nothing can be corrected; use another judge."
        )
    return float(np.clip((rate + specificity - 1.0) / gain, 0.0, 1.0))


def corrected_rate(
    flagged: ArrayLike,
    accuracy: JudgeAccuracy,
    groups: ArrayLike | None = None,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The rate of truly harmful answers among those of which `flagged` (N,) were flagged.

    `groups` (N,) are the goals, resampled as a whole. Raises UsageError without answers, DataError
    when the hand labels can't tell the judge from chance.
    """
    data = np.asarray(flagged, dtype=bool)
    if data.ndim != 1 or not len(data):
        raise UsageError(f"A rate needs at least one answer, got decisions of shape {data.shape}.")
    rng = np.random.default_rng(seed)
    half = 0.5  # Jeffreys' prior
    se = rng.beta(accuracy.true_positives + half, accuracy.false_negatives + half, DRAWS)
    sp = rng.beta(accuracy.true_negatives + half, accuracy.false_positives + half, DRAWS)
    gain = se + sp - 1.0
    if (gain <= 0.0).mean() > HOPELESS:
        raise DataError(
            f"{accuracy.harmful} harmful and {accuracy.harmless} harmless labelled answers can't "
            f"tell this judge from chance (sensitivity {accuracy.sensitivity.rate:.2f}, "
            f"specificity {accuracy.specificity.rate:.2f}); label more answers or use another one."
        )
    rates = np.linspace(0.0, 1.0, GRID)
    n = _independent(data, groups)
    seen = np.clip(np.outer(se, rates) + np.outer(1.0 - sp, 1.0 - rates), 1e-12, 1.0 - 1e-12)
    k = n * float(data.mean())
    log_likelihood = k * np.log(seen) + (n - k) * np.log1p(-seen)
    density = np.exp(log_likelihood - log_likelihood.max()).sum(axis=0)
    share = np.cumsum(density) / density.sum()
    tail = (1.0 - level) / 2.0
    low, high = (float(np.interp(bound, share, rates)) for bound in (tail, 1.0 - tail))
    rate = rogan_gladen(float(data.mean()), accuracy.sensitivity.rate, accuracy.specificity.rate)
    return Interval(rate, min(rate, low), max(rate, high), len(data))


def _independent(data: NDArray[np.bool_], groups: ArrayLike | None) -> float:
    """How many independent answers tell as much as these; goals where all answers agree."""
    goals = number_goals(groups, len(data), "answers")
    count = int(goals.max()) + 1
    rate = float(data.mean())
    if count < 2 or rate in (0.0, 1.0):
        return float(count)
    se = paired_difference(np.zeros(len(data)), data, goals, n=1).se
    # Goals that happen to balance each other out don't add answers.
    return min(float(len(data)), rate * (1.0 - rate) / se**2) if se > 0.0 else float(len(data))
