"""VLM-Guard: its directions where a decomposition is known, and its projection."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from care.defenses.rivals.vlm_guard import VlmGuard, safety_directions
from care.errors import FitError
from kit import fits, tiny


def test_directions_are_those_of_a_known_decomposition():
    """D = diag(3, 1) Qᵀ has the singular vectors Q, and harmless rows are taken in turn."""
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 2)))[0].T
    harmless = np.random.default_rng(1).standard_normal((1, 5))
    found = safety_directions(np.array([[3.0], [1.0]]) * q + harmless, harmless, 1)
    assert found.shape == (1, 5) and abs(found[0] @ q[0]) == pytest.approx(1, abs=1e-9)


def test_nothing_is_left_along_the_directions():
    basis = np.eye(4)[None, :2]
    h = torch.arange(8.0).reshape(1, 2, 4)
    made = VlmGuard(layers=(0,), basis=basis)
    expected = torch.tensor([[[0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 6.0, 7.0]]])
    torch.testing.assert_close(made.moved(h, 0), expected)
    torch.testing.assert_close(made.with_strength(0.5).moved(h, 0), (h + expected) / 2)


def test_it_is_fitted_on_words_alone(vlm):
    material = fits.material(2, 2)
    found = VlmGuard.fit(vlm, [], [], material=material, depth=0.5)
    harmless = [e for e, _ in material.answered if not e.images]
    apart = [
        fits.last_hidden(vlm, e, 1) - fits.last_hidden(vlm, harmless[place % len(harmless)], 1)
        for place, (e, _) in enumerate(material.refused)
    ]
    values, vectors = np.linalg.eigh(np.transpose(apart) @ apart)
    assert values[-1] > 1.1 * values[-2]
    assert abs(found.basis[0, 0] @ vectors[:, -1]) == pytest.approx(1, abs=1e-3)
    assert found.layers == (1,) and found.basis.shape == (1, 1, tiny.WIDTH)
    with pytest.raises(FitError, match="refused requests without a picture number 14"):
        VlmGuard.fit(vlm, [], [], material=material, rank=15)
