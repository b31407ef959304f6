"""ASTRA: its Lasso against a closed form, its patches, and its edit by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from care.data.example import Example
from care.defenses.rivals import astra
from care.errors import FitError
from care.models.vlm import Score
from kit import fits, tiny


def hadamard(order: int) -> np.ndarray:
    made = np.ones((1, 1))
    while len(made) < order:
        made = np.block([[made, made], [made, -made]])
    return made


def test_scores_are_soft_thresholds_where_masks_are_orthogonal():
    """With standardised orthogonal masks X, Xᵀ X = M I, the Lasso has a closed form."""
    kept = hadamard(8)[:, 1:] > 0
    weights = np.array([3.0, -2.0, 0.005, 0.0, 1.0, 0.0, 0.0])
    y = 5.0 + (kept * 2.0 - 1.0) @ weights
    expected = np.sign(weights) * np.maximum(np.abs(weights) - astra.PENALTY, 0)
    np.testing.assert_allclose(astra.attributions(kept, y), expected, atol=1e-3)


def test_a_patch_that_is_always_kept_scores_nothing():
    kept = np.array([[True, True], [True, False], [True, True], [True, False]])
    scores = astra.attributions(kept, np.array([1.0, 0.0, 1.0, 0.0]))
    assert scores[0] == 0 and scores[1] == pytest.approx(0.5 - astra.PENALTY, abs=1e-4)


def test_log_odds_are_finite_where_a_beginning_is_certain():
    found = astra.log_odds(np.log(np.array([0.5, 0.8])))
    np.testing.assert_allclose(found, [0.0, np.log(4)], atol=1e-12)
    assert np.isfinite(astra.log_odds(np.array([0.0, -1e-12, -400.0]))).all()


def test_patches_that_are_not_kept_are_black():
    example = Example("e", "Look.", images=(tiny.picture(0, (7, 5)),))
    kept = np.array([True, False, False, True])
    pixels = np.array(astra.blackened(example, kept, 2).load_images()[0])
    before = np.array(example.load_images()[0])
    assert (pixels[:3, :4] == before[:3, :4]).all() and (pixels[3:, 4:] == before[3:, 4:]).all()
    assert not pixels[:3, 4:].any() and not pixels[3:, :4].any()


def test_the_patches_are_found_that_make_the_beginning_likely(vlm, monkeypatch):
    """The likelihood is made to depend on two of four patches, one of them against the attack."""

    def score(examples, responses, batch_size):
        assert set(responses) == {astra.BEGINNING}
        rows = [np.array(e.load_images()[0]).astype(float) for e in examples]
        lit = [[bool(r[y, x].any()) for y in (0, -1) for x in (0, -1)] for r in rows]
        odds = np.array([2.0 * corners[1] - 1.0 * corners[2] for corners in lit])
        return Score(-np.log1p(np.exp(-odds)), np.ones(len(rows)), np.zeros(len(rows), bool))

    monkeypatch.setattr(vlm, "score", score)
    example = Example("e", "Do it!", images=(tiny.picture(3, (8, 8)),), kind="malicious")
    found = astra.harmful_patches(vlm, example, 32, 2, np.random.default_rng(0))
    assert found.tolist() == [False, True, False, False]


def test_each_picture_is_taken_once():
    one, two = fits.asked("a", 2, "malicious", True, 0)
    again = Example("again", "Other words.", images=one.images)
    assert astra.pictured([one, Example("plain", "No picture."), again, two], 5) == [one, two]
    assert astra.pictured([one, two], 1) == [one]


def test_an_activation_moves_as_far_as_it_points_there():
    """By hand: v along the first axis, h₀ = (0, 1)."""
    made = astra.Astra(
        layers=(0,),
        strength=2.0,
        direction=np.array([[1.0, 0.0]]),
        calibration=np.array([[0.0, 1.0]]),
    )
    h = torch.tensor([[[3.0, 5.0], [-3.0, 5.0], [0.0, 2.0]]])
    along = 3 / 5  # of h − h₀ = (3, 4)
    expected = torch.tensor([[[3 - 2 * along * 34**0.5, 5.0], [-3.0, 5.0], [0.0, 2.0]]])
    torch.testing.assert_close(made.moved(h, 0), expected)


def test_where_no_patch_matters_there_is_nothing_to_steer(vlm, monkeypatch):
    monkeypatch.setattr(astra, "harmful_patches", lambda *_: np.zeros(4, dtype=bool))
    with pytest.raises(FitError, match="no patch of 2 pictures makes an attack work"):
        astra.Astra.fit(vlm, [], [], material=fits.material(2, 1), grid=2)


def test_the_direction_is_what_harmful_patches_add(vlm, monkeypatch):
    """Against hidden states that transformers gives for the pictures alone."""
    harmful = np.array([True, False, False, False])
    monkeypatch.setattr(astra, "harmful_patches", lambda *_: harmful)
    material = fits.material(2, 1)
    found = astra.Astra.fit(vlm, [], [], material=material, grid=2, draws=1, depth=0.5)

    def last(example):
        batch = vlm.batch(example)
        return vlm.model(**batch.inputs, output_hidden_states=True).hidden_states[2][0, -1]

    bad = [Example(e.id, "", e.images) for e, _ in material.complied if e.images]
    apart = torch.stack([last(e) - last(astra.blackened(e, ~harmful, 2)) for e in bad]).mean(0)
    expected = (apart / apart.norm()).detach().numpy()
    np.testing.assert_allclose(found.direction[0], expected, atol=1e-4)
    assert found.layers == (1,) and found.calibration.shape == (1, tiny.WIDTH)


def test_pictures_of_two_suites_with_the_same_id_are_held_against_their_own(vlm, monkeypatch):
    """`--pgd 32,64` and files that number their lines have equal ids in suites that differ."""
    harmful = np.array([True, False, False, False])
    monkeypatch.setattr(astra, "harmful_patches", lambda *_: harmful)
    material = fits.material(2, 1)
    complied = tuple(
        (replace(e, id="1", suite=f"{e.suite}-{place}"), answer)
        for place, (e, answer) in enumerate(material.complied)
    )
    how: dict[str, Any] = {"grid": 2, "draws": 1, "depth": 0.5}
    apart = astra.Astra.fit(vlm, [], [], material=material, **how)
    alike = astra.Astra.fit(vlm, [], [], material=replace(material, complied=complied), **how)
    np.testing.assert_array_equal(alike.direction, apart.direction)
