"""The best of n tries: against every choice of n, against draws, and its limits."""

from itertools import combinations

import numpy as np
import pytest

from care.errors import UsageError
from care.statistics.best_of import best_of, mean_best_of
from care.statistics.bootstrap import bootstrap_mean


@pytest.mark.parametrize("tries", [1, 2, 5, 7])
def test_it_is_the_share_of_choices_that_hold_a_success(tries):
    for successes in range(tries + 1):
        marks = [place < successes for place in range(tries)]
        for n in range(1, tries + 1):
            chosen = [any(each) for each in combinations(marks, n)]
            assert best_of(successes, tries, n) == pytest.approx(np.mean(chosen))
        assert best_of(successes, tries, 1) == pytest.approx(successes / tries)
        assert best_of(successes, tries, tries) == best_of(successes, tries, 99) == (successes > 0)


def test_it_is_unbiased_for_independent_draws():
    """Over every number of successes, weighted by its binomial probability."""
    p, tries = 0.2, 16
    weights = [float(np.exp(_log_binomial(tries, k, p))) for k in range(tries + 1)]
    for n in (1, 4, 16):
        mean = sum(w * best_of(k, tries, n) for k, w in enumerate(weights))
        assert mean == pytest.approx(1 - (1 - p) ** n)


def _log_binomial(n, k, p):
    from math import lgamma, log

    ways = lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
    return ways + k * log(p) + (n - k) * log(1 - p)


def test_limits_resample_goals():
    found = mean_best_of([0, 2, 4, 1], [4, 4, 4, 2], ["a", "a", "b", "c"], 2, seed=5)
    values = [0.0, 1 - 1 / 6, 1.0, 1.0]
    expected = bootstrap_mean(values, ["a", "a", "b", "c"], seed=5)
    assert found == expected and found.low < found.rate < found.high
    with pytest.raises(UsageError, match="2 groups"):
        mean_best_of([1, 1], [2, 2], ["a", "a"], 1)


@pytest.mark.parametrize("wrong", [(-1, 4, 1), (5, 4, 1), (0, 0, 1), (1, 4, 0)])
def test_what_cant_be_counted_is_refused(wrong):
    with pytest.raises(UsageError, match="best of n"):
        best_of(*wrong)
