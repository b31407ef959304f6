"""The sign-flip test against closed forms, by properties, and under the null hypothesis."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from care.statistics.sign_flips import exact_sign_flip_p, sign_flip_p


def test_sign_flips_against_the_closed_form():
    goals = 6
    p = sign_flip_p(np.ones((goals, 1)), resamples=40_000)
    assert p[0] == pytest.approx(2 / 2**goals, rel=0.1)  # all signs equal, either way
    balanced = np.array([1.0, -1.0, 1.0, -1.0])[:, None]
    assert sign_flip_p(balanced)[0] == 1.0
    assert sign_flip_p(np.zeros((4, 2))).tolist() == [1.0, 1.0]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.floats(0.1, 10))
def test_sign_flips_are_blind_to_sign_and_scale(values, scale):
    sums = np.array(values)[:, None]
    p = sign_flip_p(sums, 200)
    assert 0 < p[0] <= 1
    assert sign_flip_p(-sums, 200)[0] == p[0]
    assert sign_flip_p(scale * np.array([[3.0], [1.0]]), 200)[0] == sign_flip_p(
        np.array([[3.0], [1.0]]), 200
    )


def test_the_null_hypothesis_is_kept():
    """Of neurons without an effect, about one in twenty has p below 0.05."""
    sums = np.random.default_rng(0).standard_normal((12, 2000))
    assert (sign_flip_p(sums, 500) < 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_drawn_and_exact_agree():
    sums = np.random.default_rng(1).standard_normal(10) + 0.4
    drawn = sign_flip_p(sums[:, None], 40_000)[0]
    assert drawn == pytest.approx(exact_sign_flip_p(sums, np.random.default_rng(0)), abs=0.01)


def test_sums_that_are_equal_but_for_rounding_count_as_equal():
    sums = np.array([0.1, 0.2, -0.3, 0.7])
    p = exact_sign_flip_p(sums, np.random.default_rng(0))
    for scale in (1e-9, 1.0, 1e9):
        assert exact_sign_flip_p(scale * sums, np.random.default_rng(0)) == p
