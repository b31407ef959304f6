"""Circuit breakers: its losses by hand, and what training on them does."""

from __future__ import annotations

import pytest
import torch

from care.defenses.low_rank import adapters
from care.defenses.rivals.circuit_breakers import (
    CircuitBreakers,
    activations,
    coefficients,
    moved,
    rerouted,
)
from care.models.hooks import read
from care.models.sites import Site
from kit import fits


def test_the_weights_of_the_losses_go_from_one_to_the_other():
    assert coefficients(0, 100, 10.0) == (10.0, 0.0)
    assert coefficients(50, 100, 10.0) == (7.5, 2.5)
    assert coefficients(100, 100, 10.0) == (5.0, 5.0)


def test_the_losses_by_hand():
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    after = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [4.0, 3.0]])
    assert rerouted(before, after).item() == pytest.approx((1 + 0 + 24 / 25) / 3)
    assert moved(before, after).item() == pytest.approx((1 + 2 + 2**0.5) / 3)


@pytest.mark.slow
def test_complying_is_turned_away_and_the_rest_stays(vlm):
    told = fits.material(2, 2)
    found = CircuitBreakers.fit(
        vlm, [], [], material=told, steps=25, rate=1e-2, rank=4, alpha=8.0, batch_size=8
    )
    assert len(found.modules) == 3 * 7  # layers 0 to 2, the output of 2 being at depth 20 of 32

    def states(pairs, scope):
        batch = vlm.batch([e for e, _ in pairs], [said for _, said in pairs])
        site = Site(2, "layer_out")
        with read(vlm, [site], (scope,)) as before:
            vlm.forward(batch)
        with found.applied(vlm), read(vlm, [site], (scope,)) as after:
            vlm.forward(batch)
        return before.rows(site), after.rows(site)

    away = rerouted(*states(told.complied, "response")).item()
    assert away < 0.85 < 0.98 < rerouted(*states(told.answered, "all")).item()


def test_activations_are_those_of_the_tokens_in_scope(vlm):
    pairs = [*fits.material(1, 0).complied, fits.material(1, 0).refused[0]]
    sites = [Site(0, "layer_out"), Site(2, "layer_out")]
    with adapters(vlm, [0, 1, 2], 2, 2.0, seed=0) as trained:
        before, after = activations(vlm, trained, pairs, sites, "response")
        count = sum(len(vlm.response_ids(said)) for _, said in pairs)
        assert before.shape == (2 * count, 32) and torch.equal(before, after)
        assert after.requires_grad and not before.requires_grad
