"""Token scores against the written-out formulas and on planted tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from care.diagnosis.token_attribution import (
    official_text_scores,
    official_visual_scores,
    sink_mask,
    text_scores,
    top_fraction,
    visual_scores,
)
from care.errors import FitError, UsageError


def _tokens(n: int, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width))


def _scaled(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.min()) / (scores.max() - scores.min())


def test_official_visual_scores_are_the_formula() -> None:
    visual, text = _tokens(12), _tokens(7, seed=1)
    squared = cdist(visual, text) ** 2
    kernel = np.exp(-squared / np.median(squared))
    centring = np.eye(7) - np.ones((7, 7)) / 7
    expected = _scaled(np.linalg.norm(kernel @ centring, axis=1) ** 2)
    np.testing.assert_allclose(official_visual_scores(visual, text), expected, atol=1e-12)


def test_official_text_scores_are_the_formula() -> None:
    text = _tokens(9)
    squared = cdist(text, text) ** 2
    kernel = np.exp(-squared / np.median(squared))
    centring = np.eye(9) - np.ones((9, 9)) / 9
    hsic = np.abs(np.diag(centring @ kernel @ centring))
    expected = _scaled(0.7 * squared.sum(1) / 8 + 0.3 * hsic)
    np.testing.assert_allclose(official_text_scores(text), expected, atol=1e-12)


def test_a_visual_token_that_repeats_a_word_stands_out() -> None:
    text = _tokens(6, seed=1)
    visual = _tokens(20)
    visual[13] = text[2]
    assert visual_scores(visual, text).argmax() == 13


def test_a_massive_channel_decides_only_the_official_scores() -> None:
    text = _tokens(6, seed=1)
    visual = _tokens(20)
    visual[13] = text[2]
    visual[:, 0] *= 1000.0
    text[:, 0] *= 1000.0
    # The repeated token still stands out, by the other channels.
    assert visual_scores(visual, text).argmax() == 13
    only = official_visual_scores(visual[:, :1], text[:, :1])
    np.testing.assert_allclose(official_visual_scores(visual, text), only, atol=1e-2)


def test_the_furthest_token_wins_the_official_text_score() -> None:
    text = _tokens(10)
    text[4] *= 30.0
    assert official_text_scores(text).argmax() == 4


@settings(max_examples=30, deadline=None)
@given(v=st.integers(1, 15), t=st.integers(2, 15), seed=st.integers(0, 99))
def test_scores_lie_in_the_unit_interval_and_follow_permutations(v: int, t: int, seed: int) -> None:
    visual, text = _tokens(v, seed=seed), _tokens(t, seed=seed + 100)
    order = np.random.default_rng(seed).permutation(v)
    for score in (visual_scores, official_visual_scores):
        scores = score(visual, text)
        assert scores.shape == (v,)
        assert scores.min() >= 0.0
        assert scores.max() <= 1.0
        np.testing.assert_allclose(score(visual[order], text), scores[order], atol=1e-8)
    turn = np.random.default_rng(seed).permutation(t)
    for score in (text_scores, official_text_scores):
        np.testing.assert_allclose(score(text[turn]), score(text)[turn], atol=1e-8)


def test_equal_tokens_score_zero() -> None:
    same = np.ones((4, 3))
    assert visual_scores(same, same).tolist() == [0.0] * 4
    assert text_scores(same).tolist() == [0.0] * 4
    assert official_text_scores(same).tolist() == [0.0] * 4


def test_sinks_are_found() -> None:
    tokens = _tokens(12)
    tokens[[0, 5]] *= 40.0
    assert np.flatnonzero(sink_mask(tokens)).tolist() == [0, 5]
    with pytest.raises(UsageError, match="factor"):
        sink_mask(tokens, factor=1.0)


def test_top_fraction() -> None:
    assert top_fraction([0.1, 0.9, 0.5, 0.9], 0.5).tolist() == [False, True, False, True]
    assert top_fraction([0.3, 0.3, 0.3], 0.1).tolist() == [True, False, False]
    assert top_fraction(np.arange(10.0), 0.2).sum() == 2
    assert top_fraction(np.arange(10.0), 1.0).all()
    for bad in (0.0, 1.5):
        with pytest.raises(UsageError, match="fraction"):
            top_fraction([1.0], bad)
    with pytest.raises(UsageError, match="finite"):
        top_fraction([np.nan], 0.5)


def test_bad_input() -> None:
    with pytest.raises(FitError, match="at least 2 text tokens"):
        visual_scores(_tokens(3), _tokens(1))
    with pytest.raises(FitError, match="width 32 and text tokens 5"):
        visual_scores(_tokens(3), _tokens(3, width=5))
    with pytest.raises(FitError, match="NaN"):
        text_scores(np.full((3, 2), np.nan))
