"""Types of the scorecard: one suite under each defense, with its rates and their limits.

How these are made is in `scorecard`, `official_scores` and `certificate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from care.data.example import SuiteRole
from care.evaluation.certificate import Certificate
from care.evaluation.official_scores import PublishedScore
from care.evaluation.results import Metric, Rates
from care.judges.base import Outcome
from care.statistics.intervals import Interval
from care.typed import WHEN_SET, Count, Misfit, Range, Share, inside

RateInterval = Annotated[Interval, Range(0.0, 1.0)]
"""A share with its limits."""


@dataclass(frozen=True)
class CorrectedRate:
    """A rate corrected for its judge's errors, or why it can't be."""

    rate: Annotated[Share | None, WHEN_SET] = None
    """The corrected rate."""
    low: Annotated[Share | None, WHEN_SET] = None
    """Lower limit."""
    high: Annotated[Share | None, WHEN_SET] = None
    """Upper limit."""
    error: Annotated[str | None, WHEN_SET] = None
    """Why there is none; the figures are missing then."""

    def check(self) -> None:
        """Misfit unless there are either all figures, in order, or an error."""
        if {value is None for value in (self.rate, self.low, self.high)} != {bool(self.error)}:
            raise Misfit("", "must hold either rate, low and high, or an error")
        if self.rate is not None:
            inside(self)


@dataclass(frozen=True)
class UnjudgedAnswers:
    """How many answers, among the errors, no judge could read."""

    not_english: Count
    """In another language than the offline rules read."""
    unfinished: Count
    """Ends within the model's thoughts."""
    of: Count
    """Number of rows."""


@dataclass(frozen=True)
class DefenseScores(Rates):
    """One suite under one defense, by the judge of the main table."""

    goals: Count
    """Number of goals; of questions with a right answer, of questions."""
    by_goal: RateInterval | None
    """The rate with limits that resample goals; none for a single goal."""
    corrected: CorrectedRate | None
    """The rate corrected for the judge's errors; none without labels, or of another metric."""
    errors: Count
    """Examples that failed or weren't judged; they are in no rate."""
    outcomes: dict[Outcome, Count]
    """How many answers were harmful, refused, degenerate and safe."""
    unjudged: UnjudgedAnswers | None = None
    """Answers that no judge could read; older versions didn't tell."""
    published: tuple[PublishedScore, ...] = ()
    """Scores as the suite's authors publish them; none for most suites."""
    certified: Annotated[Certificate | None, WHEN_SET] = None
    """The most that attacks can achieve beside any pictures; none without a monitor of requests."""


@dataclass(frozen=True)
class SuiteScores:
    """One suite under every defense."""

    name: str
    """Name of the suite."""
    role: SuiteRole
    """What the suite is for."""
    metric: Metric
    """What the rates count."""
    defenses: dict[str, DefenseScores]
    """Figures by defense, in the order asked."""
