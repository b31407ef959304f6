"""Counterfactual pairs: an attack x' and a benign prompt x that differs in what is asked about.

Causal effects compare two runs, so their positions have to correspond. The best pair a
vision-language model has is one prompt beside two pictures, plain and perturbed: every token has
its counterpart. Of text alone it is a pair of twins, a harmful and a harmless request that differ
in a word or two of as many tokens. Prompts of unequal length are matched within each role, text
counted from the end (where the question and the answer's opening are), image tokens from the start.
Not here: what is done with the runs (`care.diagnosis.causal_mediation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from care.data.example import Example
from care.errors import DataError
from care.models.anatomy import Role


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


def make_pairs(attacks: Sequence[Example], others: Sequence[Example]) -> list[Pair]:
    """The closest counterpart of each attack, in the order of `attacks`.

    Closest is, in this order: the same prompt (beside another picture, or with the same text), as
    many images, the same goal, the same category, the least difference in the length of the prompt
    (in characters), the earlier one. One counterpart may serve several attacks.

    Raises DataError if there are no counterparts.
    """
    if not others:
        raise DataError("Pairs need counterparts of the attacks; none were given.")

    def distance(attack: Example, other: Example) -> tuple[bool, int, bool, bool, int]:
        return (
            attack.prompt != other.prompt or attack.system != other.system,
            abs(len(attack.images) - len(other.images)),
            (attack.goal or attack.prompt) != (other.goal or other.prompt),
            attack.category != other.category,
            abs(len(attack.prompt) - len(other.prompt)),
        )

    return [
        Pair(attack, min(others, key=lambda other, attack=attack: distance(attack, other)))
        for attack in attacks
    ]


def align(here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """For each position of roles `here` (B, T), its counterpart among roles `there` (B, S).

    Returns indices into S (B, T) and a mask (B, T) of the positions that have a counterpart: as
    many of each role as both runs have.
    """
    index = torch.zeros_like(here)
    found = torch.zeros_like(here, dtype=torch.bool)
    for role in (Role.TEXT, Role.IMAGE, Role.RESPONSE):
        mine, theirs = here == role, there == role
        if role == Role.TEXT:
            rank, count = mine.flip(1).cumsum(1).flip(1) - 1, theirs.sum(1, keepdim=True)
            places = theirs.flip(1).int().argsort(dim=1, descending=True, stable=True)
            places = theirs.shape[1] - 1 - places
        else:
            rank, count = mine.cumsum(1) - 1, theirs.sum(1, keepdim=True)
            places = theirs.int().argsort(dim=1, descending=True, stable=True)
        own = mine & (rank < count)
        at = places.gather(1, rank.clamp(0, theirs.shape[1] - 1))
        index, found = torch.where(own, at, index), found | own
    return index, found
