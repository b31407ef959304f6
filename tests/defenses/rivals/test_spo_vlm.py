"""SPO-VLM: vectors of sources and the loss by hand, refinement by what it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from care.defenses.rivals.spo_vlm import (
    Preference,
    SpoVlm,
    by_source,
    preference_loss,
    preferences,
    refined,
)
from care.errors import FitError
from care.models.sites import Site
from kit import fits, tiny


def test_each_source_counts_once():
    complied = np.array([[2.0, 0.0], [4.0, 0.0], [0.0, 9.0]])
    refused = np.array([[1.0, 1.0]])
    found = by_source(complied, refused, ["a", "a", "b"])
    np.testing.assert_allclose(found, [1 - 1.5, 1 - 4.5])


def test_the_loss_is_that_of_the_gain_of_the_preferred_over_the_rejected():
    steered, bare = torch.tensor([[-1.0], [-5.0]]), torch.tensor([[-3.0], [-4.0]])
    expected = -np.log(1 / (1 + np.exp(-0.5 * (2.0 + 1.0))))
    assert preference_loss(steered, bare, 0.5).item() == pytest.approx(expected)
    assert preference_loss(bare, bare, 0.5).item() == pytest.approx(np.log(2))


def test_attacks_prefer_refusals_and_benign_requests_their_answers():
    material = fits.material(1, 1)
    found = preferences(material)
    refusal, said = "I'm sorry, but no.", "To do it, you'll need"
    assert found[0] == Preference(material.complied[0][0], refusal, said)
    assert found[-1] == Preference(material.answered[-1][0], said, refusal)
    assert len(found) == len(material.complied) + len(material.answered)


def test_refinement_lowers_the_loss_and_leaves_the_model(vlm):
    pairs = preferences(fits.material(2, 2))[:4]
    site = Site(1, "layer_out")
    start = np.random.default_rng(0).standard_normal((1, tiny.WIDTH))
    weights = {key: value.clone() for key, value in vlm.model.state_dict().items()}
    found = refined(vlm, pairs, [site], start, 1.0, 12, 0.1, 0.1, 0)
    assert all(torch.equal(weights[k], v) for k, v in vlm.model.state_dict().items())

    def loss(vectors):
        def scores():
            asked = [pair.example for pair in pairs]
            sides = ([p.preferred for p in pairs], [p.rejected for p in pairs])
            return torch.tensor(np.array([vlm.score(asked, side).logprob for side in sides]))

        bare = scores()
        with SpoVlm(layers=(1,), strength=1.0, direction=vectors).applied(vlm):
            return preference_loss(scores(), bare, 0.1).item()

    assert loss(found) < loss(start) - 0.05


def test_without_steps_the_vectors_are_those_of_the_first_stage(vlm):
    material = fits.material(2, 3)
    found = SpoVlm.fit(vlm, [], [], material=material, depths=(0.5, 0.5), steps=0)
    complied, refused = (
        np.array([fits.last_hidden(vlm, e, 1) for e, _ in part])
        for part in (material.complied, material.refused)
    )
    expected = by_source(complied, refused, [e.suite for e, _ in material.complied])
    np.testing.assert_allclose(found.direction[0], expected, atol=1e-4)
    h = torch.zeros(1, 1, tiny.WIDTH)
    torch.testing.assert_close(found.moved(h, 0)[0, 0], 0.25 * torch.from_numpy(found.direction[0]))


def test_a_loss_that_is_no_number_is_told(vlm):
    pairs = preferences(fits.material(1, 1))[:1]
    start = np.ones((1, tiny.WIDTH))
    with pytest.raises(FitError, match="loss is nan after 1 steps; train at a lower rate than inf"):
        refined(vlm, pairs, [Site(1, "layer_out")], start, 1.0, 2, np.inf, 0.1, 0)
