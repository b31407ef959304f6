"""CMRM: its shifts against transformers' own states, for a data set and for each request."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from care.defenses.cost import Cost
from care.defenses.rivals import cmrm
from care.defenses.rivals.cmrm import Cmrm
from care.models.hooks import read
from care.models.sites import Site
from kit import fits, tiny

ANCHORS = fits.asked("a", 3, "malicious", True, 0)


def shift(vlm, example, layer):
    words, both = example.text_alone(), example
    return fits.last_hidden(vlm, words, layer) - fits.last_hidden(vlm, both, layer)


def test_the_vector_is_the_mean_shift_of_anchors(vlm):
    plain = fits.asked("b", 2, "malicious", False, 0)
    found = Cmrm.fit(vlm, [*ANCHORS, *plain], [], depths=(0.25, 0.5))
    assert found.layers == (0, 1)
    for place, layer in enumerate(found.layers):
        expected = np.mean([shift(vlm, e, layer) for e in ANCHORS], axis=0)
        np.testing.assert_allclose(found.direction[place], expected, atol=1e-4)
    h = torch.ones(1, 1, tiny.WIDTH)
    moved = found.with_strength(2.0).moved(h, 1)
    torch.testing.assert_close(moved, h + 2 * torch.from_numpy(found.direction[1]))


def test_with_itself_as_anchor_a_request_is_read_as_its_words(vlm):
    """At full strength the last token holds what the words alone would put there."""
    made = Cmrm.fit(vlm, ANCHORS, [], depths=(0.5, 0.5), anchor="request")
    site, batch = Site(1, "layer_out"), vlm.batch(ANCHORS)
    with made.shifted(vlm, ANCHORS), read(vlm, [site]) as recorder:
        vlm.forward(batch)
    expected = np.array([fits.last_hidden(vlm, e.text_alone(), 1) for e in ANCHORS])
    np.testing.assert_allclose(recorder.rows(site, ("decision",)), expected, atol=1e-4)


@pytest.mark.parametrize("anchor", ["data", "request"])
def test_only_requests_with_a_picture_change(vlm, anchor):
    made = Cmrm.fit(vlm, ANCHORS, [], anchor=anchor)
    examples, how = [*tiny.mixed_examples(4), *ANCHORS], {"max_new_tokens": 4}
    bare, found = vlm.answers(examples, **how), made.answer(vlm, examples, **how)
    same = [b.text == f.text for b, f in zip(bare, found, strict=True)]
    assert all(s for s, e in zip(same, examples, strict=True) if not e.images) and not all(same)
    assert made.answer(vlm, examples, batch_size=1, **how) == found


def test_passes_of_the_request_itself_are_declared(vlm, monkeypatch):
    made = Cmrm.fit(vlm, ANCHORS, [], anchor="request")
    passes, at_decision = [], cmrm.at_decision
    monkeypatch.setattr(cmrm, "at_decision", lambda *how: passes.append(how) or at_decision(*how))
    made.shifted(vlm, ANCHORS)
    assert made.cost == replace(Cmrm.cost, forwards=len(passes)) and len(passes) == 2
    assert replace(made, anchor="data").cost == Cmrm.cost == Cost(needs=Cmrm.cost.needs)
