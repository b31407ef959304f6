"""Spearman's rank correlation against scipy's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from care.errors import UsageError
from care.statistics.correlation import rank_correlations, spearman_bootstrap
from kit.refusals import refusals


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=20))
def test_rank_correlation_is_scipys(points):
    x, y = np.array(points, dtype=float).T
    ours = rank_correlations(x[None], y[None])[0]
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(spearmanr(x, y).statistic)


def test_spearman_is_that_of_all_pairs_with_limits_about_it():
    rng = np.random.default_rng(2)
    x = rng.normal(size=40).round(1)
    y = x + rng.normal(size=40).round(1)
    interval = spearman_bootstrap(x, y)
    assert interval.rate == pytest.approx(spearmanr(x, y)[0]) and interval.n == 40
    assert interval.low < interval.rate < interval.high
    monotone = spearman_bootstrap([1, 2, 3, 4], [1, 8, 27, 64])
    assert (monotone.rate, monotone.high) == pytest.approx((1.0, 1.0))


test_wrong_use = refusals(
    (UsageError, "at least 3 pairs", lambda: spearman_bootstrap([1, 2], [1, 2])),
    (UsageError, "undefined", lambda: spearman_bootstrap([1, 1, 1], [1, 2, 3])),
)
