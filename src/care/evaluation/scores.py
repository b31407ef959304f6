"""Types of the scorecard: what table.json holds, field by field.

    Scorecard
      suites        SuiteScores → DefenseScores, one for each defense (`suite_scores`)
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
from care.evaluation.attack_scores import AttackFigure, AttackUnion, Threat, Tries
from care.evaluation.losses import AttackLosses
from care.evaluation.monitored import MonitorShares
from care.evaluation.results import Metric
from care.evaluation.suite_scores import RateInterval, SuiteScores
from care.judges.labels import LabelReport
from care.statistics.agreement import JudgeAgreement
from care.statistics.paired import NonInferiority
from care.typed import WHEN_SET, Change, Count, NonNegative, Share, inside

SCHEMA = "care.scorecard/1"
"""Version of the layout of table.json."""

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


# -- facts ----------------------------------------------------------------------------------------


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
