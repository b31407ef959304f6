"""The refusal direction: what candidates are, what ablation does, and which one is chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from care.defenses.rivals import refusal_direction
from care.defenses.rivals.refusal_direction import (
    Choosing,
    RefusalDirection,
    ablated,
    differences,
    divergence,
    template_tokens,
)
from care.errors import FitError
from care.models.hooks import read
from care.models.sites import Site
from kit import fits, tiny


def test_candidates_are_differences_at_the_last_tokens_of_the_template(vlm):
    harmful, harmless = (fits.asked(name, 2, "malicious", False, 0) for name in ("a", "b"))
    assert template_tokens(vlm) == 2  # <|end|> and <|assistant|>
    rows = differences(vlm, harmful, harmless, [Site(1, "layer_out")])[Site(1, "layer_out")]
    assert rows.shape == (2, tiny.WIDTH)
    first, second = (
        np.mean([fits.last_hidden(vlm, e, 1) for e in part], axis=0) for part in (harmful, harmless)
    )
    np.testing.assert_allclose(rows[-1], first - second, atol=1e-5)


def test_ablation_leaves_nothing_along_the_direction_in_the_residual_stream(vlm, batch):
    r = np.random.default_rng(0).standard_normal(tiny.WIDTH)
    sites = [*vlm.anatomy.sites("layer_out"), *vlm.anatomy.sites("mhsa_out")]
    with ablated(vlm, r), read(vlm, sites) as recorder:
        vlm.forward(batch)
    for site in sites:
        along = recorder.rows(site) @ torch.from_numpy(r).float()
        assert along.abs().max() < 1e-4 * np.linalg.norm(r)


def test_the_divergence_is_that_of_two_coins():
    one, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert divergence(one, other) == pytest.approx(expected, abs=1e-6)
    assert divergence(one, one) == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_what_decides_is_the_refusal_that_is_left(vlm, seed):
    """Each figure again by hand: ablation by projecting, addition at one layer."""
    harmful, harmless = (fits.asked(name, 3, "malicious", False, 0) for name in ("a", "b"))
    r = np.random.default_rng(seed).standard_normal(tiny.WIDTH)
    site, free = Site(1, "layer_out"), (np.inf, -np.inf)
    with ablated(vlm, r):
        left = vlm.refusal_log_odds(harmful).mean()
        apart = torch.stack([vlm.forward(vlm.batch(e))[0, -1] for e in harmless]).log_softmax(-1)
    bare = torch.stack([vlm.forward(vlm.batch(e))[0, -1] for e in harmless]).log_softmax(-1)
    found = divergence(bare, apart)
    with RefusalDirection(layers=(1,), direction=r[None]).applied(vlm):
        induced = vlm.refusal_log_odds(harmless).mean()

    def chosen(divergence, least):
        return Choosing(vlm, harmful, harmless, 2, divergence, least).left(site, r)

    assert chosen(*free) == pytest.approx(left, abs=1e-4)
    assert chosen(found + 1e-3, induced - 1e-3) is not None
    assert chosen(found - 1e-3, induced - 1e-3) is None
    assert chosen(found + 1e-3, induced + 1e-3) is None
    assert Choosing(vlm, harmful, harmless, 2, *free).left(site, 0 * r) is None


def test_the_candidate_with_the_least_refusal_left_is_taken(vlm, monkeypatch):
    def left(self, site, r):
        return {0: 3.0, 1: -1.0, 2: -2.0, 3: -9.0}[site.layer] if site.layer != 2 else None

    monkeypatch.setattr(refusal_direction.Choosing, "left", left)
    found = RefusalDirection.fit(vlm, [], [], material=fits.material(2, 2))
    assert found.layers == (3,) and found.position == -2  # of equals the first
    monkeypatch.setattr(refusal_direction, "DEPTH", 0.5)
    assert RefusalDirection.fit(vlm, [], [], material=fits.material(2, 2)).layers == (1,)


def test_no_candidate_is_told(vlm):
    with pytest.raises(FitError, match="none of 8 directions induces refusals"):
        RefusalDirection.fit(vlm, [], [], material=fits.material(2, 2), most_divergence=0.0)


def test_it_is_added_at_every_token(vlm, batch):
    made, site = RefusalDirection(layers=(2,), direction=np.ones((1, 32))), Site(2, "layer_out")
    with read(vlm, [site]) as before, made.with_strength(2.0).applied(vlm), read(vlm, [site]) as a:
        vlm.forward(batch)
    moved = a.rows(site) - before.rows(site)
    torch.testing.assert_close(moved, torch.full_like(moved, 2.0), atol=1e-4, rtol=0)
    assert made.touches == "prompt"
