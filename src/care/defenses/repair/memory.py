"""What a repair remembers of its fit, so that new requests can be folded in without the old ones.

    decisions   at every site of its channels the activations at the decision position, with family,
                goal and pictures of each request, goals and pictures as digests
    monitors    of each monitor the rows that its detector and threshold rest on (`monitors.memory`)

Thresholds are quantiles of cross-fitted scores, which no sums give: so it is rows that are kept,
and what is folded in is fitted on old rows and new ones as a fit on all of them would, to the bit,
in one step or in several. The sites, poolings and settings stay. Not here: the new requests
(`folding`) and files (`care.defenses.artefact_memory`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from care.data.digests import text_digest
from care.data.example import Example
from care.defenses.monitors.memory import MonitorMemory
from care.defenses.repair.families import LEAST_FAMILY, Told, classes_of
from care.defenses.repair.family_subspace import Classes, unsafe_subspace
from care.defenses.repair.gate import Gate, GateConfig, fit_gate
from care.defenses.repair.subspace import Projection, Subspace
from care.models.sites import Site, SiteKind

Rows = tuple[np.ndarray, ...]
"""Activations (N, D) of the three classes of a `Material`."""


@dataclass(frozen=True, eq=False)
class DecisionMemory:
    """Activations at the decision position, and how channels are fitted on them."""

    told: tuple[tuple[Told, ...], ...]
    """Of each of the three classes what is told of its requests."""
    rows: Mapping[Site, Rows]
    """Activations of the three classes where they are taken."""
    fit_kind: SiteKind | None
    """Kind of site at which they are taken; None: where channels are."""
    gate: GateConfig | None
    """How gates are fitted; None: there are none."""
    projection: Projection
    """How the unsafe coordinates are taken away."""
    beta: float
    """β: what anchors are multiplied by."""

    def source(self, site: Site) -> Site:
        """Where the activations for a channel at `site` are taken."""
        return Site(site.layer, self.fit_kind or site.kind)

    def classes(self, site: Site, pictured: bool) -> Classes:
        """What a channel of attacks with pictures, or without, is fitted on."""
        attacks, *others = self.rows[self.source(site)]
        own = [place for place, each in enumerate(self.told[0]) if bool(each.pictures) == pictured]
        worked = tuple(self.told[0][place] for place in own)
        return classes_of((attacks, *others), (worked, *self.told[1:]), own)

    def fitted(self, site: Site, pictured: bool) -> tuple[Subspace, Gate | None]:
        """The subspace and the gate of a channel."""
        classes = self.classes(site, pictured)
        subspace = families_subspace(classes, self.gate, self.projection)
        gate = None if self.gate is None else fit_gate(classes, self.gate)
        return anchored(subspace, self.beta), gate

    def joined(self, told: Sequence[Sequence[Told]], rows: Mapping[Site, Rows]) -> DecisionMemory:
        """The same with further requests of each class."""
        both = {
            site: tuple(np.concatenate(pair) for pair in zip(old, rows[site], strict=True))
            for site, old in self.rows.items()
        }
        pairs = zip(self.told, told, strict=True)
        return replace(self, told=tuple((*old, *new) for old, new in pairs), rows=both)

    def waiting(self) -> dict[str, int]:
        """Attacks by family of those that are in none: too few, and with all others of their
        modality that are, too few as well."""
        sides = [[each.family for each in self.told[0] if bool(each.pictures) == side]
                 for side in (True, False)]  # fmt: skip
        few: Counter[str] = Counter()
        for side in sides:
            own = {name: n for name, n in Counter(side).items() if n < LEAST_FAMILY}
            if sum(own.values()) < LEAST_FAMILY:
                few.update(own)
        return dict(few)


@dataclass(frozen=True, eq=False)
class Memory:
    """All that a repair remembers."""

    decisions: DecisionMemory | None = None
    """What its channels rest on; None of a repair without any that can be fitted again."""
    monitors: tuple[MonitorMemory, ...] = ()
    """What its monitors rest on."""


def told_of(examples: Iterable[tuple[Example, str]]) -> tuple[Told, ...]:
    """What is kept of requests, each with the digests of its pictures: no goal in words."""
    return tuple(
        Told(told.family, text_digest(told.goal), told.pictures and text_digest(told.pictures))
        for told in (Told.of(*each) for each in examples)
    )


def families_subspace(
    classes: Classes, gate: GateConfig | None, projection: Projection
) -> Subspace:
    """The subspace of families, with the covariance of the gate, or of a default one."""
    config = gate or GateConfig()
    return unsafe_subspace(
        classes,
        shrinkage=config.shrinkage,
        within=config.within,
        refusals=config.refusals,
        projection=projection,
    )


def anchored(subspace: Subspace, beta: float) -> Subspace:
    """The subspace with its anchor times β."""
    return subspace if beta == 1.0 else replace(subspace, mean=np.float32(beta) * subspace.mean)
