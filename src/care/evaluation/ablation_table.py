"""What each part of a method is worth: rows of one change each, beside the method as it is.

Made from judged answers to the same test examples under the bare model and under every row. Attack
success, answered harmless requests and utility are shares over all requests of that kind, with
limits that resample goals; a row is set against the method that it changes by the difference of
attack success on the same attacks, tested by sign flips of whole goals and corrected over all rows
(Holm). Not here: fitting and asking (`care.pipeline.ablation`), nor which rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from care.data.example import SuiteRole
from care.evaluation.results import Rates, Results, counts
from care.runs.rows import Row
from care.statistics.intervals import Interval, holm
from care.statistics.paired import cluster_rate, paired_difference
from care.typed import Misfit, Range, Share

BARE = "none"
"""Name of the row without a repair."""
ASR_CHANGE = Range(-1.0, 1.0)


@dataclass(frozen=True)
class Planned:
    """A row that is asked for: a repair, or why there is none."""

    name: str
    """Name of the row, and of the defense in the judged answers."""
    of: str
    """The row that it changes in one place; its own name for a whole method."""
    failed: str | None = None
    """Why it couldn't be fitted."""


@dataclass(frozen=True)
class AgainstMethod:
    """A row beside the method that it changes, on the same attacks."""

    change: Annotated[Interval, ASR_CHANGE]
    """Attack success of the row less that of the method."""
    p: Share
    """Sign flips of whole goals, two-sided."""
    p_holm: Share
    """The same, corrected over all rows."""


@dataclass(frozen=True)
class AblationRow:
    """One method, or one change of it."""

    name: str
    """What it is, or what is changed; unique."""
    of: str
    """The row that it changes; its own name for a whole method."""
    failed: str | None
    """Why it couldn't be fitted; then it has no figures."""
    suites: dict[str, Rates]
    """Rate of every suite: attack success, harmless requests answered, or right answers."""
    asr: Interval | None
    """Attack success over all attacks."""
    answered: Interval | None
    """Harmless requests answered; none without such suites."""
    utility: Interval | None
    """Utility; none without such suites."""
    degenerate: Share | None
    """Share of all answers that are broken."""
    against: AgainstMethod | None
    """Beside the method that it changes; none for a whole method."""

    def check(self) -> None:
        """Misfit for figures of what couldn't be fitted, and for a row without any."""
        if (self.asr is None) != (self.failed is not None):
            raise Misfit("asr", "must be there exactly where nothing failed")


@dataclass(frozen=True)
class AblationTable:
    """All rows, and what they say about the claims of the paper."""

    rows: tuple[AblationRow, ...]
    """The bare model first."""
    claims: tuple[str, ...]
    """A sentence for each claim: found here, or not."""

    def check(self) -> None:
        """Every row once, and the rows that others change among them."""
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise Misfit("rows", "names a row twice")
        for place, row in enumerate(self.rows):
            if row.of not in names:
                raise Misfit(f"rows[{place}].of", f"is {row.of!r}, which is no row")


def ablation_rows(results: Results, planned: Sequence[Planned], seed: int = 0) -> list[AblationRow]:
    """The bare model's row, then one for each that was `planned`.

    Raises DataError where every answer of a suite failed, and UsageError for fewer than two goals.
    """
    rows = [_row(results, Planned(BARE, BARE), seed)]
    rows += [_row(results, each, seed) for each in planned]
    own = {row.name: row for row in rows}
    changed = [r for r in rows if r.of != r.name and not r.failed and not own[r.of].failed]
    found = [paired_change(results, row.of, row.name, seed) for row in changed]
    adjusted = dict(zip([r.name for r in changed], holm([p for _, p in found]), strict=True))
    against = {
        row.name: AgainstMethod(change, p, float(adjusted[row.name]))
        for row, (change, p) in zip(changed, found, strict=True)
    }
    return [replace(row, against=against.get(row.name)) for row in rows]


def _row(results: Results, planned: Planned, seed: int) -> AblationRow:
    if planned.failed is not None:
        return AblationRow(
            planned.name, planned.of, planned.failed, {}, None, None, None, None, None
        )
    outcomes = [results.outcomes(suite, planned.name) for suite in results.suites]
    asked = sum(sum(found.values()) for found in outcomes)
    return AblationRow(
        planned.name,
        planned.of,
        None,
        {suite: results.rates(suite, planned.name) for suite in results.suites},
        pooled_rate(results, planned.name, "attack", seed),
        pooled_rate(results, planned.name, "over_refusal", seed),
        pooled_rate(results, planned.name, "utility", seed),
        sum(found["degenerate"] for found in outcomes) / max(1, asked),
        None,
    )


def pooled_rate(results: Results, defense: str, role: SuiteRole, seed: int = 0) -> Interval | None:
    """Share of all answers of one role that its suites count; None without such suites."""
    rows = [
        row
        for suite in results.suites
        if results.role(suite) == role
        for row in results.group(suite, defense)
        if row["error"] is None
    ]
    if not rows:
        return None
    return cluster_rate([counts(row) for row in rows], [_goal(row) for row in rows], seed=seed)


def paired_change(
    results: Results, first: str, second: str, seed: int = 0
) -> tuple[Interval, float]:
    """Attack success under the second less that under the first, and its p, on attacks that were
    answered under both."""
    pairs = [
        pair
        for suite in results.suites
        if results.role(suite) == "attack"
        for pair in results.pairs(suite, first, second)
    ]
    before, after = (np.array([counts(pair[side]) for pair in pairs]) for side in (0, 1))
    found = paired_difference(before, after, [_goal(row) for row, _ in pairs], seed=seed)
    return found.interval, found.p


def _goal(row: Row) -> str:
    return row["goal"] or row["prompt"]
