"""ITI: heads against attention's own arithmetic, probes and shifts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from care.defenses.rivals import iti
from care.defenses.rivals.iti import HeadSteering, head_outputs, probed, projections, shift
from care.errors import FitError
from care.models.hooks import read
from care.models.sites import Site
from care.models.vlm import VLM
from kit import fits, tiny


def test_outputs_of_heads_make_what_attention_writes(vlm):
    """Q times the heads' outputs is the site's activation at the last token."""
    examples = fits.asked("a", 3, "malicious", True, 0)
    found = head_outputs(vlm, examples, 2)
    assert found.shape == (3, tiny.LAYERS, 4, 8)
    for layer, weight in enumerate(projections(vlm)):
        site = Site(layer, "mhsa_out")
        for row, example in enumerate(examples):
            with read(vlm, [site]) as recorder:
                vlm.forward(vlm.batch(example))
            expected = recorder[site][0][0, -1].numpy()
            made = weight.weight.detach().numpy() @ found[row, layer].ravel()
            np.testing.assert_allclose(made, expected, atol=1e-4)


def test_a_shift_is_the_mean_difference_as_long_as_the_deviation_along_it():
    refusing, complying = np.array([[4.0, 1.0], [2.0, 1.0]]), np.array([[0.0, 1.0], [-2.0, 1.0]])
    np.testing.assert_allclose(shift(refusing, complying), [np.sqrt(5), 0.0])  # of 4, 2, 0, −2
    assert not shift(refusing, refusing).any()


def test_probes_find_the_head_that_knows():
    rng = np.random.default_rng(0)
    refused, complied = rng.standard_normal((20, 2, 3, 4)), rng.standard_normal((15, 2, 3, 4))
    refused[:, 0, 0, 0] += 9
    refused[:, 1, 2, 0] += 90
    accuracy, likelihood = probed(refused, complied)
    assert accuracy.shape == likelihood.shape == (2, 3)
    assert accuracy[0, 0] == accuracy[1, 2] == 1.0 and (accuracy == 1).sum() == 2
    assert np.argmax(likelihood) == 5 and 0 > likelihood[1, 2] > likelihood[0, 0] > -0.1


def test_the_best_heads_are_shifted_and_no_others(vlm, monkeypatch):
    accuracy = np.zeros((tiny.LAYERS, 4))
    accuracy[1, 3] = accuracy[3, 0] = accuracy[0, 0] = 1.0
    likelihood = np.where(np.arange(4)[:, None] > 0, -0.1, -0.2)  # of equals the later layers
    likelihood = np.broadcast_to(likelihood, accuracy.shape)
    monkeypatch.setattr(iti, "probed", lambda *_: (accuracy, likelihood))
    material = fits.material(2, 2)
    found = HeadSteering.fit(vlm, [], [], material=material, share=2 / 16)
    assert found.layers == (1, 3)
    refused, complied = (
        head_outputs(vlm, [example for example, _ in part], 16)
        for part in (material.refused, material.complied)
    )
    for place, (layer, head) in enumerate([(1, 3), (3, 0)]):
        moved = np.zeros(32)
        moved[8 * head : 8 * head + 8] = shift(refused[:, layer, head], complied[:, layer, head])
        expected = projections(vlm)[layer].weight.detach().numpy() @ moved
        np.testing.assert_allclose(found.direction[place], expected, atol=1e-4)
    h = torch.zeros(1, 1, tiny.WIDTH)
    torch.testing.assert_close(
        found.moved(h, 1)[0, 0], 15 * torch.from_numpy(found.direction[1]), atol=1e-4, rtol=1e-5
    )


def test_a_model_whose_heads_are_normed_before_they_are_added_is_refused():
    with pytest.raises(FitError, match="no shift of a head can be told"):
        HeadSteering.fit(VLM(*tiny.tiny_gemma3()), [], [], material=fits.material(2, 2))
