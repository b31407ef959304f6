"""Likelihoods that gradients go through, against those that nobody descends."""

from __future__ import annotations

import numpy as np
import torch

from care.defenses.likelihood import logprobs
from care.models.gradients import differentiable
from care.models.hooks import edit
from care.models.sites import Site
from kit import tiny

ANSWERS = ["No.", "I'm sorry, but I can't."]


def test_they_are_the_scores(vlm):
    examples = tiny.mixed_examples(2)
    found, counts = logprobs(vlm, examples, ANSWERS, grad=False)
    expected = vlm.score(examples, ANSWERS)
    np.testing.assert_allclose(found, expected.logprob, atol=1e-4)
    assert counts.tolist() == [len(vlm.response_ids(answer)) for answer in ANSWERS]


def test_gradients_reach_what_edits_hold(vlm):
    shift = torch.zeros(tiny.WIDTH, requires_grad=True)
    with differentiable(vlm), edit(vlm, {Site(3, "layer_out"): lambda h, roles: h + shift}):
        logprobs(vlm, tiny.mixed_examples(2), ANSWERS)[0].sum().backward()
    assert shift.grad is not None and shift.grad.abs().max() > 0
