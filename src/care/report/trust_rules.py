"""Rules of the verdict on trust: would another look say the same, and is it chance?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from care.report.rules import Look, Tree, either, no, rule, shown

MIN_RELIABILITY = 0.7
"""Spearman–Brown corrected ρ of halves from which a ranking counts as repeatable."""
MAX_P = 0.05
"""p of another random ranking up to which one counts as better than chance."""


def _separability(diagnosis: Tree) -> Iterator[Look]:
    """Every figure of separability against the causal effect."""
    if rows := diagnosis.get("rank_correlation") or {}:
        words = (f"{name.replace('_', ' ')} {shown(row, 'rho')}" for name, row in rows.items())
        above = all(row["low"] > 0.0 for row in rows.values())
        yield {"above": above, "words": ", ".join(words)}


def _halves(diagnosis: Tree) -> Iterator[Look]:
    """Two halves of the goals."""
    for row in _stability(diagnosis, "half"):
        yield {
            "rho": shown(row["reliability"] or row["spearman"], "rho"),
            "shared": 100 * row["overlap"]["rate"],
            "top": row["top"],
            "chance": 100 * row["chance"],
        }


def _worst(kind: str, what: str) -> Callable[[Tree], Iterator[Look]]:
    """The comparison of this kind that agrees least; `what` is compared, in words."""

    def looks(diagnosis: Tree) -> Iterator[Look]:
        if rows := _stability(diagnosis, kind):
            worst = min(rows, key=lambda row: row["spearman"]["rho"])
            look = {"what": what, "least": ", the least of all" * (len(rows) > 1)}
            yield look | {"name": worst["name"], "rho": shown(worst["spearman"], "rho")}

    return looks


_WORST_AGREES = either(
    lambda look: look["rho"].agrees,
    "{what} [agree|do not agree] on which sites matter: {name}, ρ = {rho}{least}.",
)


def _curves(diagnosis: Tree) -> list[Look]:
    """How much of the behaviour each ranking accounts for."""
    return [
        {
            "units": curve["units"],
            "metric": curve["metric"],
            "all": shown(curve["scale"], sign=-1),
            "cpr": shown(curve["cpr"]),
            "random": curve["random_cpr"]["mean"],
            "p": curve["p_random"],
            "kept": shown(curve["sufficiency_advantage"]),
            "lost": shown(curve["necessity_advantage"]),
        }
        for curve in (diagnosis.get("trust") or {}).get("faithfulness", [])
    ]


def _may_be_nothing(look: Look) -> bool:
    """Whether removing all units may change nothing, so that no share of it is defined."""
    return look["all"].low <= 0.0 <= look["all"].high


def _stability(diagnosis: Tree, kind: str) -> list[Tree]:
    rows = (diagnosis.get("trust") or {}).get("stability", [])
    return [row for row in rows if row["kind"] == kind]


TRUST_RULES = (
    rule(
        "separability_predicts",
        "separability against causal effect",
        _separability,
        *either(
            lambda look: look["above"],
            "Separability goes with causal effect over layers (ρ: {words}).",
            "Separability does not predict causal effect over layers (ρ: {words}): where "
            "attacks can be read off need not be where they are caused.",
        ),
    ),
    rule(
        "halves_agree",
        "halves of the goals",
        _halves,
        *either(
            lambda look: look["rho"].value >= MIN_RELIABILITY and look["rho"].low > 0.0,
            "Halves of the goals [rank|do not rank] the sites alike: reliability {rho}, "
            "{shared:.0f}% of the top {top} shared ({chance:.0f}% by chance).",
        ),
    ),
    rule("seeds_agree", "other seeds", _worst("seed", "Other seeds or draws"), *_WORST_AGREES),
    rule(
        "families_agree",
        "attack families apart",
        _worst("family", "Attack families"),
        *_WORST_AGREES,
    ),
    rule(
        "ranking_beats_random",
        "faithfulness against random rankings",
        _curves,
        no(
            _may_be_nothing,
            "Faithfulness of the ranked {units} can't be judged: removing all of them changes "
            "{metric} by {all}, which may be nothing.",
        ),
        *either(
            lambda look: look["kept"].low > 0.0 and look["p"] <= MAX_P,
            "The best {units} alone [keep|are not shown to keep] more of the behaviour than "
            "as many at random: area under the faithfulness curve {cpr} against {random:.2f} "
            "of random ones (p = {p:.2g}).",
        ),
    ),
    rule(
        "ranking_is_needed",
        "completeness against random rankings",
        lambda diagnosis: [look for look in _curves(diagnosis) if not _may_be_nothing(look)],
        *either(
            lambda look: look["lost"].low > 0.0,
            "Removing the best {units} [takes|is not shown to take] away more of the "
            "behaviour than removing as many at random: the areas differ by {lost}.",
        ),
    ),
)
