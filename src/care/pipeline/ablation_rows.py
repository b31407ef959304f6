"""The rows of an ablation, as data: the named presets, and each of two with one thing changed.

A row changes fields of the preset's configuration, where its sites are, which channels are kept, or
what watches.
What a row is fitted and asked on is the same for all of them (`care.pipeline.ablation`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from care.data.small_world.suites import ATTACKS, PGD
from care.defenses.monitors.results import READS, Reads
from care.defenses.repair.attribution import AttributionConfig
from care.defenses.repair.channel import Modality
from care.defenses.repair.gate import GateConfig
from care.defenses.repair.presets import PRESETS, Preset, RepairConfig
from care.defenses.repair.subspace import SubspaceConfig
from care.models.sites import Site, SiteKind

Places = dict[Modality, list[Site]]

PICTURED = ("beside-image", "pictured-goal", *PGD)
"""The small world's attack suites that come with pictures."""


@dataclass(frozen=True)
class Change:
    """One row: a preset, with at most one thing changed."""

    name: str
    """Name of the row."""
    of: Preset
    """The preset that it changes; a row of the same name is the preset itself."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration with other values."""
    kind: SiteKind | None = None
    """Where in their layers the sites are, if elsewhere."""
    one_layer: bool = False
    """Whether the first of each modality's sites is left alone."""
    only: Modality | None = None
    """The modality whose channels are kept, if not both."""
    watched: tuple[Reads, ...] = ()
    """What the monitors read that watch; none: channels act on every request."""
    channels: bool = True
    """Whether there are channels to close after an alarm."""
    without: tuple[str, ...] = ()
    """Attack suites that nothing is fitted or chosen on."""
    beside: str | None = None
    """The row that it is set against, if not the preset itself."""

    @property
    def config(self) -> RepairConfig:
        """The configuration of the row."""
        config = replace(PRESETS[self.of], **self.fields)
        return config if self.kind is None else replace(config, kind=self.kind, fit_kind=None)

    def places(self, sites: Mapping[Modality, list[Site]]) -> Places:
        """Its sites, from those of the preset."""
        found: Places = {
            modality: [Site(site.layer, self.kind or site.kind) for site in part]
            for modality, part in sites.items()
        }
        return {m: part[:1] if self.one_layer else part for m, part in found.items()}


def _paper(name: str, **changes: Any) -> Change:
    return Change(f"paper: {name}", "paper", **_told(changes))


def _corrected(name: str, **changes: Any) -> Change:
    return Change(f"corrected: {name}", "corrected", **_told(changes))


def _watched(name: str, watched: tuple[Reads, ...] = READS, **changes: Any) -> Change:
    beside = "corrected: monitors"
    return _corrected(f"monitors, {name}", watched=watched, beside=beside, **changes)


_OWN = ("kind", "one_layer", "only", "watched", "channels", "without", "beside")


def _told(changes: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `Change`; what isn't one is a field of the configuration."""
    own = {key: changes.pop(key) for key in _OWN if key in changes}
    return own | {"fields": changes}


CHANGES: tuple[Change, ...] = (
    Change("paper", "paper"),
    Change("official", "official"),
    Change("corrected", "corrected"),
    _paper("all tokens, no attribution", attribution=None),
    _paper("twice the share of tokens", attribution=AttributionConfig(0.25, 0.4)),
    _paper("standardised tokens", attribution=AttributionConfig(standardise=True)),
    _paper("β = 0", beta=0.0),
    _paper("β = 0.5", beta=0.5),
    _paper("K = 4", subspace=SubspaceConfig(target="cov", rank=4)),
    _paper("K = 64", subspace=SubspaceConfig(target="cov", rank=64)),
    _paper("strength 2", strength=2.0),
    _paper("strength 4", strength=4.0),
    _paper("attention output", kind="mhsa_out"),
    _paper("residual stream", kind="layer_out"),
    _paper("one layer", one_layer=True),
    _paper("oblique", projection="oblique"),
    _paper("scatter about the benign mean", subspace=SubspaceConfig(target="second_moment")),
    _paper("Fisher direction first", subspace=SubspaceConfig(target="mean+cov")),
    _paper("constant fusion", fusion="constant"),
    _paper("no fusion", fusion="none"),
    _paper("without text", only="image"),
    _paper("without visual", only="text"),
    _paper("gate", gate=GateConfig(), scopes=("decision",)),
    _corrected("attribution", attribution=AttributionConfig()),
    _corrected("β = 0.5", beta=0.5),
    _corrected("strength 1", strength=1.0),
    _corrected("strength 2", strength=2.0),
    _corrected("FFN output", kind="ffn_out"),
    _corrected("attention output", kind="mhsa_out"),
    _corrected("one layer", one_layer=True),
    _corrected("oblique", projection="oblique"),
    _corrected("constant fusion", fusion="constant"),
    _corrected("no fusion", fusion="none"),
    _corrected("without text", only="image"),
    _corrected("without visual", only="text"),
    _corrected("no gate", gate=None),
    _corrected("gate of RBF features", gate=GateConfig(features=256)),
    _corrected("monitors", watched=READS),
    _watched("no channels", channels=False),
    _watched("of requests alone", watched=("request",)),
    _watched("of what is said alone", watched=("answer", "exchange")),
    *(_watched(f"without {name}", without=(name,)) for name in ATTACKS),
    _watched("without attacks with pictures", without=PICTURED),
)
"""All rows, whole methods first. A gate is fitted at the decision position and acts there; with
monitors, which are those of the main job, the corrected repair is the default one."""
