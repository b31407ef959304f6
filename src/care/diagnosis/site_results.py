"""What a diagnosis is asked for and what it says: the configuration and the result.

The figures are made in `care.diagnosis.site_scan`; nothing is computed here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from care.diagnosis.ablated_answers import GeneratedSite
from care.diagnosis.ablation import Ablation
from care.diagnosis.activation_means import Pooling
from care.diagnosis.component_contrast import Comparison
from care.errors import UsageError
from care.models.sites import Site, SiteKind
from care.runs.options import require, require_level
from care.statistics.intervals import Interval

Component = Literal["ffn", "mhsa", "layer"]

Reference = Literal["all", "benign"]

KINDS: dict[Component, SiteKind] = {"ffn": "ffn_out", "mhsa": "mhsa_out", "layer": "layer_out"}
"""The site of each component."""

_AT_LEAST = {
    "max_attacks": 2,
    "max_benign": 2,
    "generate_examples": 2,
    "top_sites": 0,
    "max_new_tokens": 1,
    "batch_size": 1,
    "resamples": 1,
    "max_cache_bytes": 0,
}

_REFUSED: dict[str, tuple[Ablation, ...]] = {
    "intervention": ("paired",),
    "layer_intervention": ("paired", "previous-layer"),
}
"""Ablations that a scan of unpaired examples, or of whole layers, can't make."""


@dataclass(frozen=True)
class DiagnosisConfig:
    """Settings of `diagnose`."""

    intervention: Ablation = "mean"
    """How an FFN or attention output is removed, the same for both; `skip` equals `zero` there.

    `constant` is fitted on benign examples beyond `max_benign`, which must be at least 2.
    `previous-layer` starts at the first layer that has an earlier one. `paired` needs pairs
    (`care.diagnosis.causal_mediation`)."""

    reference: Reference = "all"
    """Prompts whose mean a `mean` ablation puts at a site, the same for attacks and benign ones:
    `all` that are scored, or the `benign` ones alone. Attacks lie further from the latter, and
    benign prompts not at all."""

    layer_intervention: Ablation = "skip"
    """How a whole layer is removed; the paper bypasses it."""

    components: tuple[Component, ...] = ("ffn", "mhsa", "layer")
    """What is scanned."""

    windows: tuple[int, ...] = (1, 3)
    """Numbers of consecutive layers removed at once; odd, and 1 among them. Sites are recommended
    from single layers."""

    max_attacks: int | None = 16
    """Attack examples used, evenly spaced over those given; None for all."""

    max_benign: int | None = 8
    """The same for benign examples."""

    top_sites: int = 4
    """FFN and attention sites looked at more closely."""

    generate_examples: int = 12
    """Attack examples answered without each top site."""

    max_new_tokens: int = 24
    """Length of those answers."""

    min_selectivity: float = 0.1
    """Selectivity, in nats, that the lower limit of a recommended site's must exceed: with enough
    examples even negligible effects differ from 0."""

    max_degenerate_rise: float = 0.1
    """A site is turned down if the share of degenerate answers rises by more than this."""

    pooling: Pooling = "text"
    """Rows for separability: the mean over `text` tokens or the `last` token."""

    batch_size: int = 16
    """Examples per forward pass."""

    max_cache_bytes: int = 4 * 2**30
    """Most that is remembered of a batch to run it again from any layer; beyond it layers are
    computed again (see `care.models.replay`)."""

    level: float = 0.95
    """Confidence level of all intervals."""

    resamples: int = 2000
    """Bootstrap resamples (of goals)."""

    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        for name, refused in _REFUSED.items():
            known = [how for how in get_args(Ablation) if how not in refused]
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}; use one of {', '.join(known)}."
                )
        unknown = [part for part in self.components if part not in get_args(Component)]
        if unknown or not self.components:
            raise UsageError(
                f"components is {self.components!r}; use some of {', '.join(get_args(Component))}."
            )
        if 1 not in self.windows or any(size < 1 or size % 2 == 0 for size in self.windows):
            raise UsageError(
                f"windows is {self.windows!r}; use odd numbers of layers, 1 among them."
            )
        if self.reference not in get_args(Reference):
            raise UsageError(f"reference is {self.reference!r}; use all or benign.")
        if self.pooling not in get_args(Pooling):
            raise UsageError(f"pooling is {self.pooling!r}; use text or last.")
        require_level(self.level)
        require(self, _AT_LEAST)


@dataclass(frozen=True)
class LayerEffect:
    """What removing one component of one layer does to the refusal log-odds, in nats."""

    layer: int
    """Index of the layer; of the middle one of a window."""
    component: Component
    """`ffn`, `mhsa` or `layer`."""
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
    relative_norm: float
    """‖Δh‖/‖h‖ of the intervention at the site, to compare how much was removed."""
    window: int = 1
    """Number of consecutive layers that were removed at once."""
    intervention: str = ""
    """Kind of ablation."""
    residual_norm: float = 0.0
    """‖Δh‖ over the norm of the residual stream that enters the layer."""

    @property
    def site(self) -> Site:
        """The site that was removed; the middle one of a window."""
        return Site(self.layer, KINDS[self.component])


@dataclass(frozen=True)
class LayerSeparability:
    """How far attack and benign activations lie apart after one layer."""

    layer: int
    """Index of the layer."""
    silhouette: float
    """In [−1, 1]."""
    class_separation: float
    """Distance of the means over the mean spread."""
    mahalanobis: float
    """Distance of the means under the shrunk pooled covariance."""


@dataclass(frozen=True)
class RecommendedSite:
    """A site to edit."""

    site: Site
    """Where."""
    modality: str
    """`visual`, `text` or `visual+text`: the tokens at which removing the site matters."""
    reason: str
    """The figures behind it, in a sentence."""


@dataclass(frozen=True)
class Changes:
    """What S removals do to each of N examples: attacks first, then benign prompts."""

    effects: tuple[LayerEffect, ...]
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


@dataclass(frozen=True)
class Diagnosis:
    """Result of `diagnose`."""

    metric: str
    """What is measured, in words."""
    intervention: str
    """What was done to the sites, in words."""
    sign: str
    """What a positive effect means, and which sites are recommended."""
    n_layers: int
    """L."""
    layers: tuple[LayerEffect, ...]
    """Every component of every layer, removed alone."""
    separability: tuple[LayerSeparability, ...]
    """Every layer."""
    rank_correlation: dict[str, Interval]
    """Spearman's ρ over layers of each separability figure and the effect of the whole layer (of
    the first component if whole layers weren't scanned); figures that don't vary are left out."""
    generated: tuple[GeneratedSite, ...]
    """The top sites on generated answers; empty without generation."""
    recommended: tuple[RecommendedSite, ...]
    """Sites to edit, best first; may be empty."""
    verdict: str
    """The outcome in a sentence."""
    windows: tuple[LayerEffect, ...] = ()
    """Every component of every window of more than one layer."""
    comparisons: tuple[Comparison, ...] = ()
    """FFN against attention, matched by kind and by norm; empty unless both were scanned."""
    changes: Changes | None = field(default=None, compare=False, repr=False)
    """The effects on single examples, for whoever asks how stable they are; not in the JSON."""

    @property
    def sites(self) -> list[Site]:
        """The recommended sites, best first."""
        return [item.site for item in self.recommended]

    def to_json(self) -> dict[str, Any]:
        """The `diagnosis` part of report.json, as plain JSON values.

        `channels` is null: a channel scan needs fitted repairs, and whoever runs one puts it there.
        """
        keys = (
            *("layer", "component", "effect", "low", "high"),
            *("benign_effect", "selectivity", "selectivity_low"),
        )
        more = ("window", "intervention", "relative_norm")
        return {
            "verdict": self.verdict,
            "metric": self.metric,
            "intervention": self.intervention,
            "n_layers": self.n_layers,
            "layers": [{key: getattr(item, key) for key in keys} for item in self.layers],
            "heatmap": [
                {key: getattr(item, key) for key in (*keys, *more)}
                for item in (*self.layers, *self.windows)
            ],
            "comparison": [item.to_json() for item in self.comparisons],
            "separability": [asdict(item) for item in self.separability],
            "rank_correlation": {
                name: {"rho": rho.rate, "low": rho.low, "high": rho.high}
                for name, rho in self.rank_correlation.items()
            },
            "generated": [item.to_json() for item in self.generated],
            "recommended": [
                {"site": str(item.site), "modality": item.modality, "reason": item.reason}
                for item in self.recommended
            ],
            "channels": None,
            "sign": self.sign,
        }
