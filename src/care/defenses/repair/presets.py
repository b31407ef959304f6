"""How a repair is fitted: the settings, and the three that have names.

`corrected`, the default, has a gate and reads single directions per family of attacks; `paper` has
the formulas as printed, `official` the behaviour of the released code, for parity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from care.defenses.repair.channel import Fusion
from care.defenses.repair.fitting_data import ContrastName
from care.defenses.repair.gate import GateConfig
from care.defenses.repair.subspace import SubspaceConfig
from care.models.sites import Scope, SiteKind

Preset = Literal["paper", "official", "corrected"]


@dataclass(frozen=True)
class RepairConfig:
    """How a repair is fitted; `PRESETS` holds the three that have names."""

    kind: SiteKind = "layer_out"
    """Kind of the sites that are edited."""
    fit_kind: SiteKind | None = None
    """Kind of site at which activations are taken; None: where they are edited."""
    depth: tuple[float, ...] = (0.65, 0.8)
    """Relative depths of the sites, when no sites are given."""
    text_depth: tuple[float, ...] | None = (0.8,)
    """The same of text channels; None: as `depth`."""
    scopes: tuple[Scope, ...] = ("decision",)
    """Tokens that are edited."""
    gate: GateConfig | None = field(default_factory=GateConfig)
    """How gates are fitted; None for an orthogonal projection without a gate."""
    text_contrast: ContrastName = "comply-rest"
    """Without a gate: what counts as benign on the text side (see `fitting_data`)."""
    subspace: SubspaceConfig = field(default_factory=SubspaceConfig)
    """Without a gate: target, shrinkage and rank of every subspace."""
    strength: float = 1.2
    """a; 1 removes the unsafe coordinates, more overshoots."""
    fusion: Fusion = "adaptive"
    """How two corrections of one token are combined."""


_PAPER = RepairConfig(
    kind="ffn_out",
    depth=(0.5, 0.53, 0.56),
    text_depth=None,
    scopes=("all",),
    gate=None,
    text_contrast="comply-refuse",
    subspace=SubspaceConfig(target="cov", rank="auto"),
    strength=1.0,
)

PRESETS: Mapping[str, RepairConfig] = {
    "paper": _PAPER,
    "official": replace(
        _PAPER,
        fit_kind="layer_out",
        subspace=SubspaceConfig(target="cov", ridge=1e-6, rank=64, orthonormalise=False),
        strength=4.0,
    ),
    "corrected": RepairConfig(),
}
"""The formulas as printed; the released code's behaviour, for parity; and the default."""
