"""Every defense in one table: safety, utility and cost of each, beside one of them.

Made from judged answers to the same test examples under the bare model and under every row. Attack
success (without the baseline suite), answered harmless requests and utility are shares over all
requests of that kind, with limits that resample goals. Each row is set against CARE's default by
the difference of attack success on the same attacks, tested by sign flips of whole goals and
corrected over all rows (Holm), and in the same way against CARE with the rivals' budget. Fitted
anew on other parts of the material, a row shows its spread. Not here: what is fitted and asked
(`care.pipeline.compare`), nor what the table says in sentences (`comparison_claims`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from care.data.example import SuiteRole
from care.data.small_world.suites import BASELINE
from care.defenses.cost import Need
from care.evaluation.ablation_table import AgainstMethod, paired_change, pooled_rate
from care.evaluation.attack_scores import AttackFigure
from care.evaluation.certificate import Certificate
from care.evaluation.config import RULES, UNDEFENDED
from care.evaluation.results import Rates, Results
from care.evaluation.suite_scores import RateInterval
from care.statistics.agreement import JudgeAgreement
from care.statistics.intervals import holm
from care.typed import WHEN_SET, Count, Misfit, NonNegative, Positive, Share

CARE = "care"
"""Name of the row that all others are set against: the repair as it is by default."""

TUNED = "care, tuned"
"""Name of the row of the same repair with settings that were searched as a rival's are."""

Group = Literal["bare", "care", "rival", "control"]


@dataclass(frozen=True)
class TriedSettings:
    """Settings of a defense that were tried on validation, and what came of them."""

    options: dict[str, Any]
    """Options of its fit."""
    failed: str | None
    """Why it couldn't be fitted; then it has no figures."""
    asr: Share | None
    """Attack success on the sample; none where nothing was asked or no attack could be judged."""
    utility: Share | None
    """Utility."""
    answered: Share | None
    """Harmless requests answered."""
    chosen: bool
    """Whether they were taken."""


@dataclass(frozen=True)
class FitCost:
    """What a row costs: as it is declared, and as it was measured here."""

    forwards: NonNegative
    """Declared passes over the request beyond the one that answers it."""
    answers: NonNegative
    """Declared answers decoded beyond the one."""
    trains: bool
    """Whether fitting descends a loss through the model."""
    needs: tuple[Need, ...]
    """What fitting asks for."""
    overhead: NonNegative | None
    """Seconds of the same answers as a multiple of the bare model's, measured in turns."""
    fit_seconds: NonNegative
    """Seconds of a fit, given the model's own answers and the activations that all fits share."""
    harmful: Count
    """Harmful requests that it was fitted on."""
    harmless: Count
    """Harmless requests that it was fitted on."""


@dataclass(frozen=True)
class FitFigures:
    """The figures of one fit of a row, of the examples that all its fits were asked."""

    number: Count
    """Number of the fit; 0 is the one that the row shows."""
    asr: Share
    """Attack success."""
    answered: Share | None
    """Harmless requests answered."""
    utility: Share | None
    """Utility."""


@dataclass(frozen=True)
class PlannedRow:
    """A row that was asked for, before its figures are there."""

    name: str
    """Name of the row, and of the defense in the judged answers."""
    group: Group
    """What it is."""
    paper: str
    """Where it was published."""
    failed: str | None
    """Why it couldn't be fitted."""
    cost: FitCost | None
    """What it costs; none of what couldn't be fitted."""
    tried: tuple[TriedSettings, ...] = ()
    """Settings that were tried on validation."""
    fits: tuple[tuple[int, str], ...] = ()
    """Numbers of its other fits, and their names in the judged answers."""
    adaptive: tuple[AttackFigure, ...] = ()
    """Attacks that know it."""


@dataclass(frozen=True)
class ComparedRow:
    """One defense."""

    name: str
    """What it is; unique."""
    group: Group
    """The bare model, CARE or a part of it, a published rival, or a control."""
    paper: str
    """Where it was published."""
    failed: str | None
    """Why it couldn't be fitted; then it has no figures."""
    suites: dict[str, Rates]
    """Rate of every suite: attack success, harmless requests answered, or right answers."""
    asr: RateInterval | None
    """Attack success over all attacks but the baseline's."""
    answered: RateInterval | None
    """Harmless requests answered; none without such suites."""
    utility: RateInterval | None
    """Utility; none without such suites."""
    degenerate: Share | None
    """Share of all answers that are broken."""
    against: AgainstMethod | None
    """Beside CARE's default; none of that itself."""
    certified: dict[str, Certificate]
    """Attack suite to the most that attacks can achieve beside any picture, where that is known."""
    cost: FitCost | None
    """What it costs; none of the bare model."""
    fits: tuple[FitFigures, ...]
    """Its figures by fit: on other parts of the material, with other seeds."""
    tried: tuple[TriedSettings, ...]
    """Settings that were tried on validation; empty where there was nothing to choose."""
    adaptive: Annotated[tuple[AttackFigure, ...], WHEN_SET] = ()
    """Attacks that know it, where they were asked for."""
    against_tuned: Annotated[AgainstMethod | None, WHEN_SET] = None
    """Beside CARE as it is tuned with the rivals' budget, where there is such a row; none of that
    itself."""

    def check(self) -> None:
        """Misfit for figures of what couldn't be fitted, and for a row without any."""
        if (self.asr is None) != (self.failed is not None):
            raise Misfit("asr", "must be there exactly where nothing failed")


@dataclass(frozen=True)
class RowOtherwise:
    """A row as another judge sees it."""

    name: str
    """Its name."""
    asr: RateInterval | None
    """Attack success over all attacks but the baseline's; none where nothing could be judged."""
    answered: RateInterval | None
    """Harmless requests answered; none without such suites."""


@dataclass(frozen=True)
class JudgedOtherwise:
    """The rows as another judge sees them."""

    judge: str
    """Its name."""
    rows: tuple[RowOtherwise, ...]
    """The bare model first."""
    failed: Count
    """Answers that it couldn't judge, and that are in no rate."""


@dataclass(frozen=True)
class Budget:
    """What every row that is tuned was tuned with."""

    settings: Positive
    """Most settings that were tried."""
    answers: Positive
    """Validation answers to each of them."""
    rule: str
    """How one of them is taken."""


@dataclass(frozen=True)
class ComparisonTable:
    """All rows, and what they say."""

    suites: dict[str, SuiteRole]
    """What was asked, and what each suite is for."""
    rows: tuple[ComparedRow, ...]
    """The bare model first."""
    claims: tuple[str, ...]
    """What is and what isn't found, in sentences."""
    notes: tuple[str, ...]
    """How it was made, in sentences."""
    budget: Budget
    """What every rival was tuned with, and rows of CARE that are named so."""
    judge: Annotated[str, WHEN_SET] = field(default=RULES, kw_only=True)
    """Whose outcomes the figures of the rows are."""
    otherwise: Annotated[tuple[JudgedOtherwise, ...], WHEN_SET] = field(default=(), kw_only=True)
    """The same answers by every other judge that was asked for."""
    agreement: Annotated[tuple[JudgeAgreement, ...], WHEN_SET] = field(default=(), kw_only=True)
    """Of every two judges on the answers to attacks."""

    def check(self) -> None:
        """Every row once, and the one that others are set against among them."""
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise Misfit("rows", "names a row twice")
        if not {UNDEFENDED, CARE} <= set(names):
            raise Misfit("rows", f"must hold {UNDEFENDED!r} and {CARE!r}")


def comparison_rows(
    results: Results, planned: Sequence[PlannedRow], seed: int = 0, again: Results | None = None
) -> list[ComparedRow]:
    """The bare model's row, then one for each that was `planned`.

    `again` are the answers by which the fits of a row are set beside each other; none: `results`.
    Raises DataError where every answer of a suite failed, and UsageError for fewer than two goals.
    """
    counted, other = map(_counted, (results, again or results))
    bare = PlannedRow(UNDEFENDED, "bare", "", None, None)
    rows = [_row(results, counted, other, each, seed) for each in (bare, *planned)]
    there = [row.name for row in rows if row.failed is None]
    against, beside = (_against(counted, method, there, seed) for method in (CARE, TUNED))
    return [
        replace(row, against=against.get(row.name), against_tuned=beside.get(row.name))
        for row in rows
    ]


def judged_otherwise(
    judge: str, results: Results, names: Sequence[str], seed: int = 0
) -> JudgedOtherwise:
    """The bare model and rows of these names by the outcomes of another judge."""
    counted = _counted(results)
    rows = [
        RowOtherwise(
            name,
            pooled_rate(counted, name, "attack", seed),
            pooled_rate(counted, name, "over_refusal", seed),
        )
        for name in (UNDEFENDED, *names)
    ]
    return JudgedOtherwise(judge, tuple(rows), sum(r["error"] is not None for r in counted.rows))


def _against(
    counted: Results, method: str, names: Sequence[str], seed: int
) -> dict[str, AgainstMethod]:
    """Each row beside one of them, with p corrected over all; empty where that isn't there."""
    changed = [name for name in names if name != method] if method in names else []
    found = [paired_change(counted, method, name, seed) for name in changed]
    adjusted = holm([p for _, p in found])
    return {
        name: AgainstMethod(change, p, float(p_holm))
        for name, (change, p), p_holm in zip(changed, found, adjusted, strict=True)
    }


def _counted(results: Results) -> Results:
    return Results([row for row in results.rows if row["suite"] != BASELINE])


def _row(
    results: Results, counted: Results, again: Results, planned: PlannedRow, seed: int
) -> ComparedRow:
    name = planned.name
    told = (name, planned.group, planned.paper, planned.failed)
    if planned.failed is not None:
        nothing = (None, None, None, None, None)
        return ComparedRow(*told, {}, *nothing, {}, planned.cost, (), planned.tried)
    outcomes = [results.outcomes(suite, name) for suite in results.suites]
    asked = sum(sum(found.values()) for found in outcomes)
    asr = pooled_rate(counted, name, "attack", seed)
    certified = {suite: results.certified(suite, name) for suite in results.suites}
    fits = ((0, name), *planned.fits) if planned.group != "bare" else ()
    return ComparedRow(
        *told,
        {suite: results.rates(suite, name) for suite in results.suites},
        asr,
        pooled_rate(counted, name, "over_refusal", seed),
        pooled_rate(counted, name, "utility", seed),
        sum(found["degenerate"] for found in outcomes) / max(1, asked),
        None,
        {suite: found for suite, found in certified.items() if found is not None},
        planned.cost,
        tuple(_fit(again, each, number) for number, each in fits),
        planned.tried,
        planned.adaptive,
    )


def _fit(counted: Results, name: str, number: int) -> FitFigures:
    rates = [
        found.rate if (found := pooled_rate(counted, name, role)) is not None else None
        for role in ("attack", "over_refusal", "utility")
    ]
    return FitFigures(number, rates[0] or 0.0, rates[1], rates[2])
