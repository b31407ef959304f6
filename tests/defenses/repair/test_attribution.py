"""Attributed tokens: which are chosen, and that nothing else decides it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from care.defenses.activations import pool
from care.defenses.repair.attribution import AttributionConfig, attributed
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.fitting_data import activations
from care.defenses.repair.presets import PRESETS
from care.errors import FitError, UsageError
from care.models.hooks import read
from care.models.sites import Role, Site
from care.statistics.token_kernels import (
    cross_scores,
    release_scores,
    self_scores,
    sink_mask,
    standardised,
)
from kit import tiny
from kit.fits import material

PAD, TEXT, IMAGE, RESPONSE = (
    int(role) for role in (Role.PAD, Role.TEXT, Role.IMAGE, Role.RESPONSE)
)
SITE = Site(2, "ffn_out")
ROW = [TEXT] * 2 + [IMAGE] * 9 + [TEXT] * 6 + [RESPONSE] * 7
RELEASE = AttributionConfig(text_score="release")


def drawn(roles, seed=0, width=6):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(1, len(roles), width, generator=rng), torch.tensor([roles])


def by_hand(h, roles, modality, config):
    """The oracle, for one row: scores of its tokens, sorted, and the mean of the greatest."""
    x, role = h[0].double().numpy(), roles[0].numpy()
    answer, pictured = np.flatnonzero(role == RESPONSE), np.flatnonzero(role == IMAGE)
    if modality == "image":
        places, share = pictured, config.visual_share
        scores = cross_scores(x[places], x[role == TEXT])
    else:
        share = config.text_share
        after = pictured.max(initial=-1)
        worded = [p for p, r in enumerate(role) if r in (TEXT, RESPONSE) and p > after]
        released = config.text_score == "release"
        places = np.array(worded) if released or not len(answer) else answer
        scores = (release_scores if released else self_scores)(x[places])
    count = max(1, int(share * len(places)))
    best = sorted(range(len(places)), key=lambda k: (-scores[k], k))[:count]
    return x[places[best]].mean(axis=0)


CONFIGS = [
    AttributionConfig(),
    AttributionConfig(visual_share=0.5, text_share=0.5),
    RELEASE,
    AttributionConfig(text_score="release", text_share=0.6),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("roles", [ROW, ROW[:17]], ids=["answered", "asked"])
@given(seed=st.integers(0, 999))
@settings(deadline=None)
def test_a_row_is_the_mean_of_its_tokens_of_the_greatest_scores(roles, modality, config, seed):
    h, roles = drawn(roles, seed)
    found = attributed(h, roles, modality, config)
    np.testing.assert_allclose(found[0], by_hand(h, roles, modality, config), atol=1e-6)


def test_of_nine_visual_tokens_an_eighth_is_one_and_of_seven_words_a_fifth_is_one():
    h, roles = drawn(ROW)
    x = h[0].numpy()
    image, text = (
        attributed(h, roles, m, AttributionConfig())[0].numpy() for m in ("image", "text")
    )
    assert (x[2:11] == image).all(axis=1).sum() == 1
    assert (x[17:] == text).all(axis=1).sum() == 1


def test_the_release_takes_tokens_of_the_request_after_the_picture_and_of_the_answer():
    h, roles = drawn(ROW)
    everything = replace(RELEASE, text_share=1.0)
    found = attributed(h, roles, "text", everything)
    torch.testing.assert_close(found[0], h[0, 11:].mean(0))
    h, roles = drawn([TEXT] * 4 + [RESPONSE] * 3)
    torch.testing.assert_close(attributed(h, roles, "text", everything)[0], h[0].mean(0))


def test_in_the_release_the_token_furthest_off_wins():
    h, roles = drawn(ROW)
    h[0, 13] += 50.0
    count = int(0.2 * 13)
    found = attributed(h, roles, "text", RELEASE)[0]
    assert (found * count - h[0, 13]).abs().max() < 5  # it is one of the two
    standard = replace(RELEASE, standardise=True)
    assert (attributed(h, roles, "text", standard)[0] * count - h[0, 13]).abs().max() > 5


@given(seed=st.integers(0, 999), pads=st.integers(0, 5), left=st.booleans())
@settings(deadline=None)
def test_padding_on_either_side_changes_nothing_whatever_is_in_it(seed, pads, left):
    h, roles = drawn(ROW, seed)
    noise, nothing = drawn([PAD] * pads, seed + 1)
    noise = 1000 * noise
    parts = [(noise, nothing), (h, roles)] if left else [(h, roles), (noise, nothing)]
    padded, marked = (torch.cat([part[i] for part in parts], dim=1) for i in (0, 1))
    for config in (AttributionConfig(), RELEASE, AttributionConfig(standardise=True)):
        for modality in ("image", "text"):
            expected = attributed(h, roles, modality, config)
            assert torch.equal(attributed(padded, marked, modality, config), expected)


@pytest.mark.parametrize(("modality", "scope"), [("image", "image"), ("text", "response")])
def test_a_share_of_one_is_no_attribution(modality, scope):
    h, roles = drawn(ROW)
    everything = AttributionConfig(visual_share=1.0, text_share=1.0)
    found = attributed(h, roles, modality, everything)
    torch.testing.assert_close(found, pool(h, roles, scope))


def test_one_token_is_taken_as_it_is_and_equal_ones_in_order():
    h, roles = drawn([IMAGE, TEXT, RESPONSE])
    assert torch.equal(attributed(h, roles, "text", AttributionConfig()), h[:, 2])
    assert torch.equal(attributed(h, roles, "image", AttributionConfig()), h[:, 0])
    h, roles = drawn([TEXT, RESPONSE, RESPONSE])  # two tokens are as far from each other
    assert torch.equal(attributed(h, roles, "text", AttributionConfig(text_share=0.5)), h[:, 1])


def test_standardised_tokens_are_scored_as_in_the_report():
    h, roles = drawn(ROW, seed=4)
    h[0, 12] *= 40.0
    h[..., 0] *= 1000.0
    config = AttributionConfig(visual_share=0.3, text_share=0.3, standardise=True)
    x = h[0].numpy()
    words = x[roles[0] == TEXT]
    scores = cross_scores(*standardised(x[2:11], words[~sink_mask(words)]))
    best = np.argsort(-scores, kind="stable")[:2]
    expected = x[2:11][best].mean(axis=0)
    np.testing.assert_allclose(attributed(h, roles, "image", config)[0], expected, rtol=1e-5)


def test_sinks_are_never_attributed_once_tokens_are_standardised():
    h, roles = drawn([TEXT] + [RESPONSE] * 10)
    h[0, 4] *= 100.0
    config = AttributionConfig(text_share=0.9, standardise=True)
    expected = (h[0, 1:].sum(0) - h[0, 4]) / 9
    torch.testing.assert_close(attributed(h, roles, "text", config)[0], expected)


def test_a_row_without_tokens_of_the_modality_and_shares_out_of_range_are_refused():
    h, roles = drawn([TEXT, TEXT])
    with pytest.raises(FitError, match="no image token"):
        attributed(h, roles, "image", AttributionConfig())
    with pytest.raises(UsageError, match=r"visual_share must lie in \(0, 1\], got 0"):
        AttributionConfig(visual_share=0)
    with pytest.raises(UsageError, match="text_share must lie"):
        AttributionConfig(text_share=1.5)
    with pytest.raises(UsageError, match="text_score must be kernel or release, got 'hsic'"):
        AttributionConfig(text_score="hsic")


# -- in a fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_rows_of_a_fit_dont_depend_on_the_batch(vlm, preset):
    config, found = PRESETS[preset].attribution, material(4, 4).complied
    pictured = [answered for answered in found if answered[0].images]
    for scope, part in (("image", pictured), ("response", found)):
        one, many = (activations(vlm, part, [SITE], scope, size, config) for size in (1, 5))
        np.testing.assert_allclose(one[SITE], many[SITE], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_the_presets_take_moments_of_attributed_tokens(vlm, preset):
    """The rows of a fit against a bare hook on one example."""
    config = PRESETS[preset]
    small = replace(config, subspace=replace(config.subspace, rank=2, ridge=1e-2))
    fitter = Fitter(vlm, material(), small, batch_size=8)
    channels = {c.modality: c for c in fitter.repair([SITE]).channels}
    source = Site(2, config.fit_kind or "ffn_out")
    rows = []
    for example, _ in fitter.material.answered:
        if example.images:
            with read(vlm, [source]) as recorder:
                vlm.forward(vlm.batch([example]))
            rows.append(by_hand(*recorder[source], "image", config.attribution))
    expected = np.mean(rows, axis=0)
    np.testing.assert_allclose(channels["image"].subspace.mean, expected, atol=1e-3)
    everything = replace(small, attribution=None)
    plain = fitter.with_config(everything).repair([SITE])
    assert [c.modality for c in plain.channels] == ["image", "text"]
    for channel in plain.channels:
        gap = channels[channel.modality].subspace.mean - channel.subspace.mean
        assert np.abs(gap).max() > 1e-3


def test_a_gated_fit_can_be_of_attributed_tokens(vlm):
    config = replace(PRESETS["corrected"], attribution=AttributionConfig(visual_share=0.5))
    found = material()
    pictured = tuple(
        (replace(e, images=(tiny.picture(k),)), answer) if k % 2 else (e, answer)
        for k, (e, answer) in enumerate(found.refused)
    )
    fitter = Fitter(vlm, replace(found, refused=pictured), config, batch_size=5)
    site = Site(2, "layer_out")
    image, text = (fitter.classes(site, modality) for modality in ("image", "text"))
    assert list(image.benign) == ["drawn"]
    assert list(text.benign) == ["plain", "drawn"]
    assert (len(image.refused.x), len(text.refused.x)) == (7, 14)
    with read(vlm, [site]) as recorder:
        vlm.forward(vlm.batch([pictured[3][0]]))
        expected = by_hand(*recorder[site], "image", config.attribution)
    np.testing.assert_allclose(image.refused.x[1], expected, rtol=1e-3, atol=1e-4)
    assert [c.modality for c in fitter.repair([site]).channels] == ["image", "text"]
    assert fitter.repair([site]).manifest["config"]["attribution"]["visual_share"] == 0.5


def test_without_a_refused_picture_there_is_nothing_to_fit_an_image_channel_on(vlm):
    config = replace(PRESETS["corrected"], attribution=AttributionConfig())
    with pytest.raises(FitError, match="'refused' has 0 activations, and at least 4 are needed"):
        Fitter(vlm, material(), config).classes(Site(2, "layer_out"), "image")


@pytest.mark.embedded
def test_in_a_language_model_the_kernel_of_the_release_is_inert(embedded_vlm):
    """Scores with and without it are the same ranking of the residual stream's tokens."""
    site = Site(embedded_vlm.anatomy.n_layers // 2, "layer_out")
    example = replace(material().refused[0][0], prompt="How do I bake a loaf of bread with seeds?")
    batch = embedded_vlm.batch([example], ["To bake a loaf of bread, you'll need flour and water."])
    with read(embedded_vlm, [site]) as recorder:
        embedded_vlm.forward(batch, logits_to_keep=1)
        h, roles = recorder[site]
    tokens = h[0, roles[0] != PAD].double().numpy()
    distances = ((tokens[:, None] - tokens[None]) ** 2).sum(-1).mean(axis=1)
    assert 0.7 * distances.min() > 100 * 0.3
    assert (np.argsort(release_scores(tokens)) == np.argsort(distances)).all()
