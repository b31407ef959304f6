"""Site scan: which layers, and which of their parts, carry an attack.

For every layer and each of its parts (FFN, attention, the whole layer) the part is taken away and
the refusal log-odds m = log P(R) − log(1 − P(R)) at the first answer token are compared:

    effect(site) = E[ m(x | site removed) − m(x) ],   selectivity = effect(attacks) − effect(benign)

A positive effect on attacks means that the site carries the attack: without it the model refuses.
A part that raises refusals of benign prompts as much says nothing about attacks, hence the
selectivity. FFN and attention get the same kind of intervention, so that they can be compared (the
released code of the method injects two different kinds of noise). The best sites are confirmed on
generated answers, where a site whose removal only breaks the text is turned down. Windows of layers
are removed too, since neighbours can make up for one layer. Separability is computed beside it and
correlated, because what can be read off a layer need not be caused there. Not here: total, direct
and indirect effects (`care.diagnosis.causal_mediation`), single neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from care.data.example import Example, Suite
from care.diagnosis.activation_means import Collected
from care.diagnosis.results import SiteScan
from care.diagnosis.scan import ScanRow
from care.diagnosis.separability import separability
from care.diagnosis.site_results import (
    Changes,
    GeneratedSite,
    HeatCell,
    LayerEffect,
    LayerSeparability,
    RecommendedSite,
)
from care.diagnosis.site_scan_config import SiteScanConfig
from care.diagnosis.site_scan_runs import Data, SiteScanRuns
from care.models.sites import Site
from care.models.vlm import VLM
from care.runs.progress import Bar, silent
from care.statistics.correlation import Correlation
from care.statistics.intervals import difference

if TYPE_CHECKING:
    from care.judges.rules import RulesJudge

_METRICS = ("silhouette", "class_separation", "mahalanobis")
_WORDS: dict[str, str] = {
    "mean": "replaced by its mean per position class over {reference} prompts",
    "zero": "set to zero",
    "skip": "bypassed (its output := its input)",
    "resample": "replaced by that of a benign prompt at a position of the same role",
    "constant": "replaced by the constant that changes benign prompts least",
    "previous-layer": "replaced as in the released code (FFN: output of an earlier FFN; attention: "
    "its normed input)",
}


def scan_sites(
    vlm: VLM,
    attacks: Suite | Sequence[Example],
    benign: Suite | Sequence[Example],
    *,
    config: SiteScanConfig | None = None,
    generate: bool = True,
    judge: RulesJudge | None = None,
    progress: Bar | None = None,
    done: Iterable[ScanRow] = (),
    keep: Callable[[ScanRow], None] | None = None,
) -> SiteScan:
    """Find the sites that carry the attacks.

    Every component of every layer is removed in turn (`config`), on attack and on benign prompts;
    the FFN and attention sites with the greatest lower limit of selectivity (those with a clearly
    positive effect on attacks first) are then removed while answers are generated and judged
    (`judge`, by default `care.judges.rules.RulesJudge`), unless `generate` is False. A site is
    recommended if the lower limit of its effect on attacks is above 0, that of its selectivity
    above `min_selectivity`, and the share of degenerate answers rises by at most
    `max_degenerate_rise`. These two limits are at a level corrected for the number of sites that
    the best are chosen from (Bonferroni): of sixty sites that do nothing, one or two look selective
    at 95 %.

    FFN and attention are compared, matched by kind of ablation and by norm
    (`care.diagnosis.component_contrast`).

    `progress` makes the bar: `care.runs.progress.Progress`, or anything called the same way. To
    resume, write every row that `keep` gets to a file and pass what it holds as `done`
    (`care.diagnosis.scan`).

    Raises: DataError if an attack isn't malicious, a benign example isn't benign, or either has
    fewer than two goals; FitError for activations or log-odds that aren't finite.
    """
    config = config or SiteScanConfig()
    data = Data.of(attacks, benign, config)
    runs = SiteScanRuns(vlm, data, config, list(done), keep)
    with (progress or silent)("diagnosis", runs.steps(generate)) as bar:
        advance = bar.advance
        changes = runs.changes(advance)
        effects = tuple(item for item in changes.effects if item.window == 1)
        comparisons = runs.comparisons(changes, advance)
        top = _top(effects, config.top_sites)
        modalities = runs.modalities([item.site for item in top], advance)
        generated = runs.confirm(top, judge, advance) if generate and top else ()
    apart = _separability(runs.collected, len(data.attacks))
    sure = _corrected(runs, changes, [item.site for item in effects if item.component != "layer"])
    answered = generated if generate else None
    recommended, verdict = _recommend(top, sure, modalities, answered, config)
    return SiteScan(
        metric="change in refusal log-odds (nats)",
        intervention=_intervention(config, data),
        sign=_sign(config, generate),
        n_layers=vlm.anatomy.n_layers,
        layers=tuple(item.alone for item in effects),
        heatmap=(*effects, *(item for item in changes.effects if item.window > 1)),
        comparison=comparisons,
        separability=apart,
        rank_correlation=_correlations(apart, effects, config),
        generated=generated,
        recommended=recommended,
        verdict=verdict,
        channels=None,
        changes=changes,
    )


# -- from effects to sites -------------------------------------------------------------------------


def _top(effects: Sequence[HeatCell], n: int) -> list[HeatCell]:
    """FFN and attention sites by lower limit of selectivity, best first.

    Sites without a clear positive effect on attacks can't be recommended and come last; they may be
    selective only because removing them makes benign prompts less often refused.
    """
    parts = [item for item in effects if item.component != "layer"]
    return sorted(parts, key=lambda item: (item.low <= 0, -item.selectivity_low))[:n]


def _corrected(
    runs: SiteScanRuns, changes: Changes, sites: Sequence[Site]
) -> dict[Site, tuple[float, float]]:
    """Lower limits of effect and selectivity that hold for all S `sites` together.

    Each is at the level 1 − (1 − level) / S.
    """
    level = 1 - (1 - runs.config.sampling.level) / max(1, len(sites))
    split = changes.n_attacks
    limits = {}
    for removal, values in zip(runs.removals, changes.values, strict=True):
        if len(removal.sites) == 1 and removal.site in sites:
            attacked = runs.interval(values[:split], runs.data.attacks, level)
            harmless = runs.interval(values[split:], runs.data.benign, level)
            limits[removal.site] = attacked.low, difference(attacked, harmless).low
    return limits


def _recommend(
    top: Sequence[LayerEffect],
    sure: dict[Site, tuple[float, float]],
    modalities: dict[Site, str],
    generated: Sequence[GeneratedSite] | None,
    config: SiteScanConfig,
) -> tuple[tuple[RecommendedSite, ...], str]:
    """The sites that hold, and a sentence on the outcome; `generated` is None without answers."""
    least = config.min_selectivity
    selective = [item for item in top if sure[item.site][0] > 0 and sure[item.site][1] > least]
    answers = {item.site: item for item in generated or ()}
    chosen, broken = [], []
    for item in selective:
        answer = answers.get(item.site)
        if answer is not None and answer.degenerate_rise > config.max_degenerate_rise:
            broken.append(str(item.site))
            continue
        reason = _reason(item, sure[item.site][1], len(sure), answer)
        chosen.append(RecommendedSite(item.site, modalities[item.site], reason))
    turned_down = f" Removing {', '.join(broken)} merely makes answers degenerate." * bool(broken)
    if chosen:
        names = ", ".join(str(item.site) for item in chosen)
        return tuple(chosen), f"The attack is carried by {names}.{turned_down}"
    if broken:
        return (), f"No site is recommended.{turned_down}"
    return (), (
        "No site is recommended: none raises refusals of attacks selectively when it is removed "
        f"(lower limit of the effect above 0, of the selectivity above {least:g} nats, corrected "
        f"for {len(sure)} sites)."
    )


def _reason(item: LayerEffect, sure: float, sites: int, answer: GeneratedSite | None) -> str:
    reason = (
        f"removing it raises the refusal log-odds of attacks by {item.effect:.2f} "
        f"[{item.low:.2f}, {item.high:.2f}] and of benign prompts by {item.benign_effect:.2f} "
        f"(selectivity {item.selectivity:.2f}, at least {sure:.2f} corrected for {sites} sites)"
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
    apart: Sequence[LayerSeparability], effects: Sequence[LayerEffect], config: SiteScanConfig
) -> dict[str, Correlation]:
    """Rank correlation over layers; without at least 3 layers that differ there is none."""
    component = "layer" if "layer" in config.components else config.components[0]
    effect_of = {item.layer: item.effect for item in effects if item.component == component}
    apart = [item for item in apart if item.layer in effect_of]
    caused = [effect_of[item.layer] for item in apart]
    found = {}
    for metric in _METRICS:
        read = [getattr(item, metric) for item in apart]
        if len(read) >= 3 and np.ptp(read) > 0 and np.ptp(caused) > 0:
            rho = config.sampling.spearman(read, caused)
            found[metric] = Correlation(rho.rate, rho.low, rho.high)
    return found


def _intervention(config: SiteScanConfig, data: Data) -> str:
    parts = []
    if set(config.components) & {"ffn", "mhsa"}:
        how = "zero" if config.intervention == "skip" else config.intervention
        parts.append(f"FFN or attention output {_WORDS[how]}")
    if "layer" in config.components:
        parts.append(f"whole layer {_WORDS[config.layer_intervention]}")
    reference = "benign" if config.reference == "benign" else "attack and benign"
    parts = [part.format(reference=reference) for part in parts]
    return (
        f"{'; '.join(parts)}; at every prompt token, on {len(data.attacks)} attacks and "
        f"{len(data.benign)} benign prompts"
    )


def _sign(config: SiteScanConfig, generate: bool) -> str:
    checked = (
        "and whose removal doesn't raise the share of degenerate answers by more than "
        f"{100 * config.max_degenerate_rise:g} points"
        if generate
        else "(not checked on generated answers)"
    )
    return (
        "Positive on attacks: removing the site raises the refusal log-odds, so the site carries "
        "the attack. Recommended are FFN and attention sites with a positive effect that is "
        f"greater than on benign prompts by {config.min_selectivity:g} nats or more (lower limits "
        "corrected for the number of sites) "
        f"{checked}."
    )
