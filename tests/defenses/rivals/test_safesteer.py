"""SafeSteer: its subspace and gate, solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from care.defenses.rivals.safesteer import SafeSteer, subspace_steering
from care.errors import FitError
from kit import fits


def test_vector_and_gate_where_the_subspace_is_known():
    """Differences 4 e₀ and 4 e₀ + e₁ twice; in the span of the first axes nothing is lost."""
    complied = np.zeros((2, 4))
    refused = np.array([[4.0, 1.0, 0.0, 0.0], [4.0, -1.0, 0.0, 0.0]])
    answered = np.array([[-2.0, 0.0, 5.0, 0.0]])
    direction, gate = subspace_steering(complied, refused, answered, 1)
    np.testing.assert_allclose(direction, [4.0, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(gate, [0.5, 0, 0, 0], atol=1e-12)  # 1 at 2 e₀ from the benign mean


def test_at_full_rank_it_is_the_difference_of_means():
    complied, refused, answered = fits.three_classes()
    direction, gate = subspace_steering(complied, refused, answered, 6)
    pairs = refused[np.arange(9) % 5]
    np.testing.assert_allclose(direction, (pairs - complied).mean(axis=0), atol=1e-9)
    assert gate @ (complied.mean(axis=0) - answered.mean(axis=0)) == pytest.approx(1)


def test_it_is_added_as_far_as_an_activation_looks_harmful():
    made = SafeSteer(
        layers=(0,),
        strength=2.0,
        direction=np.array([[0.0, 3.0]]),
        gate=np.array([[0.5, 0.0]]),
        harmless=np.array([[1.0, 0.0]]),
    )
    h = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [9.0, 1.0], [-5.0, 0.0]]])
    expected = torch.tensor([[[1.0, 0.0], [2.0, 3.0], [3.0, 6.0], [9.0, 7.0], [-5.0, 0.0]]])
    torch.testing.assert_close(made.moved(h, 0), expected)


def test_attacks_that_look_benign_and_too_few_of_them_are_refused(vlm):
    complied, refused, _ = fits.three_classes()
    with pytest.raises(FitError, match="same activations as benign requests"):
        subspace_steering(complied, refused, complied, 2)
    with pytest.raises(FitError, match="of which a subspace is made, number 4"):
        SafeSteer.fit(vlm, [], [], material=fits.material(2, 2))
