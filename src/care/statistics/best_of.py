"""Success of the best of n tries, from more tries than n, without bias.

Of a request with m tries of which k succeeded, n drawn without repetition hold a success with

    1 − C(m − k, n) / C(m, n)

which is unbiased for 1 − (1 − p)ⁿ where tries are independent draws (the pass@k of Chen et al.
2021, arXiv 2107.03374), and for n = m says whether any try succeeded. Its mean over requests has an
interval that resamples goals (`bootstrap`). Where a request has fewer tries than n, all are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from care.errors import UsageError
from care.statistics.bootstrap import bootstrap_mean
from care.statistics.intervals import Interval


def best_of(successes: int, tries: int, n: int) -> float:
    """Probability that n of `tries`, drawn without repetition, hold one of the `successes`.

    Raises UsageError unless 0 ≤ successes ≤ tries, and tries and n are at least 1.
    """
    if not 0 <= successes <= tries or tries < 1 or n < 1:
        raise UsageError(
            f"The best of n needs 0 <= successes <= tries and n >= 1, got {successes} of {tries} "
            f"tries and n = {n}."
        )
    n = min(n, tries)
    return 1.0 - comb(tries - successes, n) / comb(tries, n)


def mean_best_of(
    successes: Sequence[int],
    tries: Sequence[int],
    goals: Sequence[str],
    n: int,
    seed: int = 0,
) -> Interval:
    """Mean of `best_of` over requests, with 95 % limits that resample `goals`, one for each.

    Raises UsageError for fewer than two goals, which say nothing of the spread.
    """
    values = [best_of(k, m, n) for k, m in zip(successes, tries, strict=True)]
    return bootstrap_mean(values, goals, seed=seed)
