"""A whole diagnosis as one value: what `care.diagnose` gives and diagnosis.json holds.

    diagnosis.sites                         {"image": (Site, …), "text": (Site, …)}, to be mended
    print(diagnosis)                        what was found, in a few lines
    diagnosis.save("diagnosis.json")
    Diagnosis.load("diagnosis.json")        checked; also what `care diagnose` wrote

Its parts are declared beside it (`site_results`, `neurons.results`, `faithfulness`, `reliability`),
and what all of them owe each other is checked here: nothing lies outside of the model and nothing
is listed twice. Not here: any computing (`care.diagnosis.full`), and what holds and what doesn't in
words (`care.report.conclusions`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from care.diagnosis.faithfulness import Faithfulness
from care.diagnosis.neurons.results import NeuronReport
from care.diagnosis.reliability import Agreement
from care.diagnosis.site_results import (
    Changes,
    ChannelScan,
    ComponentComparison,
    GeneratedSite,
    HeatCell,
    LayerEffect,
    LayerSeparability,
    RecommendedSite,
    Rescan,
    SiteEffects,
    repeated,
)
from care.models.sites import Site
from care.runs.files import to_json, write_whole
from care.runs.reading import read_json
from care.statistics.correlation import Correlation
from care.typed import HIDDEN, WHEN_SET, Misfit, Positive, from_tree, to_tree

if TYPE_CHECKING:
    from care.defenses.repair.channel import Modality

JSON_NAME = "diagnosis.json"
PAPER_LAYERS = 3
"""Layers that the paper's repair edits."""


@dataclass(frozen=True, kw_only=True)
class SiteScan:
    """Which layers, and which of their parts, carry the attacks (`care.diagnosis.site_scan`)."""

    verdict: str
    """The outcome in a sentence."""
    metric: str
    """What is measured, in words."""
    intervention: str
    """What was done to the sites, in words."""
    n_layers: Positive
    """Number L of decoder layers; a `layer` counts from 0."""
    layers: tuple[LayerEffect, ...]
    """Every component of every layer, removed alone."""
    heatmap: tuple[HeatCell, ...] = ()
    """The same, then every component of every window of more than one layer."""
    comparison: tuple[ComponentComparison, ...] = ()
    """FFN against attention, matched by kind and by norm; empty unless both were scanned."""
    separability: tuple[LayerSeparability, ...]
    """Every layer."""
    rank_correlation: dict[str, Correlation]
    """Spearman's ρ over layers of each separability figure and the effect of the whole layer (of
    the first component if whole layers weren't scanned); figures that don't vary are left out."""
    generated: tuple[GeneratedSite, ...]
    """The top sites on generated answers; empty without generation."""
    recommended: tuple[RecommendedSite, ...]
    """Sites to edit, best first; may be empty."""
    channels: ChannelScan | None
    """What closing single channels does; null where none were fitted."""
    sign: str
    """What a positive effect means, and which sites are recommended."""
    changes: Annotated[Changes | None, HIDDEN] = field(default=None, compare=False, repr=False)
    """The effects on single examples, for whoever asks how stable they are."""

    def check(self) -> None:
        """Misfit where two figures contradict each other."""
        self._check_channels()
        self._check_heatmap()
        for i in repeated((row.intervention, row.matched_by) for row in self.comparison):
            row = self.comparison[i]
            words = f"repeats {row.intervention!r} matched by {row.matched_by}"
            raise Misfit(f"comparison[{i}]", words)

    def _check_channels(self) -> None:
        """One channel a layer and modality."""
        rows = () if self.channels is None else self.channels.sites
        for i, item in enumerate(rows):
            self._check_layer(item.layer, f"channels.sites[{i}]")
        for i in repeated((item.layer, item.modality) for item in rows):
            words = (
                f"repeats {rows[i].layer} for {rows[i].modality!r}; the scan has one channel of "
                "each modality a layer"
            )
            raise Misfit(f"channels.sites[{i}].layer", words)
        for i, item in enumerate(rows):
            if item.site.layer != item.layer:
                words = f"is {str(item.site)!r}, which isn't in layer {item.layer}"
                raise Misfit(f"channels.sites[{i}].site", words)

    def _check_heatmap(self) -> None:
        """One cell for each component, layer, window and intervention."""
        for i, item in enumerate(self.heatmap):
            self._check_layer(item.layer, f"heatmap[{i}]")
            if item.window > self.n_layers:
                words = f"is {item.window}, but the model has {self.n_layers} layers"
                raise Misfit(f"heatmap[{i}].window", words)
        cells = [(c.layer, c.component, c.window, c.intervention) for c in self.heatmap]
        for i in repeated(cells):
            layer, component, window, how = cells[i]
            words = f"repeats layer {layer}, {component}, window {window}, {how!r}"
            raise Misfit(f"heatmap[{i}]", words)

    def _check_layer(self, layer: int, path: str) -> None:
        if layer >= self.n_layers:
            words = f"is {layer}, but the model has {self.n_layers} layers"
            raise Misfit(f"{path}.layer", words)


@dataclass(frozen=True, kw_only=True)
class SitesFound(SiteScan):
    """A scan of the sites, and how far other looks agree with it."""

    stability: tuple[Agreement, ...]
    """Agreement of other looks."""
    rescan: Rescan | None
    """The greatest sites removed in a second way; null without it."""

    @classmethod
    def of(
        cls, scan: SiteScan, stability: tuple[Agreement, ...], rescan: Rescan | None
    ) -> SitesFound:
        """A scan with what other looks say."""
        return cls(**_fields(scan), stability=stability, rescan=rescan)


@dataclass(frozen=True)
class ChannelsFound:
    """What a channel scan adds to a diagnosis."""

    scan: ChannelScan
    """Every channel."""
    recommended: tuple[RecommendedSite, ...]
    """Those to be closed, best first of each modality."""
    verdict: str
    """The outcome in a sentence."""


@dataclass(frozen=True)
class Trust:
    """What tells a finding from an accident."""

    faithfulness: tuple[Faithfulness, ...]
    """Curves of rankings beside random ones."""
    stability: tuple[Agreement, ...]
    """Agreement of other looks."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis(SiteScan):
    """Where a model is unsafe, and how sure that is."""

    rescan: Rescan | None = None
    """The greatest sites removed in a second way; null without it."""
    causal: tuple[SiteEffects, ...] = ()
    """Effects of pairs through FFN and attention outputs; empty without pairs."""
    neurons: NeuronReport | None = None
    """The neurons that carry the attacks; null where they weren't looked for."""
    trust: Trust | None = None
    """What tells a finding from an accident; null where it wasn't asked."""
    supported: Annotated[tuple[str, ...], WHEN_SET] = ()
    """What holds, in sentences; written by the report."""
    unsupported: Annotated[tuple[str, ...], WHEN_SET] = ()
    """What doesn't, or wasn't tested."""

    @classmethod
    def of(
        cls,
        sites: SitesFound,
        causal: tuple[SiteEffects, ...],
        neurons: NeuronReport | None,
        curves: tuple[Faithfulness, ...],
    ) -> Diagnosis:
        """A diagnosis from its parts."""
        trust = Trust(faithfulness=curves, stability=sites.stability)
        found = {"rescan": sites.rescan, "causal": causal, "neurons": neurons, "trust": trust}
        return cls(**_fields(sites), **found)

    def check(self) -> None:
        """Misfit where two figures contradict each other."""
        super().check()
        rows = [] if self.neurons is None else list(self.neurons.rows())
        for path, item in rows:
            self._check_layer(item.layer, f"neurons.{path}")
        for i in repeated(item.key for _, item in rows):
            path, item = rows[i]
            words = f"repeats neuron {'.'.join(map(str, item.key[1:]))} of layer {item.layer}"
            raise Misfit(f"neurons.{path}", words)

    @property
    def sites(self) -> dict[Modality, tuple[Site, ...]]:
        """The sites to mend for each modality, best first, as `Repair.fit` takes them.

        They are those that the channel scan recommends; a modality without any isn't there.
        Without such a scan, which only a repair with a gate has, they are the FFN outputs of the
        layers that the ablation of layers points to, for either modality, as in the paper.
        """
        if self.channels is None:
            layers = self.ablated_layers()
            return {"image": layers, "text": layers} if layers else {}
        rows = [row for row in self.channels.sites if row.recommended]
        found: dict[Modality, tuple[Site, ...]] = {}
        for row in sorted(rows, key=lambda row: -row.selectivity_low):
            modality = cast("Modality", row.modality)
            found[modality] = (*found.get(modality, ()), row.site)
        return found

    def ablated_layers(self) -> tuple[Site, ...]:
        """FFN outputs of the `PAPER_LAYERS` layers whose removal raises refusals of attacks most.

        Layers are ranked by the lower limit of the selectivity of removing the whole layer, or the
        FFN where whole layers weren't scanned: benign requests are to be answered as before. Where
        windows of so many layers were removed at once, it is the best window, since neighbours can
        make up for one layer. The paper reads this off attack success; its release edits three
        neighbouring layers.
        """
        for component in ("layer", "ffn"):
            cells = [cell for cell in self.heatmap if cell.component == component]
            windows = [cell for cell in cells if cell.window == PAPER_LAYERS]
            if windows:
                middle = max(windows, key=lambda cell: cell.selectivity_low).layer
                first = middle - PAPER_LAYERS // 2
                return tuple(Site(first + k, "ffn_out") for k in range(PAPER_LAYERS))
            alone = [item for item in self.layers if item.component == component]
            if alone:
                best = sorted(alone, key=lambda item: -item.selectivity_low)[:PAPER_LAYERS]
                return tuple(Site(item.layer, "ffn_out") for item in best)
        return ()

    def with_channels(self, found: ChannelsFound | None) -> Diagnosis:
        """The same with a channel scan, whose sites and verdict come first."""
        if found is None:
            return self
        return replace(
            self,
            channels=found.scan,
            recommended=(*found.recommended, *self.recommended),
            verdict=f"{found.verdict} Removing whole components: {self.verdict}",
        )

    def save(self, file: Path | str) -> Path:
        """Write the JSON; `care diagnose` writes the same, with the verdicts of the report."""
        path = Path(file)
        write_whole(path, (to_json(to_tree(self), indent=1) + "\n").encode("utf-8"))
        return path

    @classmethod
    def load(cls, file: Path | str) -> Diagnosis:
        """Read a diagnosis from its JSON, or from the folder that holds diagnosis.json.

        Raises DataError for a file that isn't there, or that isn't a diagnosis.
        """
        path = Path(file) / JSON_NAME if Path(file).is_dir() else Path(file)
        tree = read_json(path, "diagnosis", otherwise="pass the diagnosis.json of a finished run")
        return from_tree(cls, tree, "diagnosis", strict=False, what="The diagnosis")

    def __str__(self) -> str:
        lines = [self.verdict]
        lines += [
            f"to mend for {modality}: {', '.join(map(str, sites))}"
            for modality, sites in self.sites.items()
        ]
        parts = [item for item in self.layers if item.component != "layer"]
        best = sorted(parts, key=lambda item: -item.selectivity_low)[:3]
        named = [f"{c.site} {c.effect:.2f} [{c.low:.2f}, {c.high:.2f}]" for c in best]
        lines += [f"{self.metric} on removal: {'; '.join(named)}"] * bool(named)
        if self.neurons is not None and self.neurons.found:
            top = [f"{n.layer}.{n.neuron} {n.exact:.2f}" for n in self.neurons.found[:3]]
            lines.append(f"neurons of {self.neurons.n_neurons:,}: {'; '.join(top)}")
        for row in () if self.trust is None else self.trust.stability:
            rho = row.spearman
            words = f"ρ = {rho.rho:.2f} [{rho.low:.2f}, {rho.high:.2f}]"
            lines.append(f"agreement of {row.name}: {words}")
        return "\n".join(lines)


def _fields(scan: SiteScan) -> dict[str, Any]:
    """The fields of a scan, of whatever else it's a part."""
    return {item.name: getattr(scan, item.name) for item in fields(SiteScan)}
