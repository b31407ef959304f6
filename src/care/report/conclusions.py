"""What a diagnosis supports and what it doesn't, in plain words, from its figures alone.

`verdict` goes through a fixed list of rules (`care.report.rules`). Each looks at one part of the
`diagnosis` tree (the keys of report.json), compares one figure with one constant of its module and
writes one sentence per finding, with the figure; a part that wasn't measured is named as untested.
Nothing is computed from anything else than the tree: only rank correlations and a rank test of
figures it lists.
"""

from __future__ import annotations

from dataclasses import dataclass

from care.report.neuron_rules import NEURON_RULES
from care.report.rules import Conclusion, Tree
from care.report.site_rules import SITE_RULES
from care.report.trust_rules import TRUST_RULES

RULES = (*SITE_RULES, *TRUST_RULES, *NEURON_RULES)
"""In the order of the verdict."""


@dataclass(frozen=True)
class Conclusions:
    """Two lists of sentences."""

    supported: tuple[str, ...]
    """What the figures show."""
    unsupported: tuple[str, ...]
    """What they don't show, and last what wasn't tested."""


def verdict(diagnosis: Tree) -> Conclusions:
    """The findings of all rules on a `diagnosis` tree; the same tree always gives the same words.

    Optional parts (`heatmap`, `comparison`, `causal`, `neurons`, `trust`) may be missing, empty or
    null.
    """
    found: list[Conclusion] = []
    untested = []
    for rule in RULES:
        outcome = rule.findings(diagnosis)
        found += outcome
        if not outcome:
            untested.append(rule.tests)
    unsupported = [finding.text for finding in found if not finding.holds]
    if untested:
        unsupported.append(f"Not tested here: {'; '.join(untested)}.")
    return Conclusions(tuple(item.text for item in found if item.holds), tuple(unsupported))
