"""Counterfactual pairs: an attack x' and a benign prompt x that differs in what is asked about.

Causal effects compare two runs. The best pair a vision-language model has is one prompt beside two
pictures, plain and perturbed: every token has its counterpart. Of text alone it is a pair of twins,
a harmful and a harmless request that differ in a word or two of as many tokens. Not here: which
positions of two runs correspond (`care.models.alignment`), and what is done with the runs
(`care.diagnosis.causal_mediation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from care.data.example import Example


@dataclass(frozen=True)
class Pair:
    """Two prompts that are run against each other."""

    attack: Example
    """x', the malicious one."""
    benign: Example
    """x, its counterpart: a benign twin, or the same request without what makes it work."""
    kind: str = ""
    """What the two differ in, in words; pairs of one kind are measured together."""


def by_kind(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """The pairs of each kind, in the order in which the kinds come first."""
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.kind, []).append(pair)
    return found
