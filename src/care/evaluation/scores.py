"""Types of the scorecard: what table.json holds, field by field.

    Scorecard
      suites        SuiteScores → DefenseScores, one for each defense
      comparisons   DefenseEffect: a defense against the bare model on one suite
      judges        JudgeRate, by judge;   agreement  of every two;   labels  against hands
      pictures      PictureShare;   threats  Threat: an attack that knows a defense, or doesn't
      monitors      MonitorShares: what monitors decided
      tries         Tries: an attack that asks each request in several variants
      attacks       AttackFigure: each attack;   unions  AttackUnion: all of them together
      losses        AttackLosses: what each search came to, and whether it still fell
      run           RunFacts of the manifest, with RepairLeaks

`to_tree` writes one and `from_tree` reads it back, checked (`care.typed`). Not here: how figures
are made (`scorecard`, `adaptive`, `tries`, `union`, `official_scores`, `leak_check`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from care.data.example import SuiteRole
from care.evaluation.certificate import Certificate
from care.evaluation.losses import AttackLosses
from care.evaluation.monitored import MonitorShares
from care.evaluation.official_scores import PublishedScore
from care.evaluation.results import Metric, Rates
from care.judges.base import Outcome
from care.judges.labels import LabelReport
from care.statistics.agreement import JudgeAgreement
from care.statistics.intervals import Interval
from care.statistics.paired import NonInferiority
from care.typed import WHEN_SET, Change, Count, Misfit, NonNegative, Positive, Range, Share, inside

SCHEMA = "care.scorecard/1"
"""Version of the layout of table.json."""

RateInterval = Annotated[Interval, Range(0.0, 1.0)]
"""A share with its limits."""


# -- suites ---------------------------------------------------------------------------------------


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


# -- comparisons ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RateChange:
    """A rate under a defense minus that of the bare model, with limits that resample goals."""

    rate: Change
    """The change."""
    low: Change
    """Lower limit."""
    high: Change
    """Upper limit."""
    se: NonNegative
    """Cluster-robust standard error."""

    def check(self) -> None:
        """Misfit unless the change lies between its limits."""
        inside(self)


@dataclass(frozen=True)
class DefenseEffect:
    """A defense against the bare model on one suite, on the examples that both sides answered.

    With fewer than two goals only the counts are set.
    """

    suite: str
    """Name of the suite."""
    role: SuiteRole
    """What the suite is for."""
    metric: Metric
    """What the rates count."""
    defense: str
    """Name of the defense."""
    n: Count
    """Number of paired examples."""
    goals: Count
    """Number of goals among them."""
    before: Share | None = None
    """Rate of the bare model."""
    after: Share | None = None
    """Rate under the defense."""
    difference: RateChange | None = None
    """after − before."""
    discordant: tuple[Count, Count] | None = None
    """Examples with the event before but not after, and the reverse."""
    p: Share | None = None
    """Two-sided p of `test`."""
    p_holm: Share | None = None
    """The same, adjusted over every comparison of the table (Holm 1979)."""
    p_mcnemar: Share | None = None
    """Exact McNemar test, which takes examples that share a goal for independent ones."""
    test: Literal["McNemar, exact", "sign flips by goal"] | None = None
    """The test of `p`: McNemar's where every example has a goal of its own."""
    non_inferior: NonInferiority | None = None
    """Whether a loss of the margin is ruled out; none for attacks."""


# -- judges ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgeRate:
    """One suite under one defense, by one judge."""

    suite: str
    """Name of the suite."""
    defense: str
    """Name of the defense."""
    errors: Count
    """Answers that it couldn't judge, and examples that failed."""
    n: Count
    """Number of judged answers."""
    rate: RateInterval | None
    """The rate; none where nothing was judged."""


@dataclass(frozen=True)
class PictureShare:
    """How many pictures of a suite's requests a judge of pictures flags."""

    judge: str
    """Name of the judge."""
    suite: str
    """Name of the suite."""
    n: Count
    """Number of judged pictures."""
    flagged: Share | None
    """Share of them that it flags; none where nothing was judged."""
    errors: Count
    """Pictures that it couldn't judge."""


# -- attacks and facts ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Threat:
    """A searched attack and a defense: what was made without knowing it, and through it.

    What is made is an image or, of an attack in words, a suffix.
    """

    attack: str
    """Name of the attack."""
    defense: str
    """Name of the defense."""
    steps: Count
    """Steps of the optimisation, or of the search."""
    epsilon: float | None
    """Largest change of a pixel; none where it is unbounded, and of words."""
    loss_undefended: float
    """Loss of what was made against the bare model."""
    loss_adaptive: float
    """Loss of what was made against the defense."""
    undefended: DefenseScores | None
    """Figures of the first on the bare model."""
    transfer: DefenseScores | None
    """Figures of the first under the defense, which it doesn't know."""
    adaptive: DefenseScores | None
    """Figures of the second under the defense, which it knows."""
    certified: Annotated[Certificate | None, WHEN_SET] = None
    """The most that any picture can achieve beside these requests; none without a monitor of
    requests."""


@dataclass(frozen=True)
class BestOfTries:
    """Share of requests that the best of n tries wins; no limits where all have one goal."""

    n: Positive
    """Number of tries."""
    rate: Share
    """Mean over requests of the probability that one of n tries, drawn from all, is harmful."""
    low: Share | None
    """Lower limit, resampling goals."""
    high: Share | None
    """Upper limit."""

    def check(self) -> None:
        """Misfit unless the rate lies between its limits, if it has any."""
        if (self.low is None) != (self.high is None):
            raise Misfit("", "must hold both low and high, or none of them")
        if self.low is not None:
            inside(self)


@dataclass(frozen=True)
class Tries:
    """An attack that asks each request in several variants, under one defense."""

    attack: str
    """Name of the attack."""
    suite: str
    """Name of its suite."""
    defense: str
    """Name of the defense."""
    requests: Count
    """Requests of which any variant was judged."""
    tries: Count
    """Most judged variants of a request."""
    errors: Count
    """Answers that failed or weren't judged; they are no tries."""
    best: tuple[BestOfTries, ...]
    """The best of 1, 4, 16 and all tries, as far as there are so many."""
    variants: dict[str, Share]
    """Share of the requests that each variant wins; empty where variants are draws."""


@dataclass(frozen=True)
class AttackFigure:
    """One attack under one defense: requests that any of its variants wins."""

    attack: str
    """Name of the attack."""
    requests: str
    """The held-out requests."""
    defense: str
    """Name of the defense."""
    transfer: RateInterval | None
    """Of what was made on the bare model."""
    adaptive: RateInterval
    """Of what was made through the defense; the same where nothing is."""


@dataclass(frozen=True)
class AttackUnion:
    """All attacks on the same requests, under one defense."""

    requests: str
    """The held-out requests."""
    defense: str
    """Name of the defense."""
    attacks: Count
    """Number of attacks."""
    strongest: str
    """The attack that wins the greatest share of the requests that it is made for."""
    alone: RateInterval
    """What it wins."""
    union: RateInterval
    """What any of them wins."""
    certified: Annotated[Certificate | None, WHEN_SET] = None
    """The most that any picture beside the requests as they are can win."""


@dataclass(frozen=True)
class SuiteLeak:
    """Examples of a tested suite whose goals a repair was fitted on."""

    examples: Count
    """How many."""
    of: Count
    """Number of examples of the suite."""
    ids: tuple[str, ...]
    """Ids of the first few."""


@dataclass(frozen=True)
class RepairLeaks:
    """What a repair's artefact tells of goals that were fitted on and are tested."""

    checked: Literal["same goals", "not checked"]
    """What was compared."""
    why: str
    """Why nothing was; empty otherwise."""
    found: dict[str, SuiteLeak]
    """Leaks by suite."""


@dataclass(frozen=True)
class RunFacts:
    """Facts of the run's manifest, as they stand there; none where it doesn't tell."""

    model: Any = None
    """Name of the model."""
    seed: Any = None
    """Seed of the run."""
    suites: Any = None
    """Facts of each suite: licence, source, size."""
    judges: Any = None
    """Facts of each judge."""
    leaks: Any = None
    """Whether tested goals were compared with those of --fitted-on."""
    repair_leaks: dict[str, RepairLeaks] | None = None
    """What each repair's artefact tells itself, by the repair's name."""
    pinned: Any = None
    """Digests of what the run was begun with."""


@dataclass(frozen=True)
class Scorecard:
    """The scorecard of an evaluation."""

    schema: Literal["care.scorecard/1"]
    """Version of the layout."""
    judge: str
    """Name of the judge of the main table."""
    margin: Share
    """Largest loss on benign suites that is accepted."""
    suites: tuple[SuiteScores, ...]
    """Rates of every suite under every defense."""
    comparisons: tuple[DefenseEffect, ...]
    """Every defense against the bare model on every suite."""
    power: tuple[str, ...]
    """A sentence for each suite: which differences so many examples can show."""
    judges: dict[str, tuple[JudgeRate, ...]]
    """The same rates by each judge."""
    agreement: tuple[JudgeAgreement, ...]
    """Agreement of every two judges on malicious requests."""
    pictures: tuple[PictureShare, ...]
    """What judges of pictures flag."""
    labels: tuple[LabelReport, ...] = ()
    """Agreement of the judges with labels by hand."""
    threats: tuple[Threat, ...] = ()
    """Attacks that know the defense, beside those that don't."""
    monitors: Annotated[tuple[MonitorShares, ...], WHEN_SET] = ()
    """What monitors decided, by suite and defense."""
    tries: Annotated[tuple[Tries, ...], WHEN_SET] = ()
    """Attacks that ask each request in several variants."""
    attacks: Annotated[tuple[AttackFigure, ...], WHEN_SET] = ()
    """What each attack comes to."""
    unions: Annotated[tuple[AttackUnion, ...], WHEN_SET] = ()
    """What all of them come to together."""
    losses: Annotated[tuple[AttackLosses, ...], WHEN_SET] = ()
    """What each search came to, step by step."""
    run: RunFacts = RunFacts()
    """What was run."""
    warnings: tuple[str, ...] = ()
    """What a reader of the rates must know."""
