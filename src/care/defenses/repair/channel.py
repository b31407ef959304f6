"""Channels: what a repair consists of, as data.

A channel is the unsafe subspace of one site and modality, with the tokens at which it is closed and
the gate that opens it; `RepairData` is all of them with what they were fitted on. Both check
themselves. Not here: what they do to an activation (`edit`), how they are estimated (`fitting`) and
stored (`care.defenses.artefact`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from care.defenses.monitors.monitor import Monitor
from care.defenses.repair.gate import Gate
from care.defenses.repair.memory import Memory
from care.defenses.repair.subspace import Subspace
from care.errors import ArtefactError, SiteError, UsageError
from care.models.sites import Scope, Site

if TYPE_CHECKING:
    from care.models.vlm import VLM

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)

Fusion = Literal["adaptive", "constant", "sum", "none"]
"""How two corrections of one token are combined (formula in `edit`)."""

MAX_STRENGTH = 50
"""Greatest strength of a channel; answers are broken long before."""


@dataclass(frozen=True, eq=False)
class Channel:
    """One unsafe subspace at one site for one modality."""

    site: Site
    """Where the edit happens."""
    modality: Modality
    """What carries the attacks that the subspace was fitted on."""
    scopes: tuple[Scope, ...]
    """Which tokens are edited."""
    subspace: Subspace
    """Directions, anchor and what they were estimated from."""
    strength: float = 1.0
    """a: 1 projects; more overshoots to the other side of μ."""
    gate: Gate | None = None
    """For which activations, and how far, the channel acts; None: always."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scopes", _checked_scopes(self.scopes))
        if self.modality not in MODALITIES:
            raise UsageError(
                f"modality must be one of {', '.join(MODALITIES)}, got {self.modality!r}"
            )
        if not _is_finite(self.strength) or not 0 <= self.strength <= MAX_STRENGTH:
            raise UsageError(
                f"strength must be a finite number ≥ 0 and at most {MAX_STRENGTH}, got "
                f"{self.strength!r:.40}"
            )
        if self.gate is not None and self.gate.width != self.subspace.width:
            raise UsageError(
                f"the gate has width {self.gate.width}, the subspace {self.subspace.width}"
            )

    def projecting(self, subspace: Subspace) -> Channel:
        """The same place, tokens and strength, projecting another subspace without a gate."""
        return replace(self, subspace=subspace, gate=None)


@dataclass(frozen=True, eq=False)
class RepairData:
    """All that a repair does and was fitted on: what `fitting` makes and the artefact stores."""

    channels: tuple[Channel, ...]
    """Subspaces per site and modality."""
    fusion: Fusion = "adaptive"
    """How two corrections of one token are combined."""
    name: str = "care"
    """Name in tables."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """What it was fitted on and with: model, preset, digests, versions, evaluation summary."""
    monitors: tuple[Monitor, ...] = ()
    """What watches requests and answers; without any, channels act on every request."""
    memory: Memory | None = None
    """What channels and monitors rest on, so that new requests can be folded in; None: nothing."""

    def __post_init__(self) -> None:
        if not self.channels and not self.monitors:
            raise UsageError("a repair needs at least one channel or monitor; none were passed")
        if self.fusion not in get_args(Fusion):
            known = ", ".join(get_args(Fusion))
            raise UsageError(f"fusion must be one of {known}, got {self.fusion!r}")

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that are edited, in order."""
        return tuple(sorted({channel.site for channel in self.channels}))

    def check_sites(self, vlm: VLM) -> None:
        """ArtefactError unless every channel and monitor fits the model's layers and widths."""
        for channel in self.channels:
            _check_site(vlm, "edits", "subspace", channel.site, channel.subspace.width)
        for monitor in self.monitors:
            if monitor.site is not None and monitor.detector is not None:
                width = len(monitor.detector.mean)
                _check_site(vlm, "reads", "detector", monitor.site, width)


def _check_site(vlm: VLM, does: str, what: str, site: Site, width: int) -> None:
    try:
        vlm.anatomy.check([site])
    except SiteError as error:
        raise ArtefactError(
            f"the repair {does} {site}, which {vlm.name} with its {vlm.anatomy.n_layers} layers "
            "doesn't have: fit a repair for this model"
        ) from error
    found = vlm.anatomy.site_width(site)
    if width != found:
        raise ArtefactError(
            f"the repair's {what} at {site} has width {width}, but {vlm.name} has {found} there: "
            "it was fitted on another model"
        )


def _checked_scopes(scopes: object) -> tuple[Scope, ...]:
    known = ", ".join(get_args(Scope))
    if not isinstance(scopes, (tuple, list)):
        raise UsageError(f"scopes must be a tuple of some of {known}, got {scopes!r}")
    if not scopes or any(scope not in get_args(Scope) for scope in scopes):
        raise UsageError(f"scopes must name one or more of {known}, got {scopes!r}")
    return tuple(scopes)


def _is_finite(number: object) -> bool:
    try:
        return isinstance(number, Real) and math.isfinite(number)
    except OverflowError:  # a whole number too large for a float
        return False
