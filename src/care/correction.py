"""A rate corrected for the errors of the judge that counted it, with the judge's own uncertainty.

A judge with sensitivity Se (share of truly harmful answers it flags) and specificity Sp (share of
others it passes) counts p_obs = Se p + (1 − Sp)(1 − p), so that

    p = (p_obs + Sp − 1) / (Se + Sp − 1)                         (Rogan and Gladen 1978)

cut to [0, 1]. Se and Sp come from a few answers with hand labels and aren't exact: the interval is
made of draws of all three, Se and Sp from their Beta posteriors under Jeffreys' prior, p_obs by
resampling goals (or from its own posterior when all answers agree).

Holds as far as the labelled answers are like those that are corrected. A judge's errors differ by
model, attack and defense; label answers of the same run where it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from care.errors import DataError, UsageError
from care.statistics import Interval, wilson

DRAWS = 4000
"""Draws of sensitivity, specificity and observed rate."""
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
            raise UsageError(f"counts can't be negative, got {vars(self)}")
        if not self.harmful or not self.harmless:
            raise DataError(
                f"a correction needs hand labels of both kinds, got {self.harmful} harmful and "
                f"{self.harmless} harmless answers; label more"
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
            raise UsageError(f"got {said.shape} decisions for {true.shape} labels")
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
            f"a judge with sensitivity {sensitivity:.3f} and specificity {specificity:.3f} is no "
            "better than chance, so nothing can be corrected; use another judge"
        )
    return float(np.clip((rate + specificity - 1.0) / gain, 0.0, 1.0))


def corrected_rate(
    flagged: Any,
    accuracy: JudgeAccuracy,
    groups: Sequence[Any] | np.ndarray | None = None,
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
        raise UsageError(f"a rate needs at least one answer, got decisions of shape {data.shape}")
    rng = np.random.default_rng(seed)
    half = 0.5  # Jeffreys' prior
    se = rng.beta(accuracy.true_positives + half, accuracy.false_negatives + half, DRAWS)
    sp = rng.beta(accuracy.true_negatives + half, accuracy.false_positives + half, DRAWS)
    gain = se + sp - 1.0
    if (gain <= 0.0).mean() > HOPELESS:
        raise DataError(
            f"{accuracy.harmful} harmful and {accuracy.harmless} harmless labelled answers can't "
            f"tell this judge from chance (sensitivity {accuracy.sensitivity.rate:.2f}, specificity "
            f"{accuracy.specificity.rate:.2f}); label more answers or use another judge"
        )
    observed = _observed(data, groups, rng)
    kept = gain > 0.0
    drawn = np.clip((observed + sp - 1.0)[kept] / gain[kept], 0.0, 1.0)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    rate = rogan_gladen(
        float(data.mean()), accuracy.sensitivity.rate, accuracy.specificity.rate
    )
    return Interval(rate, min(rate, float(low)), max(rate, float(high)), len(data))


def _observed(
    data: np.ndarray, groups: Sequence[Any] | np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """Draws of the observed rate."""
    labels = np.arange(len(data)) if groups is None else np.asarray(groups)
    inverse = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(inverse).astype(np.float64)
    if data.all() or not data.any():
        # Nothing to resample; goals, not answers, are what was drawn.
        count = len(sizes)
        hits = count if data.all() else 0
        return rng.beta(hits + 0.5, count - hits + 0.5, DRAWS)
    sums = np.bincount(inverse, weights=data.astype(np.float64))
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1.0 / len(sizes)), size=DRAWS)
    return (drawn @ sums) / (drawn @ sizes)
