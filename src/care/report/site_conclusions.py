"""Rules of the verdict on sites: layers, components, windows, and their causal effects.

Each takes the `diagnosis` tree and returns findings; see `care.report.conclusions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from care.report.conclusion import MIN_RANK_AGREEMENT, Finding, Tree, agreement, correlation, figure

MIN_SELECTIVITY = 0.1
"""Lower limit, in nats, by which the effect on attacks must exceed that on benign prompts."""
MAX_IDENTITY_ERROR = 0.05
"""|TE − (NDE − reversed NIE)| as a share of |TE|, beyond which the runs don't fit together."""

_WORDS = {"ffn": "FFN outputs", "mhsa": "attention outputs", "layer": "whole layers"}
_MATCHED = {"kind": "difference when removed alike", "norm": "at equal norm removed"}
_TINY = 1e-12


# -- layers and components -------------------------------------------------------------------------


def best_site_is_selective(diagnosis: Tree) -> list[Finding]:
    """Removing the site with the greatest effect on attacks acts on attacks in particular."""
    parts = [row for row in _single_layers(diagnosis) if row["component"] in ("ffn", "mhsa")]
    if not parts:
        return []
    best = max(parts, key=lambda row: row["effect"])
    name = f"{best['layer']}.{best['component']}_out"
    effect = figure(best, "effect")
    if best["low"] <= 0.0:
        text = (
            f"No single FFN or attention output is shown to carry the attacks: the greatest effect "
            f"is {effect} nats at {name}, and its interval holds 0."
        )
        return [Finding(False, text)]
    gap = f"{best['selectivity']:.2f}, at least {best['selectivity_low']:.2f}"
    if best["selectivity_low"] <= MIN_SELECTIVITY:
        text = (
            f"The site with the greatest effect, {name}, is not shown to carry attacks in "
            f"particular: removing it raises their refusal log-odds by {effect} nats; the "
            f"difference from benign prompts is {gap}."
        )
        return [Finding(False, text)]
    text = (
        f"Removing {name} raises the refusal log-odds of attacks by {effect} nats, and by {gap}, "
        "more than those of benign prompts."
    )
    return [Finding(True, text)]


def ffn_outweighs_attention(diagnosis: Tree) -> list[Finding]:
    """FFN outputs matter more than attention outputs, and by far, alike in kind and in norm."""
    rows = diagnosis.get("comparison") or []
    found = []
    for intervention in dict.fromkeys(row["intervention"] for row in rows):
        by = {row["matched_by"]: row for row in rows if row["intervention"] == intervention}
        words = ", ".join(f"{_MATCHED[how]} {figure(row['difference'])}" for how, row in by.items())
        of = f"outputs matter more than attention outputs (intervention {intervention}; {words})"
        if "norm" not in by:
            text = f"That FFN {of} was not compared at equal norm: the FFN may merely write more."
            found.append(Finding(False, text))
            continue
        more = {how: row["difference"]["low"] > 0.0 for how, row in by.items()}
        if not all(more.values()):
            lost = more.get("kind")
            text = f"That FFN {of} does not survive matching by norm." if lost else ""
            found.append(Finding(False, text or f"It is not shown that FFN {of}."))
            continue
        found.append(Finding(True, f"FFN {of}."))
        much = all(row["survives"] for row in by.values())
        start = "FFN" if much else "It is not shown that FFN"
        text = f"{start} outputs matter by far more than attention outputs ({intervention})."
        found.append(Finding(much, text))
    return found


def interventions_agree(diagnosis: Tree) -> list[Finding]:
    """Another way of removing a site finds the same sites.

    From a second look at some of them, or where there was none from a whole scan by each.
    """
    trust = diagnosis.get("trust") or {}
    looks = [row for row in trust.get("stability", []) if row["kind"] == "intervention"]
    if looks:
        return [_looks_agree(row) for row in looks]
    by: dict[str, dict[tuple[str, int], float]] = {}
    for row in diagnosis.get("heatmap") or []:
        if row["window"] == 1 and row["component"] in ("ffn", "mhsa"):
            by.setdefault(row["intervention"], {})[row["component"], row["layer"]] = row["effect"]
    return _all_agree("interventions", by)


def _looks_agree(row: Tree) -> Finding:
    rho = row["spearman"]
    holds = rho["rho"] >= MIN_RANK_AGREEMENT and rho["low"] > 0.0
    verb = "agree" if holds else "are not shown to agree"
    text = f"Two ways of removing sites {verb} on which sites matter: {row['name']}, ρ = "
    return Finding(holds, f"{text}{figure(rho, 'rho')}.")


def windows_agree(diagnosis: Tree) -> list[Finding]:
    """Windows of layers have the effects that their layers have one at a time."""
    rows = diagnosis.get("heatmap") or []
    found = []
    for window in sorted({row["window"] for row in rows} - {1}):
        known: dict[bool, list[str]] = {True: [], False: []}
        for component, name in _WORDS.items():
            single, wide = (_first_effects(rows, component, size) for size in (1, window))
            layers = [layer for layer in wide if layer in single]
            expected = [_mean_around(single, layer, window) for layer in layers]
            rho = correlation([wide[layer] for layer in layers], expected)
            if rho is not None:
                known[rho >= MIN_RANK_AGREEMENT].append(f"{rho:.2f} for {name}")
        for holds, words in known.items():
            if words:
                verb = "agree" if holds else "disagree"
                text = (
                    f"Windows of {window} layers and single layers {verb} on which layers matter: "
                    f"ρ = {', '.join(words)}."
                )
                found.append(Finding(holds, text))
    return found


def answers_change(diagnosis: Tree) -> list[Finding]:
    """Removing the top sites lowers attack success in generated answers."""
    rows = diagnosis.get("generated") or []
    if not rows:
        return []
    lower = [row for row in rows if row["asr_change"]["high"] < 0.0]
    best = min(lower or rows, key=lambda row: row["asr_change"]["rate"])
    change = best["asr_change"]
    words = f"{100 * change['rate']:+.0f} [{100 * change['low']:+.0f}, {100 * change['high']:+.0f}]"
    if lower:
        names = ", ".join(row["site"] for row in lower)
        text = (
            f"In generated answers, attack success falls without {names} (points, "
            f"{best['site']}: {words})."
        )
    else:
        text = (
            "In generated answers, attack success is not shown to fall without any of the top "
            f"sites; the largest change is {words} points at {best['site']}."
        )
    return [Finding(bool(lower), text)]


# -- causal quantities -----------------------------------------------------------------------------


def effects_add_up(diagnosis: Tree) -> list[Finding]:
    """TE = NDE − reversed NIE within rounding."""
    rows = [row for row in diagnosis.get("causal") or [] if row["identity_error"] is not None]
    if not rows:
        return []
    shares = [row["identity_error"] / max(abs(row["total"]["rate"]), _TINY) for row in rows]
    worst = int(np.argmax(shares))
    words = f"largest error {shares[worst]:.2g} of the total effect"
    if shares[worst] <= MAX_IDENTITY_ERROR:
        return [Finding(True, f"Total, direct and indirect effects add up ({words}).")]
    where = f"{rows[worst]['site']}{_on(_pairs(rows[worst]))}"
    text = (
        f"Total, direct and indirect effects do not add up at {where} ({words}): its causal "
        "effects can't be relied on."
    )
    return [Finding(False, text)]


def both_directions(diagnosis: Tree) -> list[Finding]:
    """The site with the greatest indirect effect brings the attack's effect in and undoes it."""
    found = []
    looks: dict[tuple[str, str], list[Tree]] = {}
    for row in diagnosis.get("causal") or []:
        looks.setdefault((row["metric"], _pairs(row)), []).append(row)
    for (name, pairs), rows in looks.items():
        metric = f"{name}; {pairs}" if pairs else name
        best = max(rows, key=lambda row: abs(row["indirect"]["rate"]))
        shares = [best[key] for key in ("noising", "denoising")]
        if None in shares:
            text = (
                f"The attacks are not shown to change {metric}: their total effect is "
                f"{figure(best['total'])}."
            )
            found.append(Finding(False, text))
            continue
        holds = all(share["low"] > 0.0 for share in shares)
        verb = "carries" if holds else "is not shown to carry"
        text = (
            f"{best['site']} {verb} the effect both ways ({metric}): of the total effect, putting "
            f"the attack's activation into a benign run brings {figure(shares[0])}, putting the "
            f"benign one back undoes {figure(shares[1])}."
        )
        found.append(Finding(holds, text))
    return found


def metrics_agree(diagnosis: Tree) -> list[Finding]:
    """Another metric orders the sites in the same way by indirect effect."""
    looks: dict[str, dict[str, dict[str, float]]] = {}
    for row in diagnosis.get("causal") or []:
        by = looks.setdefault(_pairs(row), {})
        by.setdefault(row["metric"], {})[row["site"]] = row["indirect"]["rate"]
    return [
        finding for pairs, by in looks.items() for finding in _all_agree("metrics", by, _on(pairs))
    ]


def pairs_agree(diagnosis: Tree) -> list[Finding]:
    """Pairs of another kind order the sites in the same way, by what brings about their effect.

    One kind of attack may lower refusal and the harm in a request raises it; so indirect effects
    count in the direction of the total effect.
    """
    looks: dict[str, dict[str, dict[str, float]]] = {}
    for row in diagnosis.get("causal") or []:
        by, way = looks.setdefault(row["metric"], {}), np.sign(row["total"]["rate"])
        by.setdefault(_pairs(row), {})[row["site"]] = float(way * row["indirect"]["rate"])
    return [
        finding
        for metric, by in looks.items()
        for finding in _all_agree("kinds of pairs", by, f" ({metric})")
    ]


def _all_agree(what: str, by: Mapping[str, Mapping[Any, float]], where: str = "") -> list[Finding]:
    """Agreement of every two looks, each with its effects by site, on the sites both have."""
    found = []
    for (one, first), (other, second) in combinations(by.items(), 2):
        shared = [site for site in first if site in second]
        effects = ([look[site] for site in shared] for look in (first, second))
        found += agreement(f"the {what} {one} and {other}{where}", *effects)
    return found


def _pairs(row: Tree) -> str:
    """The kind of pairs an effect is of; empty if it isn't known."""
    return row.get("pairs") or ""


def _on(pairs: str) -> str:
    """A kind of pairs, to come after what is said of it."""
    return f" ({pairs})" if pairs else ""


# -- figures ---------------------------------------------------------------------------------------


def _single_layers(diagnosis: Tree) -> list[Tree]:
    """Effects of single layers under the first intervention, or the plain layer scan."""
    rows = [row for row in diagnosis.get("heatmap") or [] if row["window"] == 1]
    parts = [row for row in rows if row["component"] in ("ffn", "mhsa")]
    if not parts:
        return list(diagnosis.get("layers") or [])
    return [row for row in parts if row["intervention"] == parts[0]["intervention"]]


def _first_effects(rows: Sequence[Tree], component: str, window: int) -> dict[int, float]:
    """Effect by layer of one component and window, under its first intervention."""
    own = [row for row in rows if row["component"] == component and row["window"] == window]
    return {
        row["layer"]: row["effect"] for row in own if row["intervention"] == own[0]["intervention"]
    }


def _mean_around(single: Mapping[int, float], layer: int, window: int) -> float:
    """Mean effect of the layers of the window with this middle layer."""
    first = layer - (window - 1) // 2
    return float(np.mean([single[at] for at in range(first, first + window) if at in single]))
