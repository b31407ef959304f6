"""The table of a comparison from its judged answers, as the rules see them or as others do.

Settings are chosen, and monitors fitted, by the rules alone. Judges that are asked for besides read
the same answers to the test when the model has been let go, one judge after the other; each verdict
is on disk before the next batch of them (`care.evaluation.rejudge`), so that a killed comparison
goes on where it stopped, and one that is finished can be judged by more. The first judge makes the
table; of the others it shows attack success and harmless requests answered, and how far every two
agree. Attacks that know the defense, and further studies, are told by the rules.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from care.data.example import Suite, SuiteRole
from care.errors import UsageError
from care.evaluation.comparison_claims import comparison_claims
from care.evaluation.comparison_table import (
    Budget,
    ComparisonTable,
    JudgedOtherwise,
    PlannedRow,
    comparison_rows,
    judged_otherwise,
)
from care.evaluation.config import RULES, UNDEFENDED, JudgingSpec
from care.evaluation.rejudge import Examples, judged, open_verdicts, rejudge
from care.evaluation.results import Results
from care.evaluation.scorecard import cluster_of, malicious_labels
from care.judges.base import Judge
from care.judges.registry import load_judge
from care.judges.rules import RulesJudge
from care.runs.progress import Bar
from care.runs.rows import Row
from care.runs.run import Run
from care.statistics.agreement import JudgeAgreement, between_judges


@dataclass(frozen=True)
class Answered:
    """Judged answers to the test, of all rows."""

    rows: Sequence[Row]
    """Of the bare model and of each row's first fit."""
    further: Sequence[Row]
    """Of further fits, to every other example."""

    def of(self, compared: ComparedRows) -> Answered:
        """Those of rows that are compared now: an earlier attempt may have asked others."""
        suites = {suite.name for suite in compared.tests}
        names = {UNDEFENDED, *compared.shown}
        parts = (
            [row for row in part if row["defense"] in names and row["suite"] in suites]
            for part in (self.rows, self.further)
        )
        return Answered(*parts)

    def table(self, compared: ComparedRows) -> tuple[Results, Results]:
        """Those by which rows are shown, and those by which their fits are."""
        asked = {(s.name, e.id) for s in halved(compared.tests) for e in s}
        shared = [row for row in self.rows if (row["suite"], row["example"]) in asked]
        again = [*shared, *self.further] if self.further else self.rows
        first, other = (renamed(Results(list(r)), compared.shown) for r in (self.rows, again))
        return first, other


@dataclass(frozen=True)
class ComparedRows:
    """What the table is made of besides."""

    tests: Sequence[Suite]
    """What was asked."""
    planned: Sequence[PlannedRow]
    """The rows."""
    shown: Mapping[str, str]
    """Names in the table of what answers are kept by."""
    notes: tuple[str, ...]
    """How it was made."""
    budget: Budget
    """What rows were tuned with."""
    seed: int
    """Of what is drawn."""

    def table(self, answered: Answered) -> ComparisonTable:
        """The table of answers as one judge sees them."""
        results, again = answered.table(self)
        made = comparison_rows(results, self.planned, self.seed, again)
        suites: dict[str, SuiteRole] = {name: results.role(name) for name in results.suites}
        claims = comparison_claims(made, suites)
        return ComparisonTable(suites, tuple(made), claims, self.notes, self.budget)


def halved(suites: Sequence[Suite]) -> list[Suite]:
    """Every other example of each suite, which the further fits of a row are asked."""
    return [replace(suite, examples=tuple(suite)[::2]) for suite in suites]


def renamed(results: Results, names: Mapping[str, str]) -> Results:
    """The same answers, with other names of defenses."""
    rows = results.rows
    return Results([row | {"defense": names.get(row["defense"], row["defense"])} for row in rows])


def answers_of(run: Run, further: Run | None) -> Answered:
    """The answers as the rules see them."""
    return Answered(run.rows(), [] if further is None else further.rows())


def table_of(
    compared: ComparedRows,
    run: Run,
    further: Run | None,
    judging: JudgingSpec,
    rules: RulesJudge,
    progress: Bar | None = None,
) -> ComparisonTable:
    """The table by the first judge, with what the others say; those that are missing are asked.

    `further` is the run of further fits' answers, if there are any.
    """
    runs = [each for each in (run, further) if each is not None]
    examples = {(suite.name, e.id): e for suite in compared.tests for e in suite}
    seen = {RULES: answers_of(run, further)}
    names: list[str] = []
    for wanted in judging.judges:
        judge = load_judge(wanted, rules)
        if getattr(judge, "subject", "answer") != "answer":
            raise UsageError(
                f"The judge {judge.name} looks at pictures of requests and not at answers, of "
                "which a comparison is; leave it out, or use care judge."
            )
        if judge is not rules:
            parts = [_judged(each, judge, run, examples, progress) for each in runs]
            seen[judge.name] = Answered(parts[0], parts[1] if further is not None else [])
        names.append(judge.name)
        del judge
        gc.collect()
    seen = {name: each.of(compared) for name, each in seen.items()}
    table = compared.table(seen[names[0]])
    others = {name: seen[name] for name in (*names[1:], *({RULES} - set(names)))}
    if not others:
        return table
    return replace(
        table,
        judge=names[0],
        otherwise=tuple(_otherwise(name, compared, each) for name, each in others.items()),
        agreement=_agreement({names[0]: seen[names[0]], **others}),
        notes=(*table.notes, _told(names[0])),
    )


def _judged(
    run: Run, judge: Judge, stages: Run, examples: Examples, progress: Bar | None
) -> list[Row]:
    """The rows of a run as a judge sees them."""
    verdicts = open_verdicts(run)
    try:
        with stages.stage(f"judge {judge.name}"):
            rejudge(run, judge, verdicts, examples=examples, progress=progress)
        return judged(run.rows(), verdicts.all(), judge.name)
    finally:
        verdicts.close()


def _otherwise(name: str, compared: ComparedRows, answered: Answered) -> JudgedOtherwise:
    results, _ = answered.table(compared)
    there = [row.name for row in compared.planned if row.failed is None]
    return judged_otherwise(name, results, there, compared.seed)


def _agreement(seen: Mapping[str, Answered]) -> tuple[JudgeAgreement, ...]:
    rows = next(iter(seen.values())).rows
    labels = {name: malicious_labels(Results(list(each.rows))) for name, each in seen.items()}
    return tuple(between_judges(labels, {row["key"]: cluster_of(row) for row in rows}))


def _told(first: str) -> str:
    return (
        f"Answers to the test are judged by {first}; settings were chosen and monitors fitted by "
        "the rules, by which attacks that know the defense and further studies are told too."
    )
