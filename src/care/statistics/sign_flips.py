"""The sign-flip test over goals: is a sum of effects further from 0 than chance would take it?

Under the null hypothesis the effect on a goal is as likely −e as e, so each goal's sum s_g gets a
random sign, the same for all of its examples:

    p = P( |Σ ±s_g| ≥ |Σ s_g| )

For one row of sums it is exact where that can be counted (all changes of one size, which is
McNemar's test, or few goals), and drawn otherwise; for many rows at once it is drawn.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from care.statistics.distributions import binomial_two_sided, normal_tail

Array = NDArray[np.float64]

EXACT = 14
"""Most goals with a change for which all sign flips are counted; more are drawn."""
FLIPS = 20_000
"""Sign flips drawn otherwise."""
MANY = 4000
"""Goals above which drawing is left out: the normal limits are those of a bootstrap by then."""

_ROUNDING = 1e-12
"""Share of all effects by which two sums may differ and still count as equal."""


def sign_flip_p(sums: Array, resamples: int = 2000, seed: int = 0) -> Array:
    """Two-sided p-values (M,) that effects summed per goal (G, M) are centred on 0, drawn.

    p = (1 + #{|T*| ≥ |T|}) / (1 + resamples).
    """
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(resamples, len(sums)))
    return (1 + _as_far(signs, sums).sum(axis=0)) / (1 + resamples)


def exact_sign_flip_p(sums: Array, rng: np.random.Generator) -> float:
    """Two-sided p of sums (G,); exact for changes of one size and for few goals, else drawn."""
    moved = sums[np.abs(sums) > 1e-12]
    if not len(moved):
        return 1.0
    if np.allclose(np.abs(moved), abs(moved[0])):
        fewer = int(min((moved > 0).sum(), (moved < 0).sum()))
        return binomial_two_sided(fewer, len(moved))
    if len(moved) <= EXACT:
        every = np.array(list(product((-1.0, 1.0), repeat=len(moved))))
        return float(_as_far(every, moved).mean())
    if len(moved) > MANY:
        return min(1.0, 2.0 * normal_tail(abs(moved.sum()) / np.sqrt((moved**2).sum())))
    signs = rng.integers(0, 2, size=(FLIPS, len(moved)), dtype=np.int8) * 2 - 1
    return float((1 + _as_far(signs, moved).sum()) / (1 + FLIPS))


def _as_far(signs: NDArray[np.int8] | Array, sums: Array) -> NDArray[np.bool_]:
    """Where the sums (G, …) with `signs` (R, G) are as far from 0 as without: (R, …)."""
    rounding = _ROUNDING * np.abs(sums).sum(axis=0)
    return np.abs(signs @ sums) >= np.abs(sums.sum(axis=0)) - rounding
