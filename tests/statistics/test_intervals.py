"""Intervals and paired tests against scipy, tables and closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from care.errors import UsageError
from care.statistics.intervals import Interval, difference, holm, mcnemar_exact, wilson
from kit.refusals import refusals


@given(n=st.integers(1, 400), share=st.floats(0, 1), level=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy(n, share, level):
    k = round(share * n)
    ours, theirs = wilson(k, n, level), binomtest(k, n).proportion_ci(level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.low <= ours.rate <= ours.high
    assert ours.n == n


def test_wilson_at_the_ends():
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0


@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_equals_the_binomial_test(pairs):
    before, after = (np.array([pair[i] for pair in pairs], dtype=bool) for i in (0, 1))
    result = mcnemar_exact(before, after)
    assert result.b == sum(x and not y for x, y in pairs)
    assert result.c == sum(y and not x for x, y in pairs)
    discordant = result.b + result.c
    expected = binomtest(result.b, discordant).pvalue if discordant else 1.0
    assert result.p == pytest.approx(expected, rel=1e-9)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, then made monotone.
    adjusted = holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])
    assert holm([]).shape == (0,)
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_raw_and_bonferroni(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1.0, np.array(p) * len(p)) + 1e-15).all()


def test_limits_of_a_difference_are_recovered_from_its_parts():
    first, second = Interval(0.6, 0.5, 0.8, 20), Interval(0.1, 0.05, 0.3, 30)
    found = difference(first, second)
    assert found.rate == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5 - np.hypot(0.1, 0.2))
    assert found.high == pytest.approx(0.5 + np.hypot(0.2, 0.05))
    assert found.n == 20


test_wrong_use = refusals(
    (UsageError, "0 <= k <= n", lambda: wilson(1, 0)),
    (UsageError, "0 <= k <= n", lambda: wilson(-1, 5)),
    (UsageError, "0 <= k <= n", lambda: wilson(6, 5)),
    (UsageError, "level", lambda: wilson(1, 2, level=1.0)),
    (UsageError, "one length", lambda: mcnemar_exact([True], [True, False])),
    (UsageError, "P-values", lambda: holm([1.2])),
)
