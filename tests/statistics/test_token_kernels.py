"""Token scores against the written-out formulas, by hand on three tokens, and on planted tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care.errors import FitError, UsageError
from care.statistics.token_kernels import (
    cross_scores,
    release_scores,
    self_scores,
    sink_mask,
    standardised,
)

LINE = np.array([[0.0], [1.0], [3.0]])
"""Three tokens whose squared distances are 1, 4 and 9; their median is 4."""


def _tokens(n: int, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width))


def unit(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.min()) / (scores.max() - scores.min())


def centring(n: int) -> np.ndarray:
    return np.eye(n) - np.ones((n, n)) / n


# -- by hand ---------------------------------------------------------------------------------------


def test_three_text_tokens_by_hand() -> None:
    near, middle, far = np.exp([-1 / 4, -1.0, -9 / 4])
    kernel = np.array([[1, near, far], [near, 1, middle], [far, middle, 1]])
    centred = centring(3) @ kernel @ centring(3)
    np.testing.assert_allclose(self_scores(LINE), unit((centred**2).sum(axis=1)), atol=1e-12)
    assert self_scores(LINE).argmax() == 2
    assert self_scores(LINE)[1] == 0.0


def test_three_visual_tokens_against_two_words_by_hand() -> None:
    """D = [[0, 4], [1, 1], [9, 1]], median 1; a row (a, b) of K has the energy (a − b)² / 2."""
    words = np.array([[0.0], [2.0]])
    energies = np.array([1 - np.exp(-4), 0.0, np.exp(-9) - np.exp(-1)]) ** 2 / 2
    np.testing.assert_allclose(cross_scores(LINE, words), unit(energies), atol=1e-12)


def test_three_tokens_of_the_release_by_hand() -> None:
    near, middle, far = np.exp([-1 / 4, -1.0, -9 / 4])
    kernel = np.array([[1, near, far], [near, 1, middle], [far, middle, 1]])
    inert = np.abs(np.diagonal(centring(3) @ kernel @ centring(3)))
    distances = np.array([1 + 9, 1 + 4, 9 + 4]) / 3
    np.testing.assert_allclose(
        release_scores(LINE), unit(0.7 * distances + 0.3 * inert), atol=1e-12
    )


@settings(deadline=None)
@given(v=st.integers(2, 9), t=st.integers(2, 9), seed=st.integers(0, 99))
def test_scores_equal_the_formula_with_the_centring_matrix(v: int, t: int, seed: int) -> None:
    visual, text = _tokens(v, 5, seed), _tokens(t, 5, seed + 100)
    squared = ((visual[:, None] - text[None]) ** 2).sum(-1)
    kernel = np.exp(-squared / np.median(squared))
    energies = ((kernel @ centring(t)) ** 2).sum(axis=1)
    np.testing.assert_allclose(cross_scores(visual, text), unit(energies), atol=1e-9)


# -- what the release's score is ------------------------------------------------------------------


@pytest.mark.parametrize("massive", [0.0, 60.0])
def test_in_the_release_the_kernel_is_inert_and_the_furthest_token_wins(massive: float) -> None:
    """Activations as in a language model: width 576, a few units a channel, one massive token."""
    tokens = 2.0 * _tokens(40, 576)
    tokens[7] *= 1.0 + massive / 10
    tokens[7, 3] += 100 * massive
    distances = ((tokens[:, None] - tokens[None]) ** 2).sum(-1).mean(axis=1)
    assert distances.min() > 1000  # beside a kernel term of at most 0.3
    np.testing.assert_allclose(release_scores(tokens), unit(distances), atol=5e-3)
    assert (np.argsort(release_scores(tokens))[-8:] == np.argsort(distances)[-8:]).all()
    if massive:
        assert release_scores(tokens)[7] == 1.0
        assert np.sort(release_scores(tokens))[-2] < 0.01


# -- properties ------------------------------------------------------------------------------------


def test_a_visual_token_that_repeats_a_word_stands_out() -> None:
    text = _tokens(6, seed=1)
    visual = _tokens(20)
    visual[13] = text[2]
    assert cross_scores(visual, text).argmax() == 13
    assert cross_scores(*standardised(visual, text)).argmax() == 13


def test_a_massive_channel_decides_nothing_once_tokens_are_standardised() -> None:
    text = _tokens(6, seed=1)
    visual = _tokens(20)
    visual[13] = text[2]
    visual[:, 0] *= 1000.0
    text[:, 0] *= 1000.0
    assert cross_scores(*standardised(visual, text)).argmax() == 13
    raw = cross_scores(visual, text)
    alone = cross_scores(visual[:, :1], text[:, :1])
    np.testing.assert_allclose(raw, alone, atol=1e-3)


def test_standardised_groups_share_a_spread_and_have_unit_length() -> None:
    first, second = _tokens(7, 4), 3 * _tokens(5, 4, seed=1) + 2
    ours, theirs = standardised(first, second)
    scale = np.sqrt((7 * first.var(axis=0) + 5 * second.var(axis=0)) / 12)
    expected = (second - second.mean(axis=0)) / scale
    np.testing.assert_allclose(
        theirs, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0)
    still = np.column_stack([np.zeros(4), np.arange(4.0)])
    assert np.isfinite(standardised(still)[0]).all()


@settings(max_examples=30, deadline=None)
@given(v=st.integers(1, 15), t=st.integers(2, 15), seed=st.integers(0, 99))
def test_scores_lie_in_the_unit_interval_and_follow_permutations(v: int, t: int, seed: int) -> None:
    visual, text = _tokens(v, seed=seed), _tokens(t, seed=seed + 100)
    order = np.random.default_rng(seed).permutation(v)
    scores = cross_scores(visual, text)
    assert scores.shape == (v,)
    assert scores.min() >= 0.0
    assert scores.max() <= 1.0
    np.testing.assert_allclose(cross_scores(visual[order], text), scores[order], atol=1e-8)
    turn = np.random.default_rng(seed).permutation(t)
    for scorer in (self_scores, release_scores):
        np.testing.assert_allclose(scorer(text[turn]), scorer(text)[turn], atol=1e-8)


def test_equal_tokens_score_zero() -> None:
    same = np.ones((4, 3))
    assert cross_scores(same, same).tolist() == [0.0] * 4
    assert self_scores(same).tolist() == [0.0] * 4
    assert release_scores(same).tolist() == [0.0] * 4


def test_sinks_are_found() -> None:
    tokens = _tokens(12)
    tokens[[0, 5]] *= 40.0
    assert np.flatnonzero(sink_mask(tokens)).tolist() == [0, 5]
    with pytest.raises(UsageError, match="factor"):
        sink_mask(tokens, factor=1.0)


def test_bad_input() -> None:
    with pytest.raises(FitError, match="at least 2 text tokens"):
        cross_scores(_tokens(3), _tokens(1))
    with pytest.raises(FitError, match="width 32 and text tokens 5"):
        cross_scores(_tokens(3), _tokens(3, width=5))
    with pytest.raises(FitError, match="NaN"):
        self_scores(np.full((3, 2), np.nan))
    with pytest.raises(FitError, match="at least 2 text tokens"):
        release_scores(_tokens(1))
