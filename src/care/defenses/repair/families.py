"""The classes that a gate tells apart, from activations of requests and what is told of these.

A row is one request. Its family is the suite, or the category where there is none; families of
fewer than 8 rows are taken together, and left out where they are still as few. Its group is what
must not be split between the folds of a cross-fit: the goal, or its pictures where these serve
several goals (a universal one). Nothing of a request is needed but that, so that a repair can keep
it (`memory`). Not here: the activations (`fitting_data`), nor what is fitted (`family_subspace`,
`gate`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from care.data.example import Example
from care.defenses.repair.family_subspace import Classes
from care.statistics.crossfit import FamilyRows

LEAST_FAMILY = 8
"""Families with fewer examples are taken together as one."""
OTHERS = "others"
"""Name of that family."""


@dataclass(frozen=True)
class Told:
    """What is told of a request."""

    family: str
    """Its suite, or category."""
    goal: str
    """Its goal, or a digest of it."""
    pictures: str
    """What tells its pictures apart; "" without any."""

    @classmethod
    def of(cls, example: Example, pictures: str) -> Told:
        """What is told of an example with the digests of its pictures."""
        family = example.suite or example.category or "attacks"
        return cls(family, example.goal or example.prompt, pictures)


def classes_of(
    rows: Sequence[np.ndarray],
    told: Sequence[Sequence[Told]],
    attacks: Sequence[int] | None = None,
) -> Classes:
    """The classes from rows (N, D) of attacks that worked, refused and answered requests.

    `attacks` are the places of those attacks that are meant, and told of; none: all. Rows aren't
    copied.
    """
    worked, refused, answered = zip(rows, told, strict=True)
    return Classes(
        attacks=families(*worked, attacks),
        refused=FamilyRows(refused[0], groups(refused[1])),
        benign=families(*answered),
    )


def families(
    x: np.ndarray, told: Sequence[Told], places: Sequence[int] | None = None
) -> dict[str, FamilyRows]:
    """Rows (N, D) by family, small ones together; `places` in x of those that are told of."""
    names = [each.family for each in told]
    counts = Counter(names)
    names = [name if counts[name] >= LEAST_FAMILY else OTHERS for name in names]
    found, at = {}, np.asarray(range(len(x)) if places is None else places, np.int64)
    for name in dict.fromkeys(names):
        own = [place for place, other in enumerate(names) if other == name]
        if name != OTHERS or len(own) >= LEAST_FAMILY or len(own) == len(names):
            found[name] = FamilyRows(x, groups([told[place] for place in own]), at[own])
    return found


def groups(told: Sequence[Told]) -> list[str]:
    """Goal of each request, or its pictures where they serve several goals."""
    serve: dict[str, set[str]] = {}
    for each in told:
        serve.setdefault(each.pictures, set()).add(each.goal)
    return [
        each.pictures if each.pictures and len(serve[each.pictures]) > 1 else each.goal
        for each in told
    ]
