"""HiddenDetect: its score against the logits that transformers gives, and its gate by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from care.defenses.rivals import hiddendetect
from care.defenses.rivals.hiddendetect import HiddenDetect
from care.errors import FitError, ModelError, UsageError
from care.models.responses import REFUSAL
from kit import fits, tiny
from kit.scripted import Scripted

TOKENS = [9, 17, 40]


@torch.no_grad()
def test_the_score_is_the_area_under_the_cosines(vlm):
    """Layer by layer through the model's own norm and head; the last is its logits themselves."""
    examples = fits.asked("e", 2, "benign", True, 0)
    found = hiddendetect.refusal_areas(vlm, examples, [1, 2, 3], TOKENS)
    r = torch.zeros(vlm.model.get_output_embeddings().out_features)
    r[TOKENS] = 1
    for example, area in zip(examples, found, strict=True):
        output = vlm.model(**vlm.batch(example).inputs, output_hidden_states=True)
        inner = [
            vlm.model.get_output_embeddings()(vlm.model.get_decoder().norm(h[0, -1]))
            for h in output.hidden_states[2:4]
        ]
        f = [torch.cosine_similarity(z, r, dim=0).item() for z in [*inner, output.logits[0, -1]]]
        assert area == pytest.approx((f[0] + f[1]) / 2 + (f[1] + f[2]) / 2, abs=1e-5)


def headed(norm):
    """A model of which only the norm of that name and the head are there, the identity both."""
    head = torch.nn.Linear(3, 3, bias=False)
    head.weight.data = torch.eye(3)
    decoder = SimpleNamespace(**{norm: head})
    return SimpleNamespace(
        model=SimpleNamespace(get_output_embeddings=lambda: head),
        anatomy=SimpleNamespace(decoder=decoder),
        dtype=torch.float32,
        name="headed",
    )


@pytest.mark.parametrize("norm", ["norm", "embedding_norm"])
def test_the_cosine_is_that_of_one_coordinate(norm):
    """With the identity as norm and head, logits are the activations: by hand."""
    rows = np.array([[3.0, 4.0, 0.0], [0.0, -1.0, 0.0]], dtype=np.float32)
    expected = [[0.6, 0.0], [7 / (5 * 2**0.5), -1 / 2**0.5]]
    for tokens, cosines in zip(([0], [0, 1]), expected, strict=True):
        found = hiddendetect.nearness(headed(norm), rows, tokens)
        np.testing.assert_allclose(found, cosines, atol=1e-6)


def test_at_most_the_share_of_benign_requests_is_refused(vlm, monkeypatch):
    scores = np.arange(20) / 20
    monkeypatch.setattr(hiddendetect, "refusal_areas", lambda vlm, examples, *_: scores)
    benign = fits.asked("b", 20, "benign", False, 0)
    for share in (0.0, 0.05, 0.1, 0.5):
        found = HiddenDetect.fit(vlm, [], benign, false_alarms=share)
        assert (scores > found.threshold).mean() <= share
        assert (scores >= found.threshold).mean() > share
    assert found.layers == (2, 3) and found.tokens


def test_what_is_opened_is_refused_without_the_model(monkeypatch):
    gate = HiddenDetect(layers=(1, 2), tokens=(3,), threshold=0.5)
    found = np.array([0.4, 0.6, 0.5])
    monkeypatch.setattr(hiddendetect, "refusal_areas", lambda *_: found)
    vlm = Scripted(lambda example: "yes")
    answers = gate.answer(vlm, tiny.mixed_examples(3))
    assert [(a.text, a.source) for a in answers] == [
        ("yes", "model"),
        (REFUSAL, "refusal"),
        ("yes", "model"),
    ]
    assert len(vlm.asked[0]) == 2


def test_settings_that_mean_nothing_are_one_sentence(vlm):
    with pytest.raises(UsageError, match="two layers or more"):
        HiddenDetect(layers=(1,), tokens=(3,), threshold=0.5)
    with pytest.raises(UsageError, match="false_alarms"):
        HiddenDetect.fit(vlm, [], fits.asked("b", 1, "benign", False, 0), false_alarms=1.0)


def test_a_model_of_too_few_layers_is_one_sentence():
    """Of three layers the last quarter is one."""
    vlm = SimpleNamespace(anatomy=SimpleNamespace(n_layers=3), name="short")
    with pytest.raises(FitError, match=r"depths \(0.75, 1.0\) are a single one of the 3 layers"):
        HiddenDetect.fit(vlm, [], fits.asked("b", 1, "benign", False, 0), depths=(0.75, 1.0))


def test_a_model_without_a_final_norm_is_one_sentence():
    with pytest.raises(ModelError, match="no final norm"):
        hiddendetect.nearness(headed("other"), np.zeros((1, 3), np.float32), [1])
