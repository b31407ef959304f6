"""How a repair is fitted: the settings, and the three that have names.

`corrected`, the default, has a gate and reads family means at the decision position.

`paper` has the formulas as printed, at every token and step by step: the layers that an ablation
points to, their FFN outputs, the attributed tokens of either modality, their moments, generalized
eigenvectors, P_safe h + β (1 − P_safe) h_benign, adaptive fusion.

`official` has the behaviour of the released code, for parity. What is odd or without effect there:
its score of text tokens is 0.7 times the mean squared distance to the others and 0.3 times a kernel
term that is at most 1 beside distances of 10 to 100 000, so that the kernel is inert and the tokens
furthest off win; activations come from the residual stream and edits go to FFN outputs; the ridge
of 1e-6 with fewer rows than dimensions makes λ measure the ridge; the directions aren't orthogonal;
strength 4 reverses the unsafe coordinates and amplifies them threefold; the term that adds the
benign part back is the difference of two equal means, which leaves β = 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from care.defenses.monitors.fitting import MonitorConfig
from care.defenses.repair.attribution import AttributionConfig
from care.defenses.repair.channel import Fusion
from care.defenses.repair.fitting_data import ContrastName
from care.defenses.repair.gate import GateConfig
from care.defenses.repair.subspace import Projection, SubspaceConfig
from care.errors import UsageError
from care.models.sites import Scope, SiteKind

Preset = Literal["paper", "official", "corrected"]
LayerChoice = Literal["channels", "ablation", "depth"]
Directions = Literal["families", "activations"]

_LATER = frozenset({"layers_by", "attribution", "directions", "projection", "beta", "monitors"})
"""Fields that came after the first repairs were stored."""


@dataclass(frozen=True)
class RepairConfig:
    """How a repair is fitted; `PRESETS` holds the three that have names."""

    kind: SiteKind = "layer_out"
    """Kind of the sites that are edited."""
    fit_kind: SiteKind | None = None
    """Kind of site at which activations are taken; None: where they are edited."""
    layers_by: LayerChoice = "channels"
    """What chooses the layers in a job, where no sites are given: the scan of single `channels`
    (which needs a gate), the `ablation` of whole layers, or `depth`, which is also taken where the
    others recommend nothing."""
    depth: tuple[float, ...] = (0.65, 0.8)
    """Relative depths of the sites, when no sites are given."""
    text_depth: tuple[float, ...] | None = (0.8,)
    """The same of text channels; None: as `depth`."""
    scopes: tuple[Scope, ...] = ("decision",)
    """Tokens that are edited."""
    attribution: AttributionConfig | None = None
    """Which tokens of each modality the moments are taken over; None for all tokens of the contrast
    or, with `directions` of families or a gate, for the decision position. With them and an
    attribution, requests have a row of their own picture's or text's tokens."""
    directions: Directions = "families"
    """Scatter C_m whose directions are the subspace: of the attack `families`' means about the
    refusals (`family_subspace`), or of single `activations` (`subspace`)."""
    gate: GateConfig | None = field(default_factory=GateConfig)
    """How gates are fitted, and the covariance of families' directions; None: channels are always
    open."""
    text_contrast: ContrastName = "comply-rest"
    """With directions of activations: what counts as benign on the text side (see
    `fitting_data`)."""
    subspace: SubspaceConfig = field(default_factory=SubspaceConfig)
    """With directions of activations: target, shrinkage and rank of every subspace."""
    projection: Projection = "orthogonal"
    """How the unsafe coordinates are taken away: `orthogonal`, or `oblique`, the least change in
    units of the benign covariance (`subspace`)."""
    strength: float = 1.2
    """a; 1 removes the unsafe coordinates, more overshoots."""
    beta: float = 1.0
    """β, how much of the anchor's unsafe part is put back: the anchor is stored times β, since
    h − a Q Qᵀ (h − β μ) is P_safe h + β (1 − P_safe) μ at a = 1."""
    fusion: Fusion = "adaptive"
    """How corrections of one token are combined (`edit`)."""
    monitors: MonitorConfig | None = field(default_factory=MonitorConfig)
    """How monitors are fitted, after whose alarms alone channels are closed; None: there are no
    monitors, and channels act on every request."""

    def __post_init__(self) -> None:
        choices = {"layers_by": LayerChoice, "directions": Directions, "projection": Projection}
        for name, known in choices.items():
            if getattr(self, name) not in get_args(known):
                words = ", ".join(get_args(known))
                raise UsageError(f"{name} must be one of {words}, got {getattr(self, name)!r}")
        if not math.isfinite(self.beta):
            raise UsageError(f"beta must be a finite number, got {self.beta}")

    def facts(self) -> dict[str, Any]:
        """The configuration as a manifest states it.

        Later fields are left out at their defaults, which is what repairs did before there were
        such fields: fitted again, a repair has the digest that it had.
        """
        before = RepairConfig(monitors=None)
        same = {name for name in _LATER if getattr(self, name) == getattr(before, name)}
        stated = {name: value for name, value in asdict(self).items() if name not in same}
        if self.gate is not None and not self.gate.features:
            del stated["gate"]["features"]
        return stated

    @property
    def keeps_decisions(self) -> bool:
        """Whether all that channels are fitted on is such activations, which can be kept."""
        return self.directions == "families" and self.attribution is None

    @property
    def reads_decisions(self) -> bool:
        """Whether anything is fitted on activations at the decision position."""
        grouped = self.gate is not None or self.directions == "families"
        return grouped and self.attribution is None


_PAPER = RepairConfig(
    kind="ffn_out",
    layers_by="ablation",
    depth=(0.5, 0.53, 0.56),
    text_depth=None,
    scopes=("all",),
    attribution=AttributionConfig(),
    directions="activations",
    gate=None,
    text_contrast="comply-refuse",
    subspace=SubspaceConfig(target="cov", rank="auto"),
    strength=1.0,
    monitors=None,
)

PRESETS: Mapping[Preset, RepairConfig] = {
    "paper": _PAPER,
    "official": replace(
        _PAPER,
        fit_kind="layer_out",
        layers_by="depth",
        attribution=AttributionConfig(text_score="release"),
        subspace=SubspaceConfig(target="cov", ridge=1e-6, rank=64, orthonormalise=False),
        strength=4.0,
    ),
    "corrected": RepairConfig(),
}
"""The formulas as printed; the released code's behaviour, for parity; and the default."""
