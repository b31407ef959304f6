"""Controls: what refuses always, at random, and a subspace at random."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from care.data.example import Example
from care.defenses.rivals.always_refuse import AlwaysRefuse
from care.defenses.rivals.random_monitor import RandomMonitor, drawn
from care.defenses.rivals.random_subspace import RandomSubspace
from care.errors import FitError, UsageError
from care.models.responses import REFUSAL
from care.statistics.intervals import wilson
from kit import fits, tiny
from kit.scripted import Scripted

EXAMPLES = [Example(f"e{k}", "Do it.") for k in range(400)]


def test_everything_is_refused_and_nobody_asked():
    vlm, told = Scripted(lambda example: "yes"), []
    answers = AlwaysRefuse().answer(vlm, EXAMPLES[:3], progress=told.append)
    assert {(a.text, a.source) for a in answers} == {(REFUSAL, "refusal")} and len(answers) == 3
    assert told == [3] and not vlm.asked


def test_the_stated_share_is_refused_whatever_is_asked():
    vlm = Scripted(lambda example: "yes")
    refused = [a.text == REFUSAL for a in RandomMonitor(rate=0.25).answer(vlm, EXAMPLES)]
    assert wilson(sum(refused), 400).low < 0.25 < wilson(sum(refused), 400).high
    others = [Example(e.id, "Something else.") for e in EXAMPLES]
    assert [a.text == REFUSAL for a in RandomMonitor(rate=0.25).answer(vlm, others)] == refused
    again = [a.text == REFUSAL for a in RandomMonitor(rate=0.25, seed=1).answer(vlm, EXAMPLES)]
    assert again != refused
    for rate, share in ((0.0, 0), (1.0, 400)):
        found = RandomMonitor(rate=rate).answer(vlm, EXAMPLES)
        assert sum(a.text == REFUSAL for a in found) == share
    assert 0 <= drawn(0, "s", "e") < 1
    with pytest.raises(UsageError, match="rate of alarms"):
        RandomMonitor(rate=1.1)


def test_requests_of_two_suites_that_number_theirs_alike_are_drawn_apart():
    vlm, refused = Scripted(lambda example: "yes"), {}
    for suite in ("one", "two"):
        examples = [replace(e, suite=suite) for e in EXAMPLES]
        refused[suite] = [a.source for a in RandomMonitor(rate=0.5).answer(vlm, examples)]
    alike = sum(a == b for a, b in zip(refused["one"], refused["two"], strict=True))
    assert wilson(alike, 400).low < 0.5 < wilson(alike, 400).high


def test_along_its_directions_everything_becomes_the_mean_of_refusals(vlm):
    material = fits.material(2, 2)
    found = RandomSubspace.fit(vlm, [], [], material=material, rank=5, depth=0.5)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(5), atol=1e-6)
    h = torch.randn(1, 3, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    moved = found.moved(h, 0)[0].numpy()
    along = found.mean @ found.basis.T
    np.testing.assert_allclose(moved @ found.basis.T, np.repeat(along, 3, axis=0), atol=1e-5)
    apart = moved - h[0].numpy()
    np.testing.assert_allclose(apart, apart @ found.basis.T @ found.basis, atol=1e-5)
    last = [
        vlm.model(**vlm.batch(e).inputs, output_hidden_states=True).hidden_states[2][0, -1]
        for e, _ in material.refused
    ]
    expected = torch.stack(last).mean(0).detach().numpy()
    np.testing.assert_allclose(found.mean[0], expected, atol=1e-4)
    other = RandomSubspace.fit(vlm, [], [], material=material, rank=5, depth=0.5, seed=1)
    assert np.abs(other.basis - found.basis).max() > 0.1
    with pytest.raises(FitError, match="rank 33"):
        RandomSubspace.fit(vlm, [], [], material=material, rank=33)
