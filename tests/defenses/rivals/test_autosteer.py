"""AutoSteer: its score by hand, its probe against scikit-learn, its matrix by what it does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from care.defenses.rivals.autosteer import (
    RATED_WIDTH,
    AutoSteer,
    awareness,
    probe,
    refusal_matrix,
)
from care.errors import FitError
from kit import fits, tiny


def made(**options):
    blank = {
        "matrix": np.eye(tiny.WIDTH)[None],
        "first": np.zeros((1, tiny.WIDTH)),
        "first_bias": np.zeros(1),
        "second": np.zeros(1),
        "second_bias": np.zeros(1),
    }
    return AutoSteer(**({"layers": (3,), "probe_layer": 1} | blank | options))


def test_awareness_is_the_mean_cosine_of_all_two_differences():
    harmless = np.array([[1.0, 1.0]])
    apart = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    cosines = [0.0, np.sqrt(0.5), np.sqrt(0.5)]
    assert awareness(harmless + apart, harmless) == pytest.approx(np.mean(cosines))
    assert awareness(harmless + apart[:1], harmless) == 0


def test_a_probe_is_the_network_that_was_fitted():
    complied, _, answered = fits.three_classes()
    found = made(**probe(complied, answered, 0)._asdict())
    rows = np.concatenate([complied, answered])
    harmful = found.harmful(rows)
    assert ((harmful > 0.5) == (np.arange(len(rows)) < len(complied))).mean() > 0.9
    by_hand = np.maximum(found.first @ rows[0] + found.first_bias, 0) @ found.second
    expected = 1 / (1 + np.exp(-(by_hand + found.second_bias[0])))
    assert harmful[0] == pytest.approx(expected, abs=1e-6)


def test_it_steers_where_the_probe_says_harmful(vlm):
    """The probe reads one coordinate of the last token, above that of one of two requests."""
    examples = tiny.mixed_examples(2)
    values = [float(fits.last_hidden(vlm, e, 1)[0]) for e in examples]
    middle = np.mean(values)
    found = made(
        first=np.stack([np.eye(tiny.WIDTH)[0], -np.eye(tiny.WIDTH)[0]]),
        first_bias=np.zeros(2),
        second=np.array([1.0, -1.0]),
        second_bias=np.array([-middle]),
    )
    assert found.opened(vlm, examples, 2).tolist() == [value > middle for value in values]
    assert not found.with_strength(0.0).opened(vlm, examples, 2).any()
    assert not replace(found, threshold=1.0).opened(vlm, examples, 2).any()


def test_the_matrix_is_applied_to_activations():
    h = torch.arange(4.0).reshape(1, 1, 4)
    shifted = np.roll(np.eye(4), 1, axis=1)[None]  # (W h)_i = h_(i + 1)
    found = made(matrix=shifted, strength=2.0).moved(h, 0)
    torch.testing.assert_close(found, h + 2 * torch.tensor([1.0, 2.0, 3.0, 0.0]))


def test_refusals_become_likelier_under_the_matrix_and_the_model_stays(vlm):
    material = fits.material(2, 2)
    asked = [example for example, _ in material.complied]
    weights = {key: value.clone() for key, value in vlm.model.state_dict().items()}
    matrix = refusal_matrix(vlm, material, 0.5, 10, 0.01 * tiny.WIDTH / RATED_WIDTH, 0, 16)
    before = vlm.score(asked, material.refusing).logprob
    with made(matrix=matrix[None], strength=0.5).applied(vlm):
        after = vlm.score(asked, material.refusing).logprob
    assert (after > before + 1).all()
    assert all(torch.equal(weights[k], v) for k, v in vlm.model.state_dict().items())


def test_the_first_step_goes_along_the_gradient(vlm):
    """Adam's first step is the rate against the sign of the gradient, here by differences; the rate
    falls with the width, so that ε W h beside h doesn't grow with it."""
    material = fits.material(1, 0)
    [(example, _)], [refusal] = material.complied, material.refusing
    matrix = refusal_matrix(vlm, material, 1.0, 1, 1e-3 * tiny.WIDTH / RATED_WIDTH, 0, 16)
    probe_at, step = np.unravel_index(np.argsort(-np.abs(matrix).ravel())[:1][0], (32, 32)), 1e-2
    scores = []
    for side in (1, -1):
        moved = np.zeros((32, 32))
        moved[probe_at] = side * step
        with made(matrix=moved[None], strength=1.0).applied(vlm):
            scores.append(vlm.score([example], [refusal]).logprob[0])
    assert matrix[probe_at] == pytest.approx(1e-3 * np.sign(scores[0] - scores[1]), rel=1e-2)


def test_a_loss_that_is_no_number_is_told(vlm):
    with pytest.raises(FitError, match="loss is nan after 1 steps; train at a lower rate than inf"):
        refusal_matrix(vlm, fits.material(1, 0), 1.0, 2, np.inf, 0, 16)
