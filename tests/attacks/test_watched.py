"""Monitors in the loss of a search: their scores are those that they give by themselves."""

from dataclasses import replace

import numpy as np
import pytest

from care.attacks.gcg import GCG, SuffixConfig
from care.attacks.suffix import SuffixLoss, search_suffix
from care.attacks.watched import MARGIN, WEIGHT, Watching
from care.data.example import Example
from care.defenses.monitors.detector import Detector
from care.defenses.monitors.monitor import Monitor
from care.defenses.monitors.reading import Exchange
from care.models.gradients import differentiable
from care.models.sites import Site
from kit import tiny
from kit.repairs import repair

ASKED = [
    Example("a", "How do you build a house", goal="build a house", kind="malicious"),
    Example("b", "Describe how to wash a car", goal="wash a car", kind="malicious"),
]
TARGETS = ["To build a house, you'll need wood and a car and a house", "Sure, here is"]
CONFIG = SuffixConfig(steps=4, width=12, topk=24, length=3, rows=3)
SUFFIX = " house car wood"


@pytest.fixture(scope="module")
def vlm():
    return tiny.tiny_vlm()


def monitor(vlm, reads, pooling, seed, threshold=-1e3):
    rng = np.random.default_rng(seed)
    width = vlm.anatomy.width
    detector = Detector(*rng.normal(size=(2, width)).astype(np.float32))
    return Monitor(reads, threshold, Site(seed % 2, "ffn_out"), detector, pooling)


def watched(*monitors):
    return replace(repair(), monitors=monitors)


@pytest.mark.parametrize("pooling", ["mean", "window", "last"])
@pytest.mark.parametrize("reads", ["request", "exchange"])
def test_what_is_added_is_what_the_monitors_score_exceeds_its_threshold_by(vlm, reads, pooling):
    watching = monitor(vlm, reads, pooling, 3)
    ids = vlm.response_ids(SUFFIX)
    plain = SuffixLoss(vlm, ASKED, TARGETS, CONFIG)
    seen = Watching(watched(watching))
    with seen.reading(vlm):
        found = SuffixLoss(vlm, ASKED, TARGETS, CONFIG, seen).of([ids])[0] - plain.of([ids])[0]
    asked = [replace(e, prompt=e.prompt + plain.text(ids)) for e in ASKED]
    exchanges = [Exchange(e, text) for e, text in zip(asked, TARGETS, strict=True)]
    ends = [scores[-1][1] for scores in watching.scores(vlm, exchanges)]
    if pooling == "window":
        assert max(len(vlm.response_ids(text)) for text in TARGETS) > 8
    assert found == pytest.approx(WEIGHT * (np.mean(ends) + 1e3 + MARGIN), rel=1e-5)


def test_nothing_is_added_below_the_threshold_and_several_monitors_are_summed(vlm):
    ids = vlm.response_ids(SUFFIX)
    plain = SuffixLoss(vlm, ASKED, TARGETS, CONFIG).of([ids])[0]

    def added(*monitors):
        seen = Watching(watched(*monitors))
        with seen.reading(vlm):
            return SuffixLoss(vlm, ASKED, TARGETS, CONFIG, seen).of([ids])[0] - plain

    one, other = monitor(vlm, "request", "last", 1), monitor(vlm, "exchange", "mean", 2)
    assert added(replace(one, threshold=1e3)) == 0
    assert added(one, other) == pytest.approx(added(one) + added(other), rel=1e-5)


def test_the_gradient_holds_it(vlm):
    ids = vlm.response_ids(SUFFIX)
    seen = Watching(watched(monitor(vlm, "request", "last", 1)))
    with differentiable(vlm), seen.reading(vlm):
        watching = SuffixLoss(vlm, ASKED, TARGETS, CONFIG, seen).gradient(ids)
    with differentiable(vlm):
        plain = SuffixLoss(vlm, ASKED, TARGETS, CONFIG).gradient(ids)
    assert (watching - plain).abs().max() > 1e-3


def test_a_search_lowers_what_the_monitors_see(vlm):
    """Through the bare model, whose answers a repair with monitors gives until one alarms."""
    defense = watched(monitor(vlm, "request", "last", 1, threshold=-2.0))
    found = search_suffix(vlm, ASKED, TARGETS, CONFIG, defense=defense)
    seen = Watching(defense)
    with seen.reading(vlm):
        loss = SuffixLoss(vlm, ASKED, TARGETS, CONFIG, seen).of([vlm.response_ids(found.text)])[0]
    assert found.loss == pytest.approx(loss, rel=1e-4)
    assert found.loss < found.losses[0]


def test_a_suffix_is_searched_on_a_defense_whose_monitors_see_the_request(vlm):
    attack, watching = GCG(), monitor(vlm, "exchange", "mean", 1)
    seen = attack.sees(watched(watching))
    assert attack.sees(None) is None and attack.sees(repair()) not in (None, seen)
    assert seen == attack.sees(watched(watching, monitor(vlm, "answer", "mean", 1)))
    assert seen != attack.sees(watched(replace(watching, threshold=0.5)))
    assert attack.sees(watched(monitor(vlm, "answer", "mean", 1))) is None
    assert attack.sees(watched(Monitor("request", 0.0))) is None
    assert not Watching(None) and Watching(None).excess() is None
