"""Diagnosis: which layers, and which of their parts, carry an attack.

For every layer and each of its parts (FFN, attention, the whole layer) the part is taken away and
the refusal log-odds m = log P(R) − log(1 − P(R)) at the first answer token are compared:

    effect(site) = E[ m(x | site removed) − m(x) ],   selectivity = effect(attacks) − effect(benign)

A positive effect on attacks means that the site carries the attack: without it the model refuses.
A part that raises refusals of benign prompts as much says nothing about attacks, hence the
selectivity. FFN and attention get the same kind of intervention, so that they can be compared (the
released code of the method injects two different kinds of noise). The best sites are confirmed on
generated answers, where a site whose removal only breaks the text is turned down. Separability is
computed beside it and correlated, because what can be read off a layer need not be caused there.
Neurons are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from care.activations import BenignDonors, Collected, collect, spread
from care.anatomy import Scope, Site
from care.diagnosis import (
    KINDS,
    Component,
    Diagnosis,
    DiagnosisConfig,
    LayerEffect,
    LayerSeparability,
    RecommendedSite,
)
from care.errors import DataError
from care.examples import Example, Suite
from care.generated import GeneratedSite, confirm
from care.progress import Progress, silent
from care.scan import Removal, Scan, scan
from care.separability import separability
from care.statistics import Interval, bootstrap_mean, difference, spearman_bootstrap
from care.vlm import VLM

if TYPE_CHECKING:
    from care.judges import Judge

_METRICS = ("silhouette", "class_separation", "mahalanobis")
_WORDS: dict[str, str] = {
    "mean": "replaced by its mean per token role over attack and benign prompts",
    "zero": "set to zero",
    "skip": "bypassed (its output := its input)",
    "resample": "replaced by that of a benign prompt at a position of the same role",
}


def diagnose(
    vlm: VLM,
    attacks: Suite | Sequence[Example],
    benign: Suite | Sequence[Example],
    *,
    config: DiagnosisConfig | None = None,
    generate: bool = True,
    judge: Judge | None = None,
    progress: Callable[..., Progress] | None = None,
) -> Diagnosis:
    """Find the sites that carry the attacks.

    Every component of every layer is removed in turn (`config`), on attack and on benign prompts;
    the FFN and attention sites with the greatest lower limit of selectivity (those with a clearly
    positive effect on attacks first) are then removed while answers are generated and judged
    (`judge`, by default `care.judges.Judge`), unless `generate` is False. A site is recommended if
    the lower limit of its effect on attacks is above 0, that of its selectivity above
    `min_selectivity`, and the share of degenerate answers rises by at most `max_degenerate_rise`.

    `progress` makes the bar: `care.progress.Progress`, or anything called the same way.

    Raises: DataError if an attack isn't malicious, a benign example isn't benign, or either has
    fewer than two goals; FitError for activations or log-odds that aren't finite.
    """
    config = config or DiagnosisConfig()
    data = _Data.of(attacks, benign, config)
    job = _Job(vlm, data, config)
    with (progress or silent)("diagnosis", job.steps(generate)) as bar:
        advance = bar.advance
        effects = job.effects(advance)
        top = _top(effects, config.top_sites)
        modalities = job.modalities([item.site for item in top], advance)
        generated = job.confirm(top, judge, advance) if generate and top else ()
    apart = _separability(job.collected, len(data.attacks))
    recommended, verdict = _recommend(top, modalities, generated if generate else None, config)
    return Diagnosis(
        metric="change in refusal log-odds (nats)",
        intervention=_intervention(config, data),
        sign=_sign(config, generate),
        n_layers=vlm.anatomy.n_layers,
        layers=effects,
        separability=apart,
        rank_correlation=_correlations(apart, effects, config),
        generated=generated,
        recommended=recommended,
        verdict=verdict,
    )


class _Data(NamedTuple):
    """The examples that are used, and the goal of each."""

    attacks: list[Example]
    benign: list[Example]

    @classmethod
    def of(
        cls,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        config: DiagnosisConfig,
    ) -> _Data:
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
            if len(set(_goals(examples))) < 2:
                raise DataError(
                    f"A diagnosis needs {name} with at least 2 different goals, got "
                    f"{len(examples)} examples with {len(set(_goals(examples)))}."
                )
            chosen.append(examples)
        return cls(*chosen)

    @property
    def examples(self) -> list[Example]:
        return [*self.attacks, *self.benign]


def _goals(examples: Sequence[Example]) -> list[str]:
    """What the bootstrap resamples; an example without a goal stands for itself."""
    return [example.goal or f"{example.suite}/{example.id}" for example in examples]


def _chosen(examples: Sequence[Example], most: int) -> list[Example]:
    """At most `most` examples, evenly spaced, with two goals among them if there are two."""
    chosen = spread(examples, most)
    goals = set(_goals(chosen))
    others = [
        example
        for example, goal in zip(examples, _goals(examples), strict=True)
        if goal not in goals
    ]
    if len(goals) == 1 and others:
        chosen[-1] = others[0]
    return chosen


class _Job:
    """The runs of the model that a diagnosis consists of."""

    def __init__(self, vlm: VLM, data: _Data, config: DiagnosisConfig) -> None:
        self.vlm, self.data, self.config = vlm, data, config
        self.removals = [
            self._removal(Site(layer, KINDS[component]))
            for layer in range(vlm.anatomy.n_layers)
            for component in config.components
        ]
        sites = [removal.site for removal in self.removals]
        self.collected = collect(vlm, data.examples, sites, config.pooling, config.batch_size)
        resampled = [removal.site for removal in self.removals if removal.how == "resample"]
        self.donors = BenignDonors(vlm, *data, resampled) if resampled else None

    def steps(self, generate: bool) -> int:
        """Number of (example, removal) pairs and answers that the whole job takes."""
        parts = sum(removal.site.kind != "layer_out" for removal in self.removals)
        top = min(self.config.top_sites, parts)
        answers = min(self.config.generate_examples, len(self.data.attacks))
        scanned = len(self.removals) + (2 * top if self._with_images else 0)
        return len(self.data.examples) * scanned + (answers * (top + 1) if generate and top else 0)

    def effects(self, advance: Callable[[int], None]) -> tuple[LayerEffect, ...]:
        """The scan over every component of every layer."""
        found = self._scan(self.removals, advance)
        split = len(self.data.attacks)
        effects = []
        for removal, values, norm in zip(
            self.removals, found.effects, found.relative_norm, strict=True
        ):
            attacked = self.interval(values[:split], self.data.attacks)
            harmless = self.interval(values[split:], self.data.benign)
            effects.append(_layer_effect(removal.site, attacked, harmless, float(norm)))
        return tuple(effects)

    def modalities(self, sites: Sequence[Site], advance: Callable[[int], None]) -> dict[Site, str]:
        """At which tokens each site carries the attack, by removing it at those tokens only.

        A modality is named if its effect is at least a quarter of the greater one and its lower
        limit above 0; if there is none, the one with the greater effect.
        """
        if not self._with_images:
            return dict.fromkeys(sites, "text")
        scopes: dict[str, Scope] = {"visual": "image", "text": "text"}
        removals = [
            replace(self._removal(site), scopes=(scope,))
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
        self, top: Sequence[LayerEffect], judge: Judge | None, advance: Callable[[int], None]
    ) -> tuple[GeneratedSite, ...]:
        """Generated answers without each top site."""
        how = "mean" if self.config.intervention == "resample" else self.config.intervention
        examples = _chosen(self.data.attacks, self.config.generate_examples)
        return confirm(
            self.vlm,
            examples,
            [item.site for item in top],
            how=how,
            means=self.collected.means,
            judge=judge,
            max_new_tokens=self.config.max_new_tokens,
            batch_size=self.config.batch_size,
            interval=self.interval,
            advance=advance,
        )

    def interval(self, values: np.ndarray, examples: Sequence[Example]) -> Interval:
        """Mean of one value per example, with its bootstrap interval over goals."""
        config = self.config
        return bootstrap_mean(
            values, _goals(examples), n=config.resamples, seed=config.seed, level=config.level
        )

    @property
    def _with_images(self) -> bool:
        return any(example.images for example in self.data.attacks)

    def _removal(self, site: Site) -> Removal:
        config = self.config
        whole = site.kind == "layer_out"
        return Removal(site, config.layer_intervention if whole else config.intervention)

    def _scan(self, removals: Sequence[Removal], advance: Callable[[int], None]) -> Scan:
        return scan(
            self.vlm,
            self.data.examples,
            removals,
            means=self.collected.means,
            donors=self.donors,
            batch_size=self.config.batch_size,
            advance=advance,
        )


# -- from effects to sites -------------------------------------------------------------------------


def _layer_effect(
    site: Site, attacked: Interval, harmless: Interval, relative_norm: float
) -> LayerEffect:
    component: Component = next(name for name, kind in KINDS.items() if kind == site.kind)
    selectivity = difference(attacked, harmless)
    return LayerEffect(
        layer=site.layer,
        component=component,
        effect=attacked.rate,
        low=attacked.low,
        high=attacked.high,
        benign_effect=harmless.rate,
        selectivity=selectivity.rate,
        selectivity_low=selectivity.low,
        relative_norm=relative_norm,
    )


def _top(effects: Sequence[LayerEffect], n: int) -> list[LayerEffect]:
    """FFN and attention sites by lower limit of selectivity, best first.

    Sites without a clear positive effect on attacks can't be recommended and come last; they may be
    selective only because removing them makes benign prompts less often refused.
    """
    parts = [item for item in effects if item.component != "layer"]
    return sorted(parts, key=lambda item: (item.low <= 0, -item.selectivity_low))[:n]


def _recommend(
    top: Sequence[LayerEffect],
    modalities: dict[Site, str],
    generated: Sequence[GeneratedSite] | None,
    config: DiagnosisConfig,
) -> tuple[tuple[RecommendedSite, ...], str]:
    """The sites that hold, and a sentence on the outcome; `generated` is None without answers."""
    least = config.min_selectivity
    selective = [item for item in top if item.low > 0 and item.selectivity_low > least]
    answers = {item.site: item for item in generated or ()}
    chosen, broken = [], []
    for item in selective:
        answer = answers.get(item.site)
        if answer is not None and answer.degenerate_rise > config.max_degenerate_rise:
            broken.append(str(item.site))
            continue
        reason = _reason(item, answer)
        chosen.append(RecommendedSite(item.site, modalities[item.site], reason))
    turned_down = f" Removing {', '.join(broken)} merely makes answers degenerate." * bool(broken)
    if chosen:
        names = ", ".join(str(item.site) for item in chosen)
        return tuple(chosen), f"The attack is carried by {names}.{turned_down}"
    if broken:
        return (), f"No site is recommended.{turned_down}"
    return (), (
        "No site is recommended: none raises refusals of attacks selectively when it is removed "
        f"(lower limit of the effect above 0, of the selectivity above {least:g} nats)."
    )


def _reason(item: LayerEffect, answer: GeneratedSite | None) -> str:
    reason = (
        f"removing it raises the refusal log-odds of attacks by {item.effect:.2f} "
        f"[{item.low:.2f}, {item.high:.2f}] and of benign prompts by {item.benign_effect:.2f} "
        f"(selectivity {item.selectivity:.2f}, at least {item.selectivity_low:.2f})"
    )
    if answer is None:
        return reason + "; not checked on generated answers"
    return reason + (
        f"; on {answer.n} answers it changes ASR by {100 * answer.asr_change.rate:+.0f} points "
        f"and the degenerate share by {100 * answer.degenerate_rise:+.0f}"
    )


def _separability(collected: Collected, n_attacks: int) -> tuple[LayerSeparability, ...]:
    return tuple(
        LayerSeparability(layer, *separability(rows[:n_attacks], rows[n_attacks:]))
        for layer, rows in enumerate(collected.pooled)
    )


def _correlations(
    apart: Sequence[LayerSeparability], effects: Sequence[LayerEffect], config: DiagnosisConfig
) -> dict[str, Interval]:
    """Rank correlation over layers; without at least 3 layers that differ there is none."""
    component = "layer" if "layer" in config.components else config.components[0]
    caused = [item.effect for item in effects if item.component == component]
    found = {}
    for metric in _METRICS:
        read = [getattr(item, metric) for item in apart]
        if len(read) >= 3 and np.ptp(read) > 0 and np.ptp(caused) > 0:
            found[metric] = spearman_bootstrap(
                read, caused, n=config.resamples, seed=config.seed, level=config.level
            )
    return found


def _intervention(config: DiagnosisConfig, data: _Data) -> str:
    parts = []
    if set(config.components) & {"ffn", "mhsa"}:
        how = "zero" if config.intervention == "skip" else config.intervention
        parts.append(f"FFN or attention output {_WORDS[how]}")
    if "layer" in config.components:
        parts.append(f"whole layer {_WORDS[config.layer_intervention]}")
    return (
        f"{'; '.join(parts)}; at every prompt token, on {len(data.attacks)} attacks and "
        f"{len(data.benign)} benign prompts"
    )


def _sign(config: DiagnosisConfig, generate: bool) -> str:
    checked = (
        "and whose removal doesn't raise the share of degenerate answers by more than "
        f"{100 * config.max_degenerate_rise:g} points"
        if generate
        else "(not checked on generated answers)"
    )
    return (
        "Positive on attacks: removing the site raises the refusal log-odds, so the site carries "
        "the attack. Recommended are FFN and attention sites with a positive effect that is "
        f"greater than on benign prompts by {config.min_selectivity:g} nats or more (lower limit) "
        f"{checked}."
    )
