"""AlphaSteer: its map against the paper's formula, and what it does to benign activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from care.defenses.rivals.alphasteer import AlphaSteer, null_reading
from care.errors import FitError, UsageError
from kit import fits, tiny


def test_the_map_is_that_of_the_ridge_regression_in_matrices():
    """Δ̃ P = R H_mᵀ P (P H_m H_mᵀ P + γ P)⁺ P, with R = r 1ᵀ, by a pseudo-inverse."""
    malicious, _, benign = fits.three_classes()
    share, ridge, r = 0.5, 0.1, np.arange(6.0)
    reading = null_reading(malicious, benign, share, ridge)
    vectors = np.linalg.eigh(benign.T @ benign)[1][:, :3]
    null = vectors @ vectors.T
    h = malicious.T
    gamma = ridge * np.trace(null @ h @ h.T @ null) / 3
    inverse = np.linalg.pinv(null @ h @ h.T @ null + gamma * null, rcond=1e-10)
    map_ = np.outer(r, np.ones(len(malicious))) @ h.T @ null @ inverse @ null
    np.testing.assert_allclose(np.outer(r, reading), map_, atol=1e-9)


def test_benign_activations_stay_and_malicious_ones_get_the_vector():
    """Benign activations in the first two axes, malicious ones with a third: it is read off."""
    rng = np.random.default_rng(0)
    benign = np.pad(rng.standard_normal((7, 2)), ((0, 0), (0, 2)))
    malicious = np.pad(rng.standard_normal((5, 2)), ((0, 0), (0, 2)))
    malicious[:, 2] = 2.0
    reading = null_reading(malicious, benign, 0.5, 1e-9)
    np.testing.assert_allclose(benign @ reading, 0, atol=1e-9)
    np.testing.assert_allclose(malicious @ reading, 1, atol=1e-6)
    made = AlphaSteer(layers=(0,), strength=2.0, direction=np.ones((1, 4)), reading=reading[None])
    h = torch.from_numpy(np.concatenate([benign[:1], malicious[:1]])[None]).float()
    torch.testing.assert_close(
        made.moved(h, 0) - h, torch.tensor([[[0.0] * 4, [2.0] * 4]]), atol=1e-5, rtol=0
    )


def test_each_layer_has_the_difference_of_refused_and_complied_requests(vlm):
    material = fits.material(2, 2)
    found = AlphaSteer.fit(vlm, [], [], material=material, depths=(0.25, 0.5))
    assert found.layers == (0, 1) and found.reading.shape == (2, tiny.WIDTH)
    for place, layer in enumerate(found.layers):
        refused, complied = (
            np.mean([fits.last_hidden(vlm, e, layer) for e, _ in part], axis=0)
            for part in (material.refused, material.complied)
        )
        np.testing.assert_allclose(found.direction[place], refused - complied, atol=1e-4)


def test_shares_and_activations_that_leave_nothing_are_refused(vlm):
    with pytest.raises(UsageError, match=r"share must lie in \(0, 1\], got 0"):
        AlphaSteer.fit(vlm, [], [], share=0)
    with pytest.raises(FitError, match="lie in the span of benign ones"):
        null_reading(np.eye(4)[:2], np.eye(4)[:2], 0.5, 0.1)
