"""Moments against numpy and scikit-learn, and merging against the whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.covariance import oas as sklearn_oas

from care.errors import FitError
from care.statistics.moments import Moments, as_rows, ledoit_wolf, oas
from kit.refusals import refusals


def _rows(n: int, width: int, seed: int = 0, offset: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return offset + rng.standard_normal((n, width)) * np.linspace(0.1, 4.0, width)


def _same(left: Moments, right: Moments) -> None:
    assert left.n_ == right.n_
    np.testing.assert_allclose(left.mean_, right.mean_, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(left.covariance(), right.covariance(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(left.spread(), right.spread(), rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    width=st.integers(2, 9),
    limits=st.lists(st.integers(0, 90), min_size=6, max_size=6),
    seed=st.integers(0, 1000),
)
def test_merged_shards_equal_the_whole(sizes, width, limits, seed):
    rows = _rows(sum(sizes) + 2, width, seed, offset=50.0)
    whole = Moments(width).fit(rows)
    merged = Moments(width, max_rows=limits[0]).fit(rows[:2])
    start = 2
    for size, limit in zip(sizes, limits, strict=False):
        merged.merge(Moments(width, max_rows=limit).fit(rows[start : start + size]))
        start += size
    _same(merged, whole)


@pytest.mark.parametrize("max_rows", [0, 10, 10_000])
def test_batches_equal_numpy(max_rows):
    rows = _rows(2500, 7)
    moments = Moments(7, max_rows=max_rows)
    for batch in np.array_split(rows, 9):
        moments.partial_fit(batch)
    np.testing.assert_allclose(moments.mean_, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance(), np.cov(rows.T, bias=True), rtol=1e-10)
    assert (moments.rows_ is None) == (max_rows < 2500)


@pytest.mark.parametrize(("n", "width"), [(20, 50), (200, 12)])
@pytest.mark.parametrize("max_rows", [0, 1000])
def test_shrinkage_equals_scikit_learn(n, width, max_rows):
    rows = _rows(n, width)
    spread = Moments(width, max_rows=max_rows).fit(rows).spread()
    assert ledoit_wolf(spread) == pytest.approx(ledoit_wolf_shrinkage(rows), rel=1e-9)
    assert oas(spread) == pytest.approx(sklearn_oas(rows)[1], rel=1e-9)


def test_shrinkage_of_constant_rows_is_total():
    spread = Moments(4).fit(np.ones((5, 4))).spread()
    assert ledoit_wolf(spread) == 1.0
    assert oas(spread) == 1.0


@pytest.mark.parametrize("max_rows", [0, 100])
def test_round_trip_through_arrays(max_rows):
    moments = Moments(6, max_rows=max_rows).fit(_rows(20, 6))
    restored = Moments.from_dict(moments.to_dict())
    _same(restored, moments)
    assert restored.max_rows == max_rows
    empty = Moments.from_dict(Moments(6).to_dict())
    assert empty.n_ == 0
    with pytest.raises(FitError, match="incomplete"):
        Moments.from_dict({"sizes": np.array([6, 100, 20])})
    arrays = moments.to_dict()
    arrays["sizes"] = np.array([5, max_rows, 20])
    with pytest.raises(FitError):
        Moments.from_dict(arrays)


def test_takes_low_precision_tensors_and_copies_buffers():
    buffer = torch.ones(4, 3, dtype=torch.bfloat16, requires_grad=True)
    assert Moments(3).fit(buffer).mean_.tolist() == [1.0, 1.0, 1.0]
    reused = np.zeros((4, 3))
    moments = Moments(3).fit(reused)
    reused[:] = 7.0
    assert moments.mean_.tolist() == [0.0, 0.0, 0.0]


def test_a_far_mean_loses_no_precision():
    rows = _rows(300, 5)
    near, far = Moments(5, max_rows=0), Moments(5, max_rows=0)
    for batch in np.array_split(rows, 10):
        near.partial_fit(batch)
        far.partial_fit(batch + 1e6)
    np.testing.assert_allclose(far.covariance(), near.covariance(), rtol=1e-6)


SPOILT = _rows(5, 4)
SPOILT[1, 2], SPOILT[3, :2] = np.nan, np.inf

test_bad_input_is_named = refusals(
    (FitError, "1 NaN and 2 infinite entries in 2 of 5 rows", lambda: Moments(4).fit(SPOILT)),
    (FitError, "width 3 for moments of width 4", lambda: Moments(4).fit(np.ones((2, 3)))),
    (FitError, "width 3 for moments of width 4", lambda: Moments(4).merge(Moments(3))),
    (FitError, r"shape \(4,\)", lambda: as_rows(np.ones(4))),
    (FitError, "no rows", lambda: Moments(4).covariance()),
    (FitError, "width >= 1", lambda: Moments(0)),
)


def test_a_refused_batch_leaves_the_moments_alone():
    moments = Moments(4).fit(_rows(5, 4))
    with pytest.raises(FitError):
        moments.partial_fit(np.full((1, 4), np.nan))
    assert moments.n_ == 5


def test_an_empty_one_takes_the_sums_of_another_and_gives_nothing() -> None:
    whole = Moments(3, max_rows=4).fit(_rows(9, 3))  # folded
    taken = Moments(3, max_rows=4).merge(whole)
    _same(taken, whole)
    _same(whole.merge(Moments(3, max_rows=4)), taken)
    whole.partial_fit(_rows(2, 3, seed=1))
    assert (taken.n_, whole.n_) == (9, 11)  # what was taken was copied


def test_saved_moments_whose_count_is_another_are_refused() -> None:
    saved = Moments(3).fit(_rows(5, 3)).to_dict()
    saved["sizes"] = np.array([3, 2048, 6])
    with pytest.raises(FitError, match="hold 5 rows, not 6"):
        Moments.from_dict(saved)
