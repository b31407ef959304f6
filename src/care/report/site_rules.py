"""Rules of the verdict on sites: layers, components, windows, and their causal effects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from care.report.rules import (
    AGREE,
    MIN_RANK_AGREEMENT,
    Look,
    Tree,
    agreement,
    always,
    correlation,
    either,
    no,
    rule,
    shown,
    yes,
)

MIN_SELECTIVITY = 0.1
"""Lower limit, in nats, by which the effect on attacks must exceed that on benign prompts."""
MAX_IDENTITY_ERROR = 0.05
"""|TE − (NDE − reversed NIE)| as a share of |TE|, beyond which the runs don't fit together."""

_WORDS = {"ffn": "FFN outputs", "mhsa": "attention outputs", "layer": "whole layers"}
_MATCHED = {"kind": "difference when removed alike", "norm": "at equal norm removed"}
_TINY = 1e-12


# -- layers and components -------------------------------------------------------------------------


def _best_site(diagnosis: Tree) -> Iterator[Look]:
    """The FFN or attention output of one layer with the greatest effect on attacks.

    Under the first intervention of the heatmap, or of the plain layer scan.
    """
    single = [row for row in diagnosis.get("heatmap") or [] if row["window"] == 1]
    parts = [row for row in single if row["component"] in ("ffn", "mhsa")]
    first = [row for row in parts if row["intervention"] == parts[0]["intervention"]]
    rows = first or diagnosis.get("layers") or []
    if parts := [row for row in rows if row["component"] in ("ffn", "mhsa")]:
        best = max(parts, key=lambda row: row["effect"])
        yield {
            "site": f"{best['layer']}.{best['component']}_out",
            "effect": shown(best, "effect"),
            "gap": best["selectivity"],
            "least": best["selectivity_low"],
        }


def _components(diagnosis: Tree) -> Iterator[Look]:
    """FFN against attention under each intervention: whether it is more, then whether by far."""
    rows = diagnosis.get("comparison") or []
    for intervention in dict.fromkeys(row["intervention"] for row in rows):
        by = {row["matched_by"]: row for row in rows if row["intervention"] == intervention}
        words = ", ".join(f"{_MATCHED[how]} {shown(row['difference'])}" for how, row in by.items())
        more = {how: row["difference"]["low"] > 0.0 for how, row in by.items()}
        yield {"intervention": intervention, "words": words, "more": more, "much": None}
        if "norm" in by and all(more.values()):
            much = all(row["survives"] for row in by.values())
            yield {"intervention": intervention, "more": more, "much": much}


_FFN_MORE = "FFN outputs matter more than attention outputs (intervention {intervention}; {words})"


def _interventions(diagnosis: Tree) -> list[Look]:
    """A second look at some sites, or where there was none two whole scans."""
    trust = diagnosis.get("trust") or {}
    looks = [row for row in trust.get("stability", []) if row["kind"] == "intervention"]
    if looks:
        return [{"name": row["name"], "ways": shown(row["spearman"], "rho")} for row in looks]
    by: dict[str, dict[tuple[str, int], float]] = {}
    for row in diagnosis.get("heatmap") or []:
        if row["window"] == 1 and row["component"] in ("ffn", "mhsa"):
            by.setdefault(row["intervention"], {})[row["component"], row["layer"]] = row["effect"]
    return _all_agree("interventions", by)


def _windows(diagnosis: Tree) -> Iterator[Look]:
    """Effects of windows of layers, and the mean of those that their layers have alone."""
    rows = diagnosis.get("heatmap") or []
    for window in sorted({row["window"] for row in rows} - {1}):
        known: dict[bool, list[str]] = {True: [], False: []}
        for component, name in _WORDS.items():
            single, wide = (_first_effects(rows, component, size) for size in (1, window))
            layers = [layer for layer in wide if layer in single]
            expected = [_mean_around(single, layer, window) for layer in layers]
            rho = correlation([wide[layer] for layer in layers], expected)
            if rho is not None:
                known[rho >= MIN_RANK_AGREEMENT].append(f"{rho:.2f} for {name}")
        for agree, words in known.items():
            if words:
                yield {"window": window, "agree": agree, "words": ", ".join(words)}


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


def _answers(diagnosis: Tree) -> Iterator[Look]:
    """Generated answers without the top sites: those whose attack success falls."""
    if rows := diagnosis.get("generated") or []:
        lower = [row for row in rows if row["asr_change"]["high"] < 0.0]
        best = min(lower or rows, key=lambda row: row["asr_change"]["rate"])
        change = {key: 100 * value for key, value in best["asr_change"].items()}
        words = "{rate:+.0f} [{low:+.0f}, {high:+.0f}]".format_map(change)
        names = ", ".join(row["site"] for row in lower)
        yield {"lower": names, "best": best["site"], "change": words}


# -- causal quantities -----------------------------------------------------------------------------


def _identity(diagnosis: Tree) -> Iterator[Look]:
    """The largest error of TE = NDE − reversed NIE, as a share of TE."""
    rows = [row for row in diagnosis.get("causal") or [] if row["identity_error"] is not None]
    if rows:
        shares = [row["identity_error"] / max(abs(row["total"]["rate"]), _TINY) for row in rows]
        worst = int(np.argmax(shares))
        where = f"{rows[worst]['site']}{_on(_pairs(rows[worst]))}"
        yield {"error": shares[worst], "where": where}


def _directions(diagnosis: Tree) -> Iterator[Look]:
    """Patching of the site with the greatest indirect effect, for each metric and kind of pairs."""
    looks: dict[tuple[str, str], list[Tree]] = {}
    for row in diagnosis.get("causal") or []:
        looks.setdefault((row["metric"], _pairs(row)), []).append(row)
    for (name, pairs), rows in looks.items():
        best = max(rows, key=lambda row: abs(row["indirect"]["rate"]))
        look = {
            "site": best["site"],
            "metric": f"{name}; {pairs}" if pairs else name,
            "total": shown(best["total"]),
        }
        ways = {key: best[key] for key in ("noising", "denoising")}
        yield look | {key: None if way is None else shown(way) for key, way in ways.items()}


def _metrics(diagnosis: Tree) -> list[Look]:
    """Indirect effects by each metric, on the same kind of pairs."""
    looks: dict[str, dict[str, dict[str, float]]] = {}
    for row in diagnosis.get("causal") or []:
        by = looks.setdefault(_pairs(row), {})
        by.setdefault(row["metric"], {})[row["site"]] = row["indirect"]["rate"]
    return [look for pairs, by in looks.items() for look in _all_agree("metrics", by, _on(pairs))]


def _kinds_of_pairs(diagnosis: Tree) -> list[Look]:
    """Indirect effects on each kind of pairs, in the direction of the total effect.

    For one kind of attack may lower refusal and the harm in a request raises it.
    """
    looks: dict[str, dict[str, dict[str, float]]] = {}
    for row in diagnosis.get("causal") or []:
        by, way = looks.setdefault(row["metric"], {}), np.sign(row["total"]["rate"])
        by.setdefault(_pairs(row), {})[row["site"]] = float(way * row["indirect"]["rate"])
    return [
        look
        for metric, by in looks.items()
        for look in _all_agree("kinds of pairs", by, f" ({metric})")
    ]


def _all_agree(what: str, by: Mapping[str, Mapping[Any, float]], where: str = "") -> list[Look]:
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


# -- the rules -------------------------------------------------------------------------------------

SITE_RULES = (
    rule(
        "best_site_is_selective",
        "whether a site acts on attacks in particular",
        _best_site,
        no(
            lambda look: look["effect"].low <= 0.0,
            "No single FFN or attention output is shown to carry the attacks: the greatest "
            "effect is {effect} nats at {site}, and its interval holds 0.",
        ),
        no(
            lambda look: look["least"] <= MIN_SELECTIVITY,
            "The site with the greatest effect, {site}, is not shown to carry attacks in "
            "particular: removing it raises their refusal log-odds by {effect} nats; the "
            "difference from benign prompts is {gap:.2f}, at least {least:.2f}.",
        ),
        yes(
            always,
            "Removing {site} raises the refusal log-odds of attacks by {effect} nats, and by "
            "{gap:.2f}, at least {least:.2f}, more than those of benign prompts.",
        ),
    ),
    rule(
        "ffn_outweighs_attention",
        "FFN against attention at equal norm",
        _components,
        yes(
            lambda look: look["much"] is True,
            "FFN outputs matter by far more than attention outputs ({intervention}).",
        ),
        no(
            lambda look: look["much"] is False,
            "It is not shown that FFN outputs matter by far more than attention outputs "
            "({intervention}).",
        ),
        no(
            lambda look: "norm" not in look["more"],
            f"That {_FFN_MORE} was not compared at equal norm: the FFN may merely write more.",
        ),
        yes(lambda look: all(look["more"].values()), f"{_FFN_MORE}."),
        no(
            lambda look: look["more"].get("kind", False),
            f"That {_FFN_MORE} does not survive matching by norm.",
        ),
        no(always, f"It is not shown that {_FFN_MORE}."),
    ),
    rule(
        "interventions_agree",
        "other ways of removing a site",
        _interventions,
        yes(
            lambda look: "ways" in look and look["ways"].agrees,
            "Two ways of removing sites agree on which sites matter: {name}, ρ = {ways}.",
        ),
        no(
            lambda look: "ways" in look,
            "Two ways of removing sites are not shown to agree on which sites matter: {name}, "
            "ρ = {ways}.",
        ),
        *AGREE,
    ),
    rule(
        "windows_agree",
        "windows of layers",
        _windows,
        *either(
            lambda look: look["agree"],
            "Windows of {window} layers and single layers [agree|disagree] on which layers "
            "matter: ρ = {words}.",
        ),
    ),
    rule(
        "answers_change",
        "generated answers",
        _answers,
        *either(
            lambda look: bool(look["lower"]),
            "In generated answers, attack success falls without {lower} (points, {best}: "
            "{change}).",
            "In generated answers, attack success is not shown to fall without any of the top "
            "sites; the largest change is {change} points at {best}.",
        ),
    ),
    rule(
        "effects_add_up",
        "whether causal effects add up",
        _identity,
        *either(
            lambda look: look["error"] <= MAX_IDENTITY_ERROR,
            "Total, direct and indirect effects add up (largest error {error:.2g} of the total "
            "effect).",
            "Total, direct and indirect effects do not add up at {where} (largest error "
            "{error:.2g} of the total effect): its causal effects can't be relied on.",
        ),
    ),
    rule(
        "both_directions",
        "patching in both directions",
        _directions,
        no(
            lambda look: None in (look["noising"], look["denoising"]),
            "The attacks are not shown to change {metric}: their total effect is {total}.",
        ),
        *either(
            lambda look: look["noising"].low > 0.0 and look["denoising"].low > 0.0,
            "{site} [carries|is not shown to carry] the effect both ways ({metric}): of the "
            "total effect, putting the attack's activation into a benign run brings "
            "{noising}, putting the benign one back undoes {denoising}.",
        ),
    ),
    rule("metrics_agree", "other metrics", _metrics, *AGREE),
    rule("pairs_agree", "other kinds of pairs", _kinds_of_pairs, *AGREE),
)
