"""What a diagnosis supports and what it doesn't, in plain words, from its figures alone.

`verdict` goes through a fixed list of rules. Each looks at one part of the `diagnosis` tree (the
keys of report.json), compares one figure with one constant of its module and writes one sentence
per finding, with the figure; a part that wasn't measured is named as untested. Nothing is computed
from anything else than the tree: only rank correlations and a rank test of figures it lists. The
rules on sites are in `care.report.site_conclusions`, those on trust and neurons in
`care.report.trust_conclusions`.
"""

from __future__ import annotations

from dataclasses import dataclass

from care.report import site_conclusions as sites
from care.report import trust_conclusions as trust
from care.report.conclusion import Finding, Rule, Tree

RULES: dict[str, Rule] = {
    "whether a site acts on attacks in particular": sites.best_site_is_selective,
    "FFN against attention at equal norm": sites.ffn_outweighs_attention,
    "other ways of removing a site": sites.interventions_agree,
    "windows of layers": sites.windows_agree,
    "generated answers": sites.answers_change,
    "whether causal effects add up": sites.effects_add_up,
    "patching in both directions": sites.both_directions,
    "other metrics": sites.metrics_agree,
    "other kinds of pairs": sites.pairs_agree,
    "separability against causal effect": trust.separability_predicts,
    "halves of the goals": trust.halves_agree,
    "other seeds": trust.seeds_agree,
    "attack families apart": trust.families_agree,
    "faithfulness against random rankings": trust.ranking_beats_random,
    "completeness against random rankings": trust.ranking_is_needed,
    "neurons": trust.neurons_matter,
    "random neurons as controls": trust.neurons_beat_controls,
    "neurons on benign prompts": trust.neurons_are_selective,
    "exact patching of neurons": trust.estimate_is_exact,
    "a repair by neurons": trust.neurons_repair,
}
"""What each rule tests, in the words of "not tested here", in the order of the verdict."""


@dataclass(frozen=True)
class Verdict:
    """Two lists of sentences."""

    supported: tuple[str, ...]
    """What the figures show."""
    unsupported: tuple[str, ...]
    """What they don't show, and last what wasn't tested."""


def verdict(diagnosis: Tree) -> Verdict:
    """The findings of all rules on a `diagnosis` tree; the same tree always gives the same words.

    Optional parts (`heatmap`, `comparison`, `causal`, `neurons`, `trust`) may be missing, empty or
    null.
    """
    found: list[Finding] = []
    untested = []
    for name, rule in RULES.items():
        outcome = rule(diagnosis)
        found += outcome
        if not outcome:
            untested.append(name)
    unsupported = [finding.text for finding in found if not finding.holds]
    if untested:
        unsupported.append(f"Not tested here: {'; '.join(untested)}.")
    return Verdict(tuple(item.text for item in found if item.holds), tuple(unsupported))
