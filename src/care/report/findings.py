"""The `diagnosis` part of the report's schema: sites, causal quantities, neurons, trust.

The same conventions as in `care.report.schema`. Keys marked `NotRequired` may be left out of a tree
handed to `write_report`, which fills them in as empty; a written report has them all.
"""

from typing import Annotated, Literal, NotRequired, TypedDict

from care.report.parts import (
    Change,
    ChangeGap,
    Count,
    Estimate,
    Length,
    NonNegative,
    OutcomeCounts,
    Positive,
    RandomBand,
    Range,
    RateChange,
    Share,
    ShareEstimate,
)


class LayerEffect(TypedDict):
    """Effect of ablating one component of one layer, with its bootstrap interval."""

    layer: Count
    component: Literal["ffn", "mhsa", "layer"]
    effect: float
    low: float
    high: float
    benign_effect: float
    selectivity: float
    selectivity_low: float
    p: NotRequired[Share | None]


class LayerSeparability(TypedDict):
    """How far malicious and benign activations are apart after one layer."""

    layer: Count
    silhouette: float
    class_separation: float
    mahalanobis: float


class Correlation(TypedDict):
    """Spearman rank correlation with its interval."""

    rho: Change
    low: Change
    high: Change
    n: NotRequired[Count]


class GeneratedSite(TypedDict):
    """Generated answers with one site ablated."""

    site: str
    n: Count
    outcomes: OutcomeCounts
    asr_change: RateChange


class RecommendedSite(TypedDict):
    """A site that the diagnosis proposes to edit, and why."""

    site: str
    modality: str
    reason: str


class ChannelSite(TypedDict):
    """What closing one channel alone does to the share of refusals, with its interval."""

    site: str
    layer: Count
    modality: str
    effect: Change
    low: Change
    high: Change
    benign_effect: Change
    selectivity: ChangeGap
    selectivity_low: ChangeGap
    n_attacks: Count
    n_benign: Count
    recommended: bool


class ChannelScan(TypedDict):
    """The causal test of each unsafe channel, one for each layer and modality."""

    metric: str
    rule: str
    sites: list[ChannelSite]


class HeatCell(TypedDict):
    """One component removed from one layer or a window of layers, by one intervention."""

    layer: Count
    component: Literal["ffn", "mhsa", "layer", "neurons"]
    window: Positive
    intervention: str
    effect: float
    low: float
    high: float
    benign_effect: float
    selectivity: float
    selectivity_low: float
    relative_norm: NonNegative


class Comparison(TypedDict):
    """FFN against MHSA under one intervention, alike in kind or in the norm that is removed."""

    intervention: str
    matched_by: Literal["kind", "norm"]
    ffn: Estimate
    mhsa: Estimate
    difference: Estimate
    survives: bool
    ffn_norm: NonNegative
    mhsa_norm: NonNegative


class CausalEffect(TypedDict):
    """Total, direct and indirect effect of the attack through one site, and patching both ways."""

    site: str
    pairs: NotRequired[str]
    window: Positive
    metric: str
    total: Estimate
    direct: Estimate
    indirect: Estimate
    reversed_indirect: Estimate
    identity_error: NonNegative | None
    noising: Estimate | None
    denoising: Estimate | None
    aligned: Share


class Firing(TypedDict):
    """One prompt in which a neuron is most active, and the token there."""

    example: str
    token: str
    activation: float


class FiringPatch(TypedDict):
    """One image patch on which a neuron is most active."""

    example: str
    image: Count
    row: Count
    column: Count
    activation: float


class Neuron(TypedDict):
    """One FFN neuron: what the gradient estimates, what patching it really does, what it means."""

    layer: Count
    neuron: Count
    estimate: float
    exact: float
    low: float
    high: float
    p: Share
    q: Share
    benign_exact: float | None
    top_tokens: list[str]
    suppressed_tokens: list[str]
    examples: list[Firing]
    patches: list[FiringPatch]


class Suppressed(TypedDict):
    """First tokens of answers on validation with one edit."""

    not_refused: Share
    benign_refused: Share


class JudgedEdit(TypedDict):
    """Whole answers on validation with one edit."""

    edit: Literal["none", "neurons", "subspace"]
    asr: ShareEstimate
    utility: Share | None
    answered: Share | None
    degenerate: Share


class JudgedRepairs(TypedDict):
    """A neuron repair beside the subspace repair, by whole answers to the same requests."""

    neurons: Positive
    within_margin: bool
    edits: list[JudgedEdit]
    difference: Estimate


class NeuronRepair(TypedDict):
    """The least set of neurons whose suppression makes attacks refused, beside the subspaces."""

    rule: str
    neurons: list[Annotated[list[Count], Length(2)]]
    before: Suppressed
    after: Suppressed
    subspace: Suppressed | None
    judged: NotRequired[JudgedRepairs | None]


class NeuronReport(TypedDict):
    """The search over all FFN neurons, verified by exact patching."""

    pairs: NotRequired[str]
    method: str
    n_neurons: Positive
    steps: Positive
    forward_equivalents: NonNegative
    scopes: list[str]
    spearman: Correlation
    precision: dict[str, Share]
    control_ratio: NonNegative | None
    found: list[Neuron]
    controls: list[Neuron]
    repair: NotRequired[NeuronRepair | None]


class CurvePoint(TypedDict):
    """One set size of a faithfulness curve."""

    size: Count
    metric: Estimate
    faithfulness: Estimate
    completeness: Estimate
    random_faithfulness: RandomBand
    random_completeness: RandomBand


class FaithfulnessCurve(TypedDict):
    """How much of the behaviour the best units of one ranking account for."""

    units: str
    metric: str
    n_units: Annotated[int, Range(2)]
    draws: Positive
    matched: bool
    scale: Estimate
    points: list[CurvePoint]
    cpr: Estimate
    cmd: Estimate
    random_cpr: RandomBand
    random_cmd: RandomBand
    sufficiency_advantage: Estimate
    necessity_advantage: Estimate
    beaten: Share
    p_random: Share


class StabilityRow(TypedDict):
    """Agreement of two looks at the same units."""

    kind: Literal["seed", "half", "family", "intervention"]
    name: str
    spearman: Correlation
    overlap: ShareEstimate
    top: Positive
    chance: Share
    reliability: Correlation | None


class Trust(TypedDict):
    """What tells a finding from an accident."""

    faithfulness: list[FaithfulnessCurve]
    stability: list[StabilityRow]


class RescannedSite(TypedDict):
    """One site removed in two ways: effects on the same attacks."""

    site: str
    top: bool
    effect: Estimate
    again: Estimate


class Rescan(TypedDict):
    """The greatest sites, and as many others, removed in a second way."""

    intervention: str
    against: str
    sites: list[RescannedSite]


class Diagnosis(TypedDict):
    """Where the model is unsafe."""

    verdict: str
    metric: str
    intervention: str
    n_layers: Positive
    layers: list[LayerEffect]
    separability: list[LayerSeparability]
    rank_correlation: dict[str, Correlation]
    generated: list[GeneratedSite]
    recommended: list[RecommendedSite]
    channels: ChannelScan | None
    sign: str
    heatmap: NotRequired[list[HeatCell]]
    rescan: NotRequired[Rescan | None]
    comparison: NotRequired[list[Comparison]]
    causal: NotRequired[list[CausalEffect]]
    neurons: NotRequired[NeuronReport | None]
    trust: NotRequired[Trust | None]
    supported: NotRequired[list[str]]
    unsupported: NotRequired[list[str]]
