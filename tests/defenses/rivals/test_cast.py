"""CAST: its condition and threshold by hand, its vectors where components are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from care.defenses.rivals.cast import Cast, best_threshold, leading, likeness
from care.models.sites import Role
from kit import fits, tiny


def test_the_likeness_is_the_cosine_with_the_squashed_projection():
    c = np.array([0.6, 0.8])
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [-3.0, -4.0]])
    squashed = np.tanh(0.6 * c)
    expected = [squashed[0] / np.linalg.norm(squashed), 0.0]
    np.testing.assert_allclose(likeness(rows, c)[:2], expected, atol=1e-12)
    far = np.tanh(-5 * c)
    assert likeness(rows, c)[2] == pytest.approx(
        rows[2] @ far / (5 * np.linalg.norm(far)), abs=1e-12
    )


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        ([3.0, 4.0], [1.0, 2.0], (1.0, 2.5, True)),
        ([1.0, 2.0], [3.0, 4.0], (1.0, 2.5, False)),
        ([3.0, 1.0], [2.0, 0.0], (0.8, 0.5, True)),  # both found and one false: 4 / (2 + 3)
    ],
)
def test_the_threshold_has_the_best_f1(positive, negative, expected):
    assert best_threshold(np.array(positive), np.array(negative)) == pytest.approx(expected)


def test_the_leading_component_points_to_the_first_class():
    rng = np.random.default_rng(0)
    first, second = (0.1 * rng.standard_normal((9, 4)) + side * np.eye(4)[2] for side in (5, -5))
    assert leading(first, second)[2] == pytest.approx(1, abs=0.01)
    assert leading(second, first)[2] == pytest.approx(-1, abs=0.01)


def test_it_acts_where_the_condition_holds(vlm):
    """The threshold lies between two requests: one changes and the other doesn't."""
    examples, how = tiny.mixed_examples(2), {"max_new_tokens": 4}
    rng = np.random.default_rng(0)
    condition = rng.standard_normal(tiny.WIDTH)
    made = {
        "layers": (2,),
        "direction": 9 * rng.standard_normal((1, tiny.WIDTH)),
        "condition": condition[None] / np.linalg.norm(condition),
        "condition_layer": 0,
    }
    values = []
    for example in examples:
        batch = vlm.batch(example)
        states = vlm.model(**batch.inputs, output_hidden_states=True).hidden_states[1][0]
        values.append(states[batch.roles[0] == Role.TEXT].mean(0).detach().numpy())
    scores = likeness(np.array(values), made["condition"][0])
    threshold = float(scores.mean())
    for above in (True, False):
        defense = Cast(**made, threshold=threshold, above=above)
        expected = (scores > threshold) == above
        assert defense.opened(vlm, examples, 2).tolist() == expected.tolist()
        found, bare = defense.answer(vlm, examples, **how), vlm.answers(examples, **how)
        assert [f != b for f, b in zip(found, bare, strict=True)] == expected.tolist()
    assert (
        not Cast(**made, threshold=threshold, above=True, strength=0.0)
        .opened(vlm, examples, 2)
        .any()
    )


def test_the_behaviour_is_the_component_of_paired_answers(vlm):
    """For one request, whose pair is a line: half of the difference of the two answers."""
    material = fits.material(1, 0)
    found = Cast.fit(vlm, [], [], material=material, depths=(0.5, 0.5))
    [(example, said)], means = material.complied, []
    for answer in (material.refusing[0], said):
        batch = vlm.batch(example, answer)
        states = vlm.model(**batch.inputs, output_hidden_states=True).hidden_states[2][0]
        means.append(states[-len(vlm.response_ids(answer)) :].mean(0).detach().numpy())
    np.testing.assert_allclose(found.direction[0], (means[0] - means[1]) / 2, atol=1e-4)
    h = torch.zeros(1, 1, tiny.WIDTH)
    torch.testing.assert_close(
        found.with_strength(2.0).moved(h, 0)[0, 0], 2 * torch.from_numpy(found.direction[0])
    )
    assert found.condition_layer <= 1 and np.linalg.norm(found.condition) == pytest.approx(1)
