"""Difference of means, against the hidden states that transformers itself gives."""

from __future__ import annotations

import numpy as np
import torch

from care.defenses.material import Material
from care.defenses.rivals.difference_of_means import DifferenceOfMeans
from care.models.hooks import read
from care.models.sites import Site
from kit import fits, tiny


def over_answer(vlm, example, answer, layer):
    """h̄ (D,) over the answer, by `output_hidden_states` of one row."""
    batch = vlm.batch(example, answer)
    count = len(vlm.response_ids(answer))
    hidden = vlm.model(**batch.inputs, output_hidden_states=True).hidden_states[layer + 1]
    return hidden[0, -count:].mean(dim=0).detach().numpy()


def test_the_direction_is_that_of_refusing_over_complying_answers(vlm):
    complied = [
        (e, f"Sure, {i} ways.") for i, e in enumerate(fits.asked("a", 3, "malicious", False, 0))
    ]
    refused = [
        (e, a)
        for e, a in zip(
            fits.asked("b", 2, "malicious", True, 0), ("I'm sorry.", "No."), strict=True
        )
    ]
    answered = [(e, "Yes.") for e in fits.asked("c", 2, "benign", False, 0)]
    material = Material(tuple(complied), tuple(refused), tuple(answered))
    found = DifferenceOfMeans.fit(vlm, [], [], material=material, depth=0.5, strength=2.0)
    assert found.layers == (1,)
    refusals = ["I'm sorry.", "No.", "I'm sorry."]
    expected = np.mean(
        [
            over_answer(vlm, e, refusal, 1) - over_answer(vlm, e, said, 1)
            for (e, said), refusal in zip(complied, refusals, strict=True)
        ],
        axis=0,
    )
    np.testing.assert_allclose(found.direction[0], expected, atol=1e-5)


def test_it_is_added_from_the_last_token_of_the_prompt_on(vlm):
    rows = np.random.default_rng(0).standard_normal((1, tiny.WIDTH)).astype(np.float32)
    defense = DifferenceOfMeans(layers=(2,), strength=3.0, direction=rows)
    site, batch = Site(2, "layer_out"), vlm.batch(tiny.mixed_examples(2), ["No.", "No, I can't."])
    with read(vlm, [site]) as before, defense.applied(vlm), read(vlm, [site]) as after:
        vlm.forward(batch)
    moved = after[site][0] - before[site][0]
    for row, answer in enumerate(("No.", "No, I can't.")):
        count = len(vlm.response_ids(answer)) + 1
        expected = torch.from_numpy(3.0 * rows).expand(count, -1)
        torch.testing.assert_close(moved[row, -count:], expected, atol=1e-5, rtol=1e-5)
        assert not moved[row, :-count].any()
    assert defense.touches == "decision"
