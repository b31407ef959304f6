"""Fitting a repair: which answers worked, what sets them apart, and where they are sent instead.

`corrected`, the default, fits at each site from activations at the decision position, for each
modality (`image`: attacks that come with pictures; `text`: those without),

1. the unsafe subspace: the patterns of C_m u = λ C u, with C_m the scatter of the attack families'
   means about the mean of the refusals (`family_subspace`);
2. a gate: Fisher's discriminant of each family against answered benign requests, opening beyond
   what each kind of these reaches (`gate`).

`paper` and `official` project on eigenvectors of the scatter of attributed tokens, everywhere and
ungated, with the contrasts of `fitting_data`; all differences are in `presets`. The paper's layers
are those that an ablation of layers points to: a diagnosis with that preset has them as
`diagnosis.sites`, to be passed as `sites`. Validation decides among candidates, elsewhere
(`care.pipeline.selection`). Fu et al. 2026, arXiv 2603.27240.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from care.data.digests import picture_digests, request_digest
from care.data.example import Example, Suite
from care.defenses.material import ANSWER_TOKENS, CLASSES, Answered, Material, gather
from care.defenses.monitors.choosing import fit_monitors
from care.defenses.monitors.memory import MonitorMemory
from care.defenses.repair.channel import MODALITIES, Channel, Modality, RepairData
from care.defenses.repair.families import LEAST_FAMILY, Told, classes_of
from care.defenses.repair.family_subspace import Classes
from care.defenses.repair.fitting_data import (
    Contrast,
    ContrastName,
    activations,
    contrast,
    moments_of,
    said,
)
from care.defenses.repair.gate import Crossfit, Gate, GateConfig, crossfit
from care.defenses.repair.memory import (
    DecisionMemory,
    Memory,
    anchored,
    families_subspace,
    told_of,
)
from care.defenses.repair.presets import PRESETS, Preset, RepairConfig
from care.defenses.repair.subspace import Subspace, difference_of_means, fit_subspace
from care.errors import FitError, UsageError
from care.judges.rules import RulesJudge
from care.models.identity import model_facts
from care.models.sites import Scope, Site, SiteKind
from care.models.vlm import VLM
from care.statistics.moments import Moments

Shown = tuple[Example, str]
"""An example, and the digests of its pictures."""
Places = Sequence[Site] | Mapping[Modality, Sequence[Site]]
"""Sites of all channels, or of those of each modality."""


def fit_repair(
    vlm: VLM,
    attacks: Suite | Sequence[Example],
    benign: Suite | Sequence[Example],
    *,
    sites: Places | None = None,
    preset: Preset = "corrected",
    config: RepairConfig | None = None,
    judge: RulesJudge | None = None,
    batch_size: int = 16,
    max_new_tokens: int = ANSWER_TOKENS,
) -> RepairData:
    """Fit a repair on malicious and benign requests, without training.

    `sites` are those of all channels or of each modality (those at the preset's depths by default);
    `config` overrides the preset. `max_new_tokens` is the length of the answers that are fitted on:
    monitors read whole answers, so it should be that of those they will read. Raises FitError when
    a class is empty or its activations can't be fitted.
    """
    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}: use {', '.join(PRESETS)}")
    chosen = config or PRESETS[preset]
    places = chosen_sites(vlm, chosen, sites)
    sources = {
        Site(site.layer, chosen.fit_kind or site.kind) for part in places.values() for site in part
    }
    material = gather(
        vlm,
        list(attacks),
        list(benign),
        judge=judge,
        sites=sorted(sources) if chosen.reads_decisions else (),
        max_new_tokens=max_new_tokens,
    )
    fitter = Fitter(vlm, material, chosen, batch_size)
    repair = fitter.repair(places, preset)
    if chosen.monitors is None:
        return replace(repair, memory=fitter.remembered(repair.channels))
    found = fit_monitors(vlm, said(material), (), chosen.monitors, batch_size=batch_size)
    memory = fitter.remembered(repair.channels, found.memory)
    return replace(repair, monitors=found.monitors, memory=memory)


def chosen_sites(
    vlm: VLM, config: RepairConfig, sites: Places | None = None
) -> dict[Modality, list[Site]]:
    """The sites of each modality: those given, checked against the model, or by depth.

    Raises UsageError for an unknown modality, SiteError for an unknown site.
    """
    if not sites:
        text = config.depth if config.text_depth is None else config.text_depth
        sites = {
            "image": depth_sites(vlm, config.depth, config.kind),
            "text": depth_sites(vlm, text, config.kind),
        }
    if not isinstance(sites, Mapping):
        sites = dict.fromkeys(MODALITIES, sites)
    if unknown := sorted(set(sites) - set(MODALITIES)):
        raise UsageError(
            f"sites are given for {unknown[0]!r}; the modalities are {', '.join(MODALITIES)}"
        )
    return {modality: vlm.anatomy.check(part) for modality, part in sites.items()}


def depth_sites(vlm: VLM, depths: Sequence[float], kind: SiteKind) -> list[Site]:
    """The sites at relative depths in [0, 1] of the decoder, without repetition."""
    last = vlm.anatomy.n_layers - 1
    return list(dict.fromkeys(Site(min(last, round(d * last)), kind) for d in depths))


class Fitter:
    """Fits repairs of several configurations to one material, taking activations once."""

    def __init__(
        self, vlm: VLM, material: Material, config: RepairConfig, batch_size: int = 16
    ) -> None:
        self.vlm, self.config = vlm, config
        self.material = material
        self.batch_size = batch_size
        self._rows: dict[tuple[Any, ...], np.ndarray] = {
            (name, "decision", site): rows
            for site, parts in material.decisions.items()
            for name, rows in zip(CLASSES, parts, strict=True)
        }
        self._moments: dict[tuple[Any, ...], Moments] = {}
        self._pictures: dict[str, list[Shown]] = {}
        self._told: list[tuple[Told, ...]] = []
        self._subspaces: dict[Any, Subspace] = {}
        self._crossfits: dict[Any, Crossfit] = {}

    def with_config(self, config: RepairConfig) -> Fitter:
        """A fitter of another configuration that shares what is expensive."""
        other = Fitter(self.vlm, self.material, config, self.batch_size)
        other._rows, other._pictures, other._told = self._rows, self._pictures, self._told
        other._moments = self._moments
        other._subspaces, other._crossfits = self._subspaces, self._crossfits
        return other

    def repair(self, sites: Places | None = None, preset: str = "corrected") -> RepairData:
        """Channels of both modalities, as far as there are sites and attacks, at every site.

        FitError if there are attacks of no modality that has sites.
        """
        config = self.config
        places = chosen_sites(self.vlm, config, sites)
        modalities: list[Modality] = [m for m in self.modalities() if places.get(m)]
        if not modalities:
            raise FitError(
                f"sites are given for {', '.join(places)} alone, but attacks of that modality are "
                "too few to fit on; add some that work"
            )
        if config.directions == "activations":
            self._prefetch_contrasts({modality: places[modality] for modality in modalities})
        if config.reads_decisions:
            self.prefetch(sorted({site for m in modalities for site in places[m]}))
        pairs: list[tuple[Site, Modality]] = [(s, m) for m in modalities for s in places[m]]
        channels = [self.channel(site, m) for site, m in sorted(pairs, key=lambda pair: pair[0])]
        manifest = {
            "preset": preset,
            "model": model_facts(self.vlm),
            "config": config.facts(),
            "fitted_on": self._fitted_on(),
        }
        return RepairData(tuple(channels), config.fusion, "care", manifest)

    def _fitted_on(self) -> dict[str, Any]:
        """What a manifest says of the material."""
        material, examples = self.material, [e for part in self._parts() for e, _ in part]
        told = {
            "complied": len(material.complied),
            "refused": len(material.refused),
            "answered": len(material.answered),
            "examples": sorted({e.digest()[:16] for e in examples}),
            "goals": material.goals,
        }
        if material.max_new_tokens is not None:  # else of an earlier version, and told as by it
            told["requests"] = sorted({request_digest(e) for e in examples})
            told["max_new_tokens"] = material.max_new_tokens
        return told

    def remembered(
        self, channels: Sequence[Channel], monitors: Sequence[MonitorMemory] = ()
    ) -> Memory | None:
        """What channels of this fit and monitors rest on; None of a fit that can't be kept."""
        config = self.config
        if not config.keeps_decisions:
            return None
        if not self._told:
            self._told.extend(told_of(self._shown(name)) for name in CLASSES)
        self.prefetch(sorted({channel.site for channel in channels}))
        rows = {self._source(c.site): tuple(self._decisions(c.site)) for c in channels}
        settings = (config.fit_kind, config.gate, config.projection, config.beta)
        return Memory(DecisionMemory(tuple(self._told), rows, *settings), tuple(monitors))

    def modalities(self) -> list[Modality]:
        """The modalities that there are enough attacks for; FitError if there is none.

        With directions of activations, the text channel takes all attacks, pictures or not, as the
        paper does.
        """
        pictured = [bool(e.images) for e, _ in self.material.complied]
        counts: dict[Modality, int] = {"image": sum(pictured), "text": pictured.count(False)}
        if self.config.directions == "activations":
            counts = {"image": counts["image"], "text": len(pictured)}
        found: list[Modality] = [m for m, n in counts.items() if n >= LEAST_FAMILY]
        if not found:
            raise FitError(
                f"only {len(pictured)} attacks worked, and at least {LEAST_FAMILY} of a modality "
                "are needed to fit a repair; add attacks that work"
            )
        return found

    def channel(self, site: Site, modality: Modality) -> Channel:
        """The channel of one modality at one site."""
        config, gate = self.config, None
        if config.directions == "activations":
            subspace = self._projected(site, modality)
        else:
            subspace = self._of_families(site, modality)
        if config.gate is not None:
            gate = self._gate(site, modality, config.gate)
        subspace = anchored(subspace, config.beta)
        return Channel(site, modality, config.scopes, subspace, config.strength, gate)

    def prefetch(self, sites: Sequence[Site]) -> None:
        """Take the activations of the gated fit at many sites, in one pass over the material."""
        parts = dict(zip(CLASSES, self._parts(), strict=True))
        sources = [self._source(site) for site in sites]
        for name, part in parts.items():
            missing = [site for site in sources if (name, "decision", site) not in self._rows]
            if missing:
                taken = activations(self.vlm, part, missing, "decision", self.batch_size)
                self._rows |= {(name, "decision", site): taken[site] for site in missing}

    def means(self, channels: Sequence[Channel]) -> tuple[Channel, ...]:
        """The channels with the bare difference of means in place of subspaces and gates."""
        found = []
        for channel in channels:
            self.prefetch([channel.site])
            attacks, refused, answered = self._decisions(channel.site)
            chosen = [self._is(e, channel.modality) for e, _ in self.material.complied]
            benign = np.concatenate([refused, answered])
            moments = [Moments(rows.shape[1]).fit(rows) for rows in (attacks[chosen], benign)]
            found.append(channel.projecting(difference_of_means(*moments)))
        return tuple(found)

    # -- families, and gates ---------------------------------------------------------------------

    def classes(self, site: Site, modality: Modality) -> Classes:
        """Activations that gates and families' directions are fitted on, one row a request: attack
        families, refusals, benign families.

        They are those of the decision position or, with an attribution, of the attributed tokens of
        the modality, and then only requests that have such tokens are among them.
        """
        worked, turned_down, harmless = self._shown_of(modality)
        own: list[int] | None = None
        if self.config.attribution is None:
            self.prefetch([site])
            attacks, refused, answered = self._decisions(site)
            shown = self._shown("complied")
            own = [place for place, (e, _) in enumerate(shown) if self._is(e, modality)]
        else:
            scope: Scope = "image" if modality == "image" else "text"
            attacks, refused, answered = (
                self._pooled(f"{name} {modality}", [(e, "") for e, _ in shown], site, scope)
                for name, shown in zip(CLASSES, (worked, turned_down, harmless), strict=True)
            )
        told = [[Told.of(*shown) for shown in part] for part in (worked, turned_down, harmless)]
        return classes_of((attacks, refused, answered), told, own)

    def _shown_of(self, modality: Modality) -> tuple[list[Shown], list[Shown], list[Shown]]:
        """The attacks of a modality, and the refused and the answered requests beside them."""
        worked, turned_down, harmless = (self._shown(name) for name in CLASSES)
        worked = [shown for shown in worked if self._is(shown[0], modality)]
        if self.config.attribution is not None and modality == "image":
            turned_down, harmless = (
                [shown for shown in part if shown[0].images] for part in (turned_down, harmless)
            )
        return worked, turned_down, harmless

    def _shown(self, name: str) -> list[Shown]:
        """The examples of a class, each with what tells its pictures apart; "" without pictures."""
        if name not in self._pictures:
            part: Sequence[Answered] = getattr(self.material, name)
            self._pictures[name] = [(e, "|".join(picture_digests(e))) for e, _ in part]
        return self._pictures[name]

    def _gate(self, site: Site, modality: Modality, config: GateConfig) -> Gate:
        shared = replace(config, quantile=0.5, ramp=0.5)  # they only move the thresholds
        key = (self._source(site), modality, self.config.attribution, shared)
        if key not in self._crossfits:
            self._crossfits[key] = crossfit(self.classes(site, modality), config)
        return self._crossfits[key].gate(config)

    def _of_families(self, site: Site, modality: Modality) -> Subspace:
        config = self.config.gate or GateConfig()
        weights = (config.shrinkage, config.within, config.refusals)
        projection, source = self.config.projection, self._source(site)
        key = (source, modality, self.config.attribution, weights, projection)
        if key not in self._subspaces:
            self._subspaces[key] = families_subspace(
                self.classes(site, modality), config, projection
            )
        return self._subspaces[key]

    def _decisions(self, site: Site) -> list[np.ndarray]:
        source = self._source(site)
        return [self._rows[name, "decision", source] for name in CLASSES]

    @staticmethod
    def _is(example: Example, modality: Modality) -> bool:
        return bool(example.images) == (modality == "image")

    # -- activations -----------------------------------------------------------------------------

    def _projected(self, site: Site, modality: Modality) -> Subspace:
        config = self.config
        name, chosen = self._contrast(modality)
        key = (name, self._source(site), config.subspace, config.attribution, config.projection)
        if key not in self._subspaces:
            self._prefetch_contrasts({modality: [site]})
            malicious, benign = (
                self._moments[
                    f"{name} {side}", chosen.scope, self._source(site), config.attribution
                ]
                for side in ("malicious", "benign")
            )
            self._subspaces[key] = fit_subspace(
                malicious, benign, config.subspace, config.projection
            )
        return self._subspaces[key]

    def _prefetch_contrasts(self, places: Mapping[Modality, Sequence[Site]]) -> None:
        """Take the moments of every contrast at all its sites in one pass each."""
        attribution = self.config.attribution
        for modality, sites in places.items():
            name, chosen = self._contrast(modality)
            for side, part in {"malicious": chosen.malicious, "benign": chosen.benign}.items():
                key = (f"{name} {side}", chosen.scope)
                sources = dict.fromkeys(self._source(site) for site in sites)
                missing = [s for s in sources if (*key, s, attribution) not in self._moments]
                if missing:
                    taken = moments_of(
                        self.vlm, part, missing, chosen.scope, self.batch_size, attribution
                    )
                    self._moments |= {(*key, s, attribution): taken[s] for s in missing}

    def _contrast(self, modality: Modality) -> tuple[ContrastName, Contrast]:
        name: ContrastName = "images" if modality == "image" else self.config.text_contrast
        return name, contrast(name, self.material)

    def _pooled(self, name: str, part: Sequence[Answered], site: Site, scope: Scope) -> np.ndarray:
        source, attribution = self._source(site), self.config.attribution
        key = (name, scope, source, attribution)
        if key not in self._rows:
            taken = activations(self.vlm, part, [source], scope, self.batch_size, attribution)
            self._rows[key] = taken[source]
        return self._rows[key]

    def _source(self, site: Site) -> Site:
        """Where the activations for `site` are taken."""
        return Site(site.layer, self.config.fit_kind or site.kind)

    def _parts(self) -> tuple[tuple[Answered, ...], ...]:
        return self.material.complied, self.material.refused, self.material.answered
