"""The examples and the runs of the model that a scan of sites consists of.

Which examples are used, what is removed in which layers and windows, and what that does to the
refusal log-odds. What follows from it is said in `care.diagnosis.site_scan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from care.data.example import Example, Suite
from care.diagnosis.ablated_answers import confirm
from care.diagnosis.activation_means import BenignDonors, collect, goals_of, spread
from care.diagnosis.component_contrast import compare_both
from care.diagnosis.optimal_constants import ConstantConfig, fit_constants
from care.diagnosis.scan import Removal, Scan, ScanRow, mean_norms, scan, windows
from care.diagnosis.site_results import (
    KINDS,
    Changes,
    Component,
    ComponentComparison,
    GeneratedSite,
    HeatCell,
)
from care.diagnosis.site_scan_config import SiteScanConfig
from care.errors import DataError
from care.models.sites import Scope, Site
from care.models.vlm import VLM
from care.statistics.intervals import Interval, difference

if TYPE_CHECKING:
    from care.judges.rules import RulesJudge


class Data(NamedTuple):
    """The examples that are used, and the goal of each."""

    attacks: list[Example]
    benign: list[Example]
    spare: list[Example]
    """Benign examples that aren't scored."""

    @classmethod
    def of(
        cls,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        config: SiteScanConfig,
    ) -> Data:
        chosen = []
        for kind, given, most in (
            ("malicious", attacks, config.max_attacks),
            ("benign", benign, config.max_benign),
        ):
            examples = list(given)
            name = "attacks" if kind == "malicious" else "benign"
            wrong = [example.id for example in examples if example.kind != kind]
            if wrong:
                raise DataError(
                    f"Example {wrong[0]!r} in {name} isn't {kind}; a diagnosis compares malicious "
                    "attacks with benign prompts."
                )
            examples = _chosen(examples, len(examples) if most is None else most)
            if len(set(goals_of(examples))) < 2:
                raise DataError(
                    f"A diagnosis needs {name} with at least 2 different goals, got "
                    f"{len(examples)} examples with {len(set(goals_of(examples)))}."
                )
            chosen.append(examples)
        scored = {id(example) for example in chosen[1]}
        spare = [example for example in benign if id(example) not in scored]
        return cls(chosen[0], chosen[1], spare)

    @property
    def examples(self) -> list[Example]:
        return [*self.attacks, *self.benign]

    def constants(
        self, vlm: VLM, means: dict[Site, Tensor], config: SiteScanConfig
    ) -> dict[Site, Tensor]:
        """Optimal constants of the sites in `means`, from benign examples that aren't scored."""
        if not means:
            return {}
        if len(self.spare) < 2:
            raise DataError(
                "Optimal constants are fitted on benign examples that aren't scored, and there are "
                f"{len(self.spare)} of those; give more or lower max_benign."
            )
        cache = ConstantConfig(max_cache_bytes=config.max_cache_bytes)
        return fit_constants(vlm, self.spare, means, cache)


def _chosen(examples: Sequence[Example], most: int) -> list[Example]:
    """At most `most` examples, evenly spaced, with two goals among them if there are two."""
    chosen = spread(examples, most)
    goals = set(goals_of(chosen))
    others = [
        example
        for example, goal in zip(examples, goals_of(examples), strict=True)
        if goal not in goals
    ]
    if len(goals) == 1 and others:
        chosen[-1] = others[0]
    return chosen


class SiteScanRuns:
    """The runs of the model that a scan consists of."""

    def __init__(
        self,
        vlm: VLM,
        data: Data,
        config: SiteScanConfig,
        done: list[ScanRow],
        keep: Callable[[ScanRow], None] | None,
    ) -> None:
        self.vlm, self.data, self.config, self.done, self.keep = vlm, data, config, done, keep
        self.removals = [
            self._removal(sites)
            for size in config.windows
            for level in zip(*self._windows(size), strict=True)
            for sites in level
            if self._possible(sites)
        ]
        sites = list(dict.fromkeys(site for removal in self.removals for site in removal.sites))
        self.collected = collect(vlm, data.examples, sites, config.pooling, config.batch_size)
        self.means = self.collected.means
        if config.reference == "benign":
            self.means = collect(vlm, data.benign, sites, batch_size=config.batch_size).means
        resampled = self._sites_of("resample")
        self.donors = BenignDonors(vlm, data.attacks, data.benign, resampled) if resampled else None
        replaced = {site: self.means[site] for site in self._sites_of("constant")}
        self.constants = data.constants(vlm, replaced, config)

    def steps(self, generate: bool) -> int:
        """Number of (example, removal) pairs and answers that the whole scan takes."""
        parts = sum(
            removal.site.kind != "layer_out" and len(removal.sites) == 1
            for removal in self.removals
        )
        top = min(self.config.top_sites, parts)
        answers = min(self.config.generate_examples, len(self.data.attacks))
        scanned = len(self.removals) + (2 * top if self._with_images else 0)
        compared = self._compared * len(self.data.attacks)
        answered = answers * (top + 1) if generate and top else 0
        return len(self.data.examples) * scanned + compared + answered

    def changes(self, advance: Callable[[int], None]) -> Changes:
        """The scan over every component of every layer and window."""
        found = self._scan(self.removals, advance)
        split = len(self.data.attacks)
        effects = []
        rows = zip(self.removals, found.effects, found.relative_norm, strict=True)
        for removal, values, norm in rows:
            attacked = self.interval(values[:split], self.data.attacks)
            harmless = self.interval(values[split:], self.data.benign)
            effects.append(_cell(removal, attacked, harmless, float(norm)))
        return Changes(
            effects=tuple(effects),
            values=found.effects,
            changed=found.changed,
            goals=tuple(goals_of(self.data.examples)),
            suites=tuple(example.suite for example in self.data.examples),
            n_attacks=split,
        )

    def comparisons(
        self, changes: Changes, advance: Callable[[int], None]
    ) -> tuple[ComponentComparison, ...]:
        """FFN against attention on the attacks, matched by kind and by norm."""
        attacks = self.data.attacks
        norms = mean_norms(changes.changed[:, : len(attacks)])[1]
        found = {
            removal: (values[: len(attacks)], float(norm))
            for removal, values, norm in zip(self.removals, changes.values, norms, strict=True)
        }

        def rescan(removals: list[Removal]) -> Scan:
            advance((self._compared - len(removals)) * len(attacks))  # equal ones need no scan
            return self._scan(removals, advance, attacks)

        return compare_both(found, rescan, lambda values: self.interval(values, attacks))

    def modalities(self, sites: Sequence[Site], advance: Callable[[int], None]) -> dict[Site, str]:
        """At which tokens each site carries the attack, by removing it at those tokens only.

        A modality is named if its effect is at least a quarter of the greater one and its lower
        limit above 0; if there is none, the one with the greater effect.
        """
        if not self._with_images:
            return dict.fromkeys(sites, "text")
        scopes: dict[str, Scope] = {"visual": "image", "text": "text"}
        removals = [
            replace(self._removal((site,)), scopes=(scope,))
            for site in sites
            for scope in scopes.values()
        ]
        if not removals:
            return {}
        found = self._scan(removals, advance).effects[:, : len(self.data.attacks)]
        named = {}
        for site, values in zip(sites, found.reshape(len(sites), 2, -1), strict=True):
            each = {
                name: self.interval(effects, self.data.attacks)
                for name, effects in zip(scopes, values, strict=True)
            }
            main = max(each, key=lambda name, each=each: each[name].rate)
            least = each[main].rate / 4
            sure = [name for name, found in each.items() if found.low > 0 and found.rate >= least]
            named[site] = "+".join(sure) or main
        return named

    def confirm(
        self, top: Sequence[HeatCell], judge: RulesJudge | None, advance: Callable[[int], None]
    ) -> tuple[GeneratedSite, ...]:
        """Generated answers without each top site."""
        how = "mean" if self.config.intervention == "resample" else self.config.intervention
        table = self.constants if how == "constant" else self.means
        examples = _chosen(self.data.attacks, self.config.generate_examples)
        return confirm(
            self.vlm,
            examples,
            [item.site for item in top],
            how=how,
            means=table,
            judge=judge,
            max_new_tokens=self.config.max_new_tokens,
            batch_size=self.config.batch_size,
            interval=self.interval,
            advance=advance,
        )

    def interval(
        self, values: np.ndarray, examples: Sequence[Example], level: float | None = None
    ) -> Interval:
        """Mean of one value per example, with its bootstrap interval over goals.

        `level` is that of the configuration unless another is asked for; the resamples suffice for
        its tails.
        """
        spec = self.config.sampling
        level = level or spec.level
        many = max(spec.resamples, math.ceil(8 / (1 - level)))
        return replace(spec, level=level, resamples=many).mean(values, goals_of(examples))

    @property
    def _with_images(self) -> bool:
        return any(example.images for example in self.data.attacks)

    @property
    def _compared(self) -> int:
        """Number of layers in which FFN and attention can be compared."""
        single = [removal.site for removal in self.removals if len(removal.sites) == 1]
        layers = [
            {site.layer for site in single if site.kind == kind} for kind in ("ffn_out", "mhsa_out")
        ]
        return len(layers[0] & layers[1])

    def _windows(self, size: int) -> list[list[tuple[Site, ...]]]:
        """Windows of each component."""
        layers = self.vlm.anatomy.n_layers
        return [windows(KINDS[part], layers, size) for part in self.config.components]

    def _possible(self, sites: tuple[Site, ...]) -> bool:
        """The first FFN has no earlier one to copy from."""
        copied = self.config.intervention == "previous-layer" and sites[0].kind == "ffn_out"
        return not (copied and sites[0].layer == 0)

    def _sites_of(self, how: str) -> list[Site]:
        sites = (site for removal in self.removals if removal.how == how for site in removal.sites)
        return list(dict.fromkeys(sites))

    def _removal(self, sites: tuple[Site, ...]) -> Removal:
        config = self.config
        whole = sites[0].kind == "layer_out"
        return Removal(sites, config.layer_intervention if whole else config.intervention)

    def _scan(
        self,
        removals: Sequence[Removal],
        advance: Callable[[int], None],
        examples: list[Example] | None = None,
    ) -> Scan:
        """A scan of the first examples, by default all (donors go by place)."""
        return scan(
            self.vlm,
            self.data.examples if examples is None else examples,
            removals,
            means=self.means,
            constants=self.constants,
            donors=self.donors,
            batch_size=self.config.batch_size,
            max_cache_bytes=self.config.max_cache_bytes,
            done=self.done,
            keep=self.keep,
            advance=advance,
        )


def _cell(removal: Removal, attacked: Interval, harmless: Interval, norm: float) -> HeatCell:
    kind = removal.site.kind
    component: Component = next(name for name, own in KINDS.items() if own == kind)
    selectivity = difference(attacked, harmless)
    return HeatCell(
        layer=removal.site.layer,
        component=component,
        effect=attacked.rate,
        low=attacked.low,
        high=attacked.high,
        benign_effect=harmless.rate,
        selectivity=selectivity.rate,
        selectivity_low=selectivity.low,
        window=len(removal.sites),
        intervention=removal.how,
        relative_norm=norm,
    )
