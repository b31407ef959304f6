"""Parts of what is fitted on: fewer requests of each class, or without some suites.

    thinned     at most so many requests of each class, evenly spaced
    drawn       the same, but another part for each number
    apart       without the requests of some suites

The activations that come with the material go along. Nothing is asked of a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from care.defenses.material import CLASSES, Material
from care.diagnosis.activation_means import spread
from care.errors import FitError


def thinned(material: Material, most: int) -> Material:
    """At most `most` requests of each class, evenly spaced, with their activations."""
    return material.part(
        {name: spread(range(len(getattr(material, name))), most) for name in CLASSES},
    )


def apart(material: Material, without: Sequence[str]) -> Material:
    """The material without requests of these suites.

    FitError where it holds none of one of them, or where nothing is left of a class.
    """
    there = {e.suite for name in CLASSES for e, _ in getattr(material, name)}
    if missing := [name for name in without if name not in there]:
        raise FitError(
            f"Nothing that is fitted on is of the suite {missing[0]}, so it can't be left out; its "
            "row is for the small world's suites."
        )
    return material.part(
        {
            name: [n for n, (e, _) in enumerate(getattr(material, name)) if e.suite not in without]
            for name in CLASSES
        },
    )


def drawn(material: Material, most: int, number: int, seed: int = 0) -> Material:
    """As `thinned` of number 0; of others a draw of `most` requests of each class by both seeds."""
    if number == 0:
        return thinned(material, most)
    rng = np.random.default_rng([seed, number])
    counts = {name: len(getattr(material, name)) for name in CLASSES}
    return material.part(
        {
            name: sorted(rng.permutation(count)[: min(most, count)].tolist())
            for name, count in counts.items()
        },
    )
