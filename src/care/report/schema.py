"""The report's schema: the types of what only a report has, and how its parts fit together.

Each type is one JSON object of `report.json`; what a key means stands under its field, and from
there in `docs/report.md` and in `json_schema()`. Types of the rooms below are used, not written
again: a suite's result is a comparison of `care.evaluation.results` and whether it counts, the
diagnosis is that of `care.diagnosis`. Units: every `rate` and share is a fraction in [0, 1], a
change of one lies in [-1, 1]; every `*_change` of the summary is in percentage points; seconds and
GiB as named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from care.diagnosis.results import Diagnosis
from care.errors import DataError
from care.evaluation.certificate import Certificate
from care.evaluation.results import Comparison, Metric
from care.judges.base import Outcome
from care.report.described import json_schema as schema_of
from care.report.repair_schema import RepairPart
from care.typed import (
    TOLERANCE,
    WHEN_SET,
    Count,
    Misfit,
    NonNegative,
    Pattern,
    Share,
    at,
    from_tree,
    same_count,
    show,
)

SCHEMA = "care.report/4"
"""Name and major version; it changes when a key changes its meaning, type or goes away."""

WHAT = "The report"
"""What a report is called in errors."""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""What becomes of an answer, in the order of every table and chart."""

When = Literal["before", "after"]
WHEN: tuple[When, ...] = get_args(When)

_COUNTED: dict[Metric, Outcome] = {"ASR": "harmful", "answered": "safe"}
"""The outcome that a metric counts; accuracy counts none."""

Image = Annotated[
    str,
    Pattern(
        r"data:image/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}",
        "a base64 data URI of a PNG, JPEG, WebP or GIF",  # so that it can't carry a script
    ),
]


# -- suites --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SuiteResult(Comparison):
    """One suite, measured on the same examples before and after the repair."""

    target: bool
    """For attacks: counts towards the mean ASR (a baseline doesn't)."""


@dataclass(frozen=True)
class Control:
    """Another edit, measured on the same suites."""

    mean_asr: Share
    """Mean of its rates on the target attack suites (checked)."""
    utility: Share | None
    """Mean rate over utility suites, or null."""
    answered: Share | None
    """Mean rate over over-refusal suites, or null."""
    suites: dict[str, Share]
    """Suite name → rate; at least every target attack suite."""


@dataclass(frozen=True)
class Measured:
    """What the summary is computed from."""

    suites: tuple[SuiteResult, ...]
    """Every suite once, and at least one."""
    outcomes: dict[str, dict[When, dict[Outcome, Count]]]
    """Exactly the names in `suites`."""
    controls: dict[str, Control] = field(default_factory=dict)
    """Name → control."""

    def check(self) -> None:
        """Misfit where suites, outcomes and controls contradict each other."""
        if not self.suites:
            raise Misfit("suites", "is empty; a report needs at least one measured suite")
        seen: set[str] = set()
        for i, suite in enumerate(self.suites):
            path, where = f"suites[{i}]", at("outcomes", suite.name)
            if suite.name in seen:
                raise Misfit(f"{path}.name", f"repeats {suite.name!r}; names must be unique")
            seen.add(suite.name)
            if suite.name not in self.outcomes:
                raise Misfit(where, "is missing, but suites lists it")
            for when in WHEN:
                self._check_counts(suite, when, path, f"{where}.{when}")
        if extra := sorted(self.outcomes.keys() - seen):
            raise Misfit(at("outcomes", extra[0]), "isn't the name of a suite in suites")
        for name, control in self.controls.items():
            self._check_control(control, at("controls", name), seen)

    def _check_counts(self, suite: SuiteResult, when: When, path: str, where: str) -> None:
        """Counts add up to n, and an ASR or an answered share is the share of its outcome."""
        counts = self.outcomes[suite.name][when]
        same_count(sum(counts.values()), suite.n, where, f"{path}.n")
        outcome = _COUNTED.get(suite.metric)
        if outcome is None:
            return
        share, rate = counts[outcome] / suite.n, getattr(suite, when).rate
        if abs(share - rate) > TOLERANCE:
            raise Misfit(
                f"{path}.{when}.rate",
                f"is {rate:g}, but {where}.{outcome} gives a share of {share:g}",
            )

    def _check_control(self, control: Control, path: str, known: set[str]) -> None:
        targets = [suite.name for suite in self.suites if suite.role == "attack" and suite.target]
        if unknown := sorted(control.suites.keys() - known):
            raise Misfit(f"{path}.suites", f"names {unknown[0]!r}, not in suites")
        if missing := [name for name in targets if name not in control.suites]:
            raise Misfit(
                f"{path}.suites", f"lacks {missing[0]!r}; a control needs every target attack suite"
            )
        if not targets:
            return
        mean = sum(control.suites[name] for name in targets) / len(targets)
        if abs(mean - control.mean_asr) > TOLERANCE:
            raise Misfit(
                f"{path}.mean_asr", f"is {control.mean_asr:g}, but its suites average {mean:g}"
            )


# -- summary -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One requirement and whether it is met."""

    name: str
    """What is required."""
    requirement: str
    """The limit, in words."""
    measured: str
    """What was found, in words."""
    met: bool | None
    """Whether it is met; null when it wasn't measured."""


@dataclass(frozen=True)
class Summary:
    """What `summarise` computes from suites, outcomes and controls."""

    mean_asr_before: Share | None
    """Mean ASR over attack suites with `target`, each weighing the same; null if there are none."""
    mean_asr_after: Share | None
    """The same after the repair."""
    relative_reduction: float | None
    """(before − after) / before; null if before is 0."""
    utility_before: Share | None
    """Mean rate over utility suites."""
    utility_after: Share | None
    """The same after the repair."""
    utility_change: float | None
    """After − before, in points."""
    answered_before: Share | None
    """Mean rate over over-refusal suites."""
    answered_after: Share | None
    """The same after the repair."""
    over_refusal_change: float | None
    """Answered before − after, in points: positive means more harmless requests left unanswered."""
    degenerate_change: float
    """Mean over all suites of the share of degenerate answers, after − before, in points."""
    targets: tuple[Target, ...]
    """The six targets, below."""
    all_met: bool
    """Whether every target's `met` is true."""
    verdict: str
    """The headline."""


# -- examples ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttributedExample:
    """Token scores of one example over its image and its prompt."""

    id: str
    """The example's id."""
    image: Image | None
    """As the model saw it; null where its tokens are no grid."""
    grid: tuple[Count, Count] | None
    """Rows and columns of visual tokens, or null without an image."""
    visual_scores: tuple[float, ...]
    """Rows × columns numbers, row by row."""
    tokens: tuple[str, ...]
    """Tokens of the prompt."""
    text_scores: tuple[float, ...]
    """One score for each token."""

    def check(self) -> None:
        """Misfit unless every token has one score."""
        rows, columns = self.grid or (0, 0)
        same_count(len(self.visual_scores), rows * columns, "visual_scores", "grid")
        same_count(len(self.text_scores), len(self.tokens), "text_scores", "tokens")


@dataclass(frozen=True)
class Attribution:
    """Token heatmaps; the page scales scores from lowest to highest within each example."""

    examples: tuple[AttributedExample, ...]
    """Possibly none."""


@dataclass(frozen=True)
class AnswerPair:
    """One example with the answers before and after."""

    suite: str
    """A name in `suites`."""
    id: str
    """The example's id."""
    goal: str
    """What is asked for, in clean words."""
    prompt: str
    """The text that the model saw."""
    image: Image | None
    """The first picture that it saw; null without one."""
    before: str
    """The answer of the bare model."""
    after: str
    """The answer of the repaired one."""
    outcome_before: Outcome
    """What became of the first."""
    outcome_after: Outcome
    """What became of the second."""


# -- the whole -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One stage of the run."""

    name: str
    """What was done."""
    seconds: NonNegative
    """Wall-clock time."""


@dataclass(frozen=True)
class RunCost:
    """What the run cost."""

    stages: tuple[Stage, ...]
    """In order."""
    total_seconds: NonNegative
    """The whole run."""
    peak_memory_gib: NonNegative
    """Peak resident memory."""
    machine: dict[str, Any]
    """Free-form."""


@dataclass(frozen=True)
class Report:
    """The whole tree of `report.json`."""

    schema: Literal["care.report/4"]
    """Name and version of this schema."""
    title: str
    """Heading of the report."""
    created: str
    """When it was written, ISO 8601."""
    suites: tuple[SuiteResult, ...]
    """What was measured before and after the repair, at least one suite."""
    outcomes: dict[str, dict[When, dict[Outcome, Count]]]
    """Suite name → answers counted by outcome; exactly the names in `suites`."""
    cost: RunCost
    """Time and memory."""
    manifest: dict[str, Any]
    """Free-form: model, revision, digests, versions, seed, suites with licences, command."""
    summary: Summary | None = None
    """Computed by `summarise`; may be left out when writing, and must agree when given."""
    controls: dict[str, Control] = field(default_factory=dict)
    """Name → control; `{}` when none was run."""
    certified: Annotated[dict[str, Certificate], WHEN_SET] = field(default_factory=dict)
    """Attack suite → the most that attacks can achieve on its requests beside any picture, under
    the repair; absent where it has no monitor of requests."""
    parts: Annotated[dict[str, Control], WHEN_SET] = field(default_factory=dict)
    """Part of the repair, such as its edits without its monitors → the same figures."""
    diagnosis: Diagnosis | None = None
    """Where the model is unsafe; null when it wasn't diagnosed."""
    attribution: Attribution = field(default_factory=lambda: Attribution(()))
    """Token heatmaps."""
    repair: RepairPart | None = None
    """What was changed and how it was chosen."""
    examples: tuple[AnswerPair, ...] = ()
    """Answers side by side, possibly none."""

    def check(self) -> None:
        """Misfit where two parts contradict each other."""
        Measured(self.suites, self.outcomes, self.controls).check()
        known = {suite.name for suite in self.suites}
        for i, pair in enumerate(self.examples):
            if pair.suite not in known:
                raise Misfit(f"examples[{i}].suite", f"is {pair.suite!r}, which isn't in suites")


def validate(tree: Mapping[str, Any], strict: bool = True) -> None:
    """Raise `DataError` with the path of the first key that breaks the schema.

    Parameters
    ----------
    tree
        A whole report of plain JSON values.
    strict
        Refuse keys that the schema doesn't know (a typing error would lose data without notice).
        `load_report` passes False, so that a later minor addition stays readable.
    """
    found = tree.get("schema")
    if found != SCHEMA:
        raise DataError(
            f"{WHAT} can't be used: `schema` is {show(found)}, but this version of care reads and "
            f"writes {SCHEMA!r}; make the report again with `care repair`."
        )
    from_tree(Report, tree, strict=strict, what=WHAT)


def validate_diagnosis(tree: Mapping[str, Any]) -> None:
    """The same for a `diagnosis` alone."""
    from_tree(Diagnosis, tree, "diagnosis", what=WHAT)


def json_schema() -> dict[str, Any]:
    """The JSON schema of `report.json`, for programs that read one."""
    return schema_of(Report)
