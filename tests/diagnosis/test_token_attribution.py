"""Token scores that a report shows: which examples, and of what they are scores."""

import numpy as np

from care.data.example import Example
from care.diagnosis.token_attribution import token_scores
from care.models.hooks import read
from care.models.sites import Role, Site
from care.statistics.token_kernels import cross_scores, self_scores, sink_mask, standardised
from kit import tiny

SITE = Site(1, "layer_out")


def made(i: int, kind: str = "malicious", pictured: bool = True) -> Example:
    images = (tiny.picture(i),) if pictured else ()
    prompt = f"how to make {i} things?"
    return Example(id=str(i), prompt=prompt, images=images, kind=kind, suite="ab"[i % 2])


def test_a_few_attacks_with_pictures_of_each_suite_are_scored(vlm) -> None:
    asked = [made(0, pictured=False), made(1, "benign"), *(made(i) for i in range(2, 9))]
    found = token_scores(vlm, asked, SITE)
    assert [item.example.id for item in found] == ["2", "4", "3", "5"]
    for item in found:
        high, wide = item.grid
        assert high * wide == len(item.visual_scores)
        assert len(item.tokens) == len(item.text_scores)
        assert max(item.visual_scores) == max(item.text_scores) == 1.0


def test_tokens_are_standardised_and_sinks_left_out(vlm) -> None:
    [found] = token_scores(vlm, [made(2)], SITE)
    with read(vlm, [SITE]) as recorder:
        vlm.forward(vlm.batch([made(2)]), logits_to_keep=1)
        h, roles = recorder[SITE]
    text, visual = (h[roles == role].numpy() for role in (Role.TEXT, Role.IMAGE))
    sinks = sink_mask(text)
    expected = np.zeros(len(text))
    expected[~sinks] = self_scores(*standardised(text[~sinks]))
    np.testing.assert_allclose(found.text_scores, expected, atol=1e-6)
    visual_scores = cross_scores(*standardised(visual, text[~sinks]))
    np.testing.assert_allclose(found.visual_scores, visual_scores, atol=1e-6)
