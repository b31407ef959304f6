"""Measures against the model's own likelihoods."""

import numpy as np
import pytest
import torch

from care.diagnosis.measures import first_token, refusal_contrast, refusal_log_odds
from care.diagnosis.scan import Runs
from care.errors import UsageError
from kit import tiny

EXAMPLES = tiny.mixed_examples(4)


def test_log_odds_are_those_of_the_model(vlm):
    found = Runs(vlm, EXAMPLES, first_token(refusal_log_odds(vlm))).clean
    np.testing.assert_allclose(found, vlm.refusal_log_odds(EXAMPLES), atol=1e-5)
    logits = torch.randn(3, 420, requires_grad=True)
    (grad,) = torch.autograd.grad(refusal_log_odds(vlm)(logits).sum(), [logits])
    refusing = torch.zeros(420, dtype=torch.bool)
    refusing[list(vlm.refusal_ids)] = True
    assert (grad[:, refusing] > 0).all() and (grad[:, ~refusing] < 0).all()


def test_log_odds_of_known_probabilities(vlm):
    logits = torch.full((1, 420), -torch.inf)
    refusing, other = vlm.refusal_ids[0], 0
    logits[0, refusing], logits[0, other] = np.log(0.2), np.log(0.8)
    assert float(refusal_log_odds(vlm)(logits)) == pytest.approx(np.log(0.25), rel=1e-5)


def test_the_contrast_is_that_of_likelihoods_per_token(vlm):
    refusal, compliance = "I cannot assist.", "Sure, here is how you build it from wood."
    found = Runs(vlm, EXAMPLES, refusal_contrast(vlm, refusal, compliance)).clean
    scores = [vlm.score(EXAMPLES, [text] * 4) for text in (refusal, compliance)]
    assert scores[0].tokens[0] != scores[1].tokens[0]
    np.testing.assert_allclose(found, scores[0].mean - scores[1].mean, atol=1e-4)
    turned = Runs(vlm, EXAMPLES, refusal_contrast(vlm, compliance, refusal)).clean
    np.testing.assert_allclose(found, -np.array(turned), atol=1e-4)


def test_bad_measures_are_refused(vlm):
    with pytest.raises(UsageError, match="needs tokens, got ''"):
        refusal_contrast(vlm, "")
    with pytest.raises(UsageError, match="are both"):
        refusal_contrast(vlm, "Sure.", "Sure.")
    empty = tiny.tiny_vlm()
    empty.refusal_ids = []
    with pytest.raises(UsageError, match="refusal_ids is empty"):
        refusal_log_odds(empty)
