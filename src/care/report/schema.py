"""The report's schema, written once as types and read back at run time.

Each `TypedDict` is one JSON object of `report.json`; `care.report.check` walks these hints and
`docs/report.md` describes the same keys in prose. `care.report.parts` holds what they are built of,
`care.report.findings` the diagnosis. Units: every `rate` and share is a fraction in [0, 1], a
change of one lies in [-1, 1] (the `rate` of an `Estimate` has the unit of its place); every
`*_change` of `summary` is in percentage points; seconds and GiB as named.
A key marked `NotRequired` may be left out of the tree handed to `write_report`, which fills it in,
so a written report always has every key of the top level and of `diagnosis`.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from care.diagnosis.results import Diagnosis
from care.report.parts import (
    Count,
    Image,
    Length,
    NonNegative,
    OutcomeCounts,
    OutcomeName,
    Positive,
    Rate,
    Share,
)

SCHEMA = "care.report/4"
"""Name and major version; it changes when a key changes its meaning, type or goes away."""

Role = Literal["attack", "utility", "over_refusal"]


class SuiteResult(TypedDict):
    """One suite, measured on the same examples before and after the repair."""

    name: str
    role: Role
    n: Positive
    metric: Literal["ASR", "accuracy", "answered"]
    before: Rate
    after: Rate
    discordant: Annotated[list[Count], Length(2)]
    p_mcnemar: Share | None
    p_holm: Share | None
    target: bool


class BeforeAfter(TypedDict):
    """Outcome counts of one suite."""

    before: OutcomeCounts
    after: OutcomeCounts


class Control(TypedDict):
    """Another edit, measured on the same suites."""

    mean_asr: Share
    utility: Share | None
    answered: Share | None
    suites: dict[str, Share]


class Target(TypedDict):
    """One requirement and whether it is met; `met` is null when it wasn't measured."""

    name: str
    requirement: str
    measured: str
    met: bool | None


class Summary(TypedDict):
    """What `summarise` computes from suites, outcomes and controls."""

    mean_asr_before: Share | None
    mean_asr_after: Share | None
    relative_reduction: float | None
    utility_before: Share | None
    utility_after: Share | None
    utility_change: float | None
    answered_before: Share | None
    answered_after: Share | None
    over_refusal_change: float | None
    degenerate_change: float
    targets: list[Target]
    all_met: bool
    verdict: str


class AttributedExample(TypedDict):
    """Token scores of one example over its image (row-major grid) and its prompt."""

    id: str
    image: Image | None
    grid: Annotated[list[Count], Length(2)] | None
    visual_scores: list[float]
    tokens: list[str]
    text_scores: list[float]


class Attribution(TypedDict):
    """Token heatmaps."""

    examples: list[AttributedExample]


class Gate(TypedDict):
    """When a channel acts: one discriminant for each family of attacks."""

    families: list[str]
    low: list[float]
    high: list[float]
    open: dict[str, Share]
    open_benign: Share
    quantile: Share


class Channel(TypedDict):
    """One fitted subspace of the repair, at one site."""

    site: str
    modality: str
    scopes: list[str]
    rank: Count
    strength: float
    eigenvalues: list[float]
    null_quantile: float | None
    shrinkage: float
    condition: float
    n_malicious: Count
    n_benign: Count
    gate: Gate | None


class Candidate(TypedDict):
    """One repair tried on the validation split."""

    name: str
    asr: Share
    utility: Share
    answered: Share
    degenerate: Share
    chosen: bool


class Selection(TypedDict):
    """How the repair was chosen among the candidates."""

    rule: str
    screened: list[Candidate]
    candidates: list[Candidate]


class RepairBlock(TypedDict):
    """What was changed."""

    preset: str
    channels: list[Channel]
    selection: Selection


class AnswerPair(TypedDict):
    """One example with the answers before and after."""

    suite: str
    id: str
    goal: str
    prompt: str
    image: Image | None
    before: str
    after: str
    outcome_before: OutcomeName
    outcome_after: OutcomeName


class Stage(TypedDict):
    """Wall-clock time of one stage of the run."""

    name: str
    seconds: NonNegative


class Cost(TypedDict):
    """What the run cost."""

    stages: list[Stage]
    total_seconds: NonNegative
    peak_memory_gib: NonNegative
    machine: dict[str, Any]


class Report(TypedDict):
    """The whole tree of `report.json`."""

    schema: Literal["care.report/4"]
    title: str
    created: str
    suites: list[SuiteResult]
    outcomes: dict[str, BeforeAfter]
    cost: Cost
    manifest: dict[str, Any]
    summary: NotRequired[Summary]
    controls: NotRequired[dict[str, Control]]
    diagnosis: NotRequired[Diagnosis | None]
    attribution: NotRequired[Attribution]
    repair: NotRequired[RepairBlock | None]
    examples: NotRequired[list[AnswerPair]]
