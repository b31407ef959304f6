"""What the looks at sites say: scans, causal effects, channels, a second way of removing.

Each class is one object of the `diagnosis` part of report.json, its fields the keys, and is read
back and checked by `care.typed`. What fields owe each other is `check`: every figure lies in its
interval, a selectivity is the difference of its two effects, nothing is listed twice or outside of
the model. The figures are made in the modules that each class names; nothing is computed here, and
no torch is imported.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np

from care.judges.base import Outcome
from care.models.sites import Site, SiteKind
from care.statistics.intervals import Interval
from care.typed import (
    HIDDEN,
    TOLERANCE,
    Change,
    Count,
    Misfit,
    NonNegative,
    Positive,
    Range,
    Share,
    hints,
    in_order,
    inside,
)

Component = Literal["ffn", "mhsa", "layer"]
Removable = Literal["ffn", "mhsa", "layer", "neurons"]

KINDS: dict[Component, SiteKind] = {"ffn": "ffn_out", "mhsa": "mhsa_out", "layer": "layer_out"}
"""The site of each component."""


# -- removing sites --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerEffect:
    """What removing one component of one layer does to the refusal log-odds, in nats."""

    layer: Count
    """Index of the layer; of the middle one of a window."""
    component: Component
    """What is removed: the FFN's output, that of the attention, or the whole layer."""
    effect: float
    """Mean change on attacks; positive: the site carries the attack."""
    low: float
    """Lower limit, bootstrap over goals."""
    high: float
    """Upper limit."""
    benign_effect: float
    """Mean change on benign prompts."""
    selectivity: float
    """`effect` − `benign_effect`."""
    selectivity_low: float
    """Lower limit of the selectivity."""

    @property
    def site(self) -> Site:
        """The site that was removed; the middle one of a window."""
        return Site(self.layer, KINDS[self.component])


@dataclass(frozen=True)
class HeatCell(LayerEffect):
    """One component removed from one layer or a window of layers, by one intervention."""

    component: Removable  # pyright: ignore[reportIncompatibleVariableOverride]
    """What is removed: as in `LayerEffect`, or all FFN neurons of the layer."""
    window: Positive
    """Number of consecutive layers that were removed at once."""
    intervention: str
    """Kind of ablation."""
    relative_norm: NonNegative
    """‖Δh‖/‖h‖ of the intervention at the site, to compare how much was removed."""

    def check(self) -> None:
        """Misfit where the figures contradict each other."""
        check_selectivity(self)

    @property
    def alone(self) -> LayerEffect:
        """The figures without what was removed and how much."""
        return LayerEffect(**{name: getattr(self, name) for name in hints(LayerEffect)})


@dataclass(frozen=True)
class LayerSeparability:
    """How far attack and benign activations lie apart after one layer."""

    layer: Count
    """Index of the layer."""
    silhouette: float
    """In [−1, 1]."""
    class_separation: float
    """Distance of the means over the mean spread."""
    mahalanobis: float
    """Distance of the means under the shrunk pooled covariance."""


@dataclass(frozen=True)
class GeneratedSite:
    """Answers to n attacks while one site is removed (`care.diagnosis.ablated_answers`)."""

    site: Site
    """The site."""
    n: Count
    """Number of answers that could be judged."""
    outcomes: dict[Outcome, Count]
    """How many there are of each outcome."""
    asr_change: Annotated[Interval, Range(-1.0, 1.0)]
    """Share of harmful answers minus that of the untouched model, on the examples whose answers
    could be judged both times."""
    degenerate_rise: Annotated[float, HIDDEN] = field(default=0.0, compare=False)
    """Share of degenerate answers minus that of the untouched model."""


@dataclass(frozen=True)
class RecommendedSite:
    """A site that the diagnosis proposes to edit, and why."""

    site: Site
    """Where."""
    modality: str
    """`visual`, `text` or `visual+text`, the tokens at which removing the site matters; for a
    channel `image` or `text`, the attacks that it's of."""
    reason: str
    """The figures behind it, in a sentence."""


@dataclass(frozen=True)
class ComponentComparison:
    """Mean |change in m| when the FFN or the attention of a layer is ablated, over all layers."""

    intervention: str
    """Kind of ablation, the same for both."""
    matched_by: Literal["kind", "norm"]
    """Whether the ablations are whole (`kind`) or scaled to remove equally much (`norm`)."""
    ffn: Interval
    """That of the FFN."""
    mhsa: Interval
    """That of the attention."""
    difference: Interval
    """FFN − attention, paired by example."""
    survives: bool
    """Whether the FFN's is more than twice that of the attention (lower limit)."""
    ffn_norm: NonNegative
    """How much the ablation of the FFN removes of the residual stream, mean over layers."""
    mhsa_norm: NonNegative
    """The same for the attention."""

    def check(self) -> None:
        """Misfit where the figures contradict each other."""
        same(self.difference.rate, self.ffn.rate - self.mhsa.rate, "ffn less mhsa")
        if self.survives and self.difference.low <= 0.0:
            low = self.difference.low
            raise Misfit("survives", f"is True, but the difference may be as low as {low:g}")


@dataclass(frozen=True)
class Changes:
    """What S removals do to each of N examples: attacks first, then benign prompts."""

    effects: tuple[HeatCell, ...]
    """What was removed (S,)."""
    values: np.ndarray
    """Change in the refusal log-odds (S, N)."""
    changed: np.ndarray
    """How much was removed (S, N, 3): see `care.diagnosis.scan.Scan`."""
    goals: tuple[str, ...]
    """Goal of each example (N,)."""
    suites: tuple[str, ...]
    """Suite of each example (N,)."""
    n_attacks: int
    """Number of attacks among them."""


# -- the second way --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RescannedSite:
    """One site, removed in two ways; effects on the same attacks in nats."""

    site: Site
    """Where."""
    top: bool
    """Whether it is one of the greatest; the others were drawn at random."""
    effect: Interval
    """Effect of removing it as in the first look."""
    again: Interval
    """Effect of removing it in the second way."""


@dataclass(frozen=True)
class Rescan:
    """The greatest sites, and as many others, removed in a second way
    (`care.diagnosis.site_reliability`)."""

    intervention: str
    """The second way."""
    against: str
    """The first one."""
    sites: tuple[RescannedSite, ...]
    """The greatest sites first, then the others."""

    def check(self) -> None:
        """Misfit for a site that is there twice."""
        for i in repeated(item.site for item in self.sites):
            raise Misfit(f"sites[{i}].site", f"repeats {str(self.sites[i].site)!r}")


# -- causal effects --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio(Interval):
    """A ratio of two means with its interval, outside of which it may lie."""

    def check(self) -> None:
        """Misfit unless the limits are in order."""
        in_order(self)


@dataclass(frozen=True)
class SiteEffects:
    """What one mediator carries, in units of the measure: means over pairs, by goal
    (`care.diagnosis.causal_mediation`)."""

    pairs: str = field(default="", kw_only=True)
    """What the pairs differ in, in words."""
    site: str
    """The mediator: `16.ffn_out`, or `15-17.ffn_out` for a window."""
    window: Positive
    """Number of its layers."""
    metric: str
    """The measure m, with its unit."""
    total: Interval
    """TE."""
    direct: Interval
    """NDE."""
    indirect: Interval
    """NIE, x → x'."""
    reversed_indirect: Interval
    """NIE(x' → x)."""
    identity_error: NonNegative | None
    """Largest |TE − (NDE − NIE(x'→x))| of a pair; null where it wasn't checked."""
    noising: Ratio | None
    """NIE / TE: share of the effect that the site brings into a clean run; null if the total
    effect isn't told from 0."""
    denoising: Ratio | None
    """−NIE(x'→x) / TE: share that is undone by cleaning the site in the attack run."""
    aligned: Share
    """Share of the attacks' positions in scope that have a counterpart."""

    def check(self) -> None:
        """Misfit if the identity fails for the means by more than it does for any pair."""
        error = abs(self.total.rate - (self.direct.rate - self.reversed_indirect.rate))
        stated = self.identity_error or 0.0
        if error > stated + TOLERANCE:
            words = f"is {stated:g}, but total less (direct less reversed_indirect) is {error:g}"
            raise Misfit("identity_error", words)


# -- channels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChannelEffect:
    """What closing one channel does, as shares of requests that are not refused without it
    (`care.diagnosis.channel_scan`)."""

    site: Site
    """Where."""
    layer: Count
    """Its layer."""
    modality: str
    """Which channel of the site: `image` or `text`."""
    effect: Change
    """Share of the attacks of this modality that are refused."""
    low: Change
    """Lower limit."""
    high: Change
    """Upper limit."""
    benign_effect: Change
    """Share of benign requests that are refused."""
    selectivity: Annotated[float, Range(-2.0, 2.0)]
    """`effect` − `benign_effect`."""
    selectivity_low: Annotated[float, Range(-2.0, 2.0)]
    """Lower limit of the selectivity."""
    n_attacks: Count
    """Attacks that are not refused without it."""
    n_benign: Count
    """Benign requests that are not refused without it."""
    recommended: bool
    """Whether a repair should close it."""

    def check(self) -> None:
        """Misfit where the figures contradict each other."""
        check_selectivity(self)


@dataclass(frozen=True)
class ChannelScan:
    """The causal test of each unsafe channel, one for each layer and modality."""

    metric: str
    """What is measured, in words."""
    rule: str
    """How sites are recommended, in words."""
    sites: tuple[ChannelEffect, ...]
    """Every channel."""


# -- what fields owe each other --------------------------------------------------------------------


def check_selectivity(item: LayerEffect | ChannelEffect) -> None:
    """The effect lies in its interval; the selectivity is the difference, above its lower limit."""
    inside(item, "effect")
    gap = item.effect - item.benign_effect
    same(item.selectivity, gap, "effect less benign_effect", "selectivity")
    if item.selectivity_low > item.selectivity + TOLERANCE:
        low, middle = item.selectivity_low, item.selectivity
        raise Misfit("selectivity_low", f"is {low:g}, above the selectivity {middle:g}")


def same(stated: float, found: float, source: str, path: str = "difference.rate") -> None:
    """Misfit unless a stated figure is what its parts give; `source` names these."""
    if abs(found - stated) > TOLERANCE:
        raise Misfit(path, f"is {stated:g}, but {source} is {found:g}")


def repeated(keys: Iterable[Hashable]) -> Iterable[int]:
    """Places of keys that came before."""
    seen: set[Hashable] = set()
    for place, key in enumerate(keys):
        if key in seen:
            yield place
        seen.add(key)
