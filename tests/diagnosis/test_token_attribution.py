"""Token scores against the written-out formulas and on planted tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care.data.example import Example
from care.diagnosis.token_attribution import sink_mask, text_scores, token_scores, visual_scores
from care.errors import FitError, UsageError
from care.models.sites import Site
from kit import tiny


def _tokens(n: int, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width))


def test_a_visual_token_that_repeats_a_word_stands_out() -> None:
    text = _tokens(6, seed=1)
    visual = _tokens(20)
    visual[13] = text[2]
    assert visual_scores(visual, text).argmax() == 13


def test_a_massive_channel_decides_nothing() -> None:
    text = _tokens(6, seed=1)
    visual = _tokens(20)
    visual[13] = text[2]
    visual[:, 0] *= 1000.0
    text[:, 0] *= 1000.0
    assert visual_scores(visual, text).argmax() == 13


@settings(max_examples=30, deadline=None)
@given(v=st.integers(1, 15), t=st.integers(2, 15), seed=st.integers(0, 99))
def test_scores_lie_in_the_unit_interval_and_follow_permutations(v: int, t: int, seed: int) -> None:
    visual, text = _tokens(v, seed=seed), _tokens(t, seed=seed + 100)
    order = np.random.default_rng(seed).permutation(v)
    scores = visual_scores(visual, text)
    assert scores.shape == (v,)
    assert scores.min() >= 0.0
    assert scores.max() <= 1.0
    np.testing.assert_allclose(visual_scores(visual[order], text), scores[order], atol=1e-8)
    turn = np.random.default_rng(seed).permutation(t)
    np.testing.assert_allclose(text_scores(text[turn]), text_scores(text)[turn], atol=1e-8)


def test_equal_tokens_score_zero() -> None:
    same = np.ones((4, 3))
    assert visual_scores(same, same).tolist() == [0.0] * 4
    assert text_scores(same).tolist() == [0.0] * 4


def test_sinks_are_found() -> None:
    tokens = _tokens(12)
    tokens[[0, 5]] *= 40.0
    assert np.flatnonzero(sink_mask(tokens)).tolist() == [0, 5]
    with pytest.raises(UsageError, match="factor"):
        sink_mask(tokens, factor=1.0)


def test_a_few_attacks_with_pictures_of_each_suite_are_scored(vlm) -> None:
    def made(i: int, kind: str = "malicious", pictured: bool = True) -> Example:
        images = (tiny.picture(i),) if pictured else ()
        prompt = f"how to make {i} things?"
        return Example(id=str(i), prompt=prompt, images=images, kind=kind, suite="ab"[i % 2])

    asked = [made(0, pictured=False), made(1, "benign"), *(made(i) for i in range(2, 9))]
    found = token_scores(vlm, asked, Site(1, "layer_out"))
    assert [item.example.id for item in found] == ["2", "4", "3", "5"]
    for item in found:
        high, wide = item.grid
        assert high * wide == len(item.visual_scores)
        assert len(item.tokens) == len(item.text_scores)
        assert max(item.visual_scores) == max(item.text_scores) == 1.0


def test_bad_input() -> None:
    with pytest.raises(FitError, match="at least 2 text tokens"):
        visual_scores(_tokens(3), _tokens(1))
    with pytest.raises(FitError, match="width 32 and text tokens 5"):
        visual_scores(_tokens(3), _tokens(3, width=5))
    with pytest.raises(FitError, match="NaN"):
        text_scores(np.full((3, 2), np.nan))
