"""Controls of monitors: random directions that alarm as often, and a monitor that sees pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from care.data.example import Example
from care.defenses.controls import (
    HARMLESS,
    harmless_answers,
    random_discriminants,
    seeing_control,
    shuffled_labels,
)
from care.defenses.material import CLASSES, KINDS
from care.defenses.monitors.choosing import labelled_answer, labelled_request
from care.defenses.monitors.detector import Detector
from care.defenses.monitors.monitor import Monitor
from care.defenses.monitors.reading import Exchange
from care.defenses.repair.repair import Repair
from care.errors import FitError, UsageError
from care.models.sites import Site
from kit import fits
from kit.repairs import repair
from kit.tiny import WIDTH, picture

WORDS = ("wash a car", "build a house", "describe the image", "gather water", "explain wood")


def watched(threshold=0.7, alarmed=0.2):
    rng = np.random.default_rng(0)
    parts = (rng.standard_normal(WIDTH).astype(np.float32) for _ in range(2))
    detector, site, share = Detector(*parts), Site(1, "layer_out"), {"benign": alarmed}
    monitors = (
        Monitor("request", threshold, site, detector, "last", share),
        Monitor("exchange", threshold, site, detector, "window", share),
    )
    return replace(repair(0), monitors=(*monitors, Monitor("answer", 0.0)))


def harmless(n=20):
    examples = [
        Example(f"{kind}{i}", f"{WORDS[i % 5]} {kind} {i}", (), suite=kind)
        for kind in ("benign", "vqa")
        for i in range(n)
    ]
    return [labelled_answer(e, f"You begin with {e.prompt}, and then.", False) for e in examples]


def test_thresholds_are_set_by_some_answers_of_each_suite():
    """At most so many, evenly spread; the kind is the suite."""
    examples = [Example(f"{s}{i}", f"{s} {i}", suite=s) for s, n in (("a", 100), ("b", 3))
                for i in range(n)]  # fmt: skip
    found = harmless_answers([(example, "Yes.") for example in examples])
    asked = {s: [e.exchange.request.id for e in found if e.kind == s] for s in ("a", "b")}
    assert asked["a"] == [f"a{i}" for i in range(0, 100, 3)] and len(asked["a"]) <= HARMLESS
    assert asked["b"] == ["b0", "b1", "b2"] and not any(each.harmful for each in found)


def test_random_directions_alarm_as_often_as_the_monitors_did(vlm):
    """At the share of the worst kind, in every kind; the scale is the monitors' own."""
    told = harmless()
    control = random_discriminants(vlm, watched(), told, seed=1)
    assert [m.reads for m in control.monitors] == ["request", "exchange"]
    for monitor, own in zip(control.monitors, watched().monitors, strict=False):
        assert (monitor.site, monitor.pooling, monitor.threshold) == (own.site, own.pooling, 0.7)
        assert monitor.detector is not None and own.detector is not None
        found = monitor.scores(vlm, [each.exchange for each in told])
        highest = np.array([max(score for _, score in each) for each in found])
        kinds = np.array([each.kind for each in told])
        above = {kind: (highest[kinds == kind] > 0.7 + 1e-4).mean() for kind in ("benign", "vqa")}
        assert max(above.values()) == pytest.approx(0.2, abs=0.051)
        assert monitor.alarmed == pytest.approx(above, abs=0.051)
        means = [highest[kinds == kind].mean() for kind in above]
        assert np.mean(means) == pytest.approx(0, abs=1e-2)
        cosine = own.detector.direction @ monitor.detector.direction
        cosine /= np.linalg.norm(own.detector.direction) * np.linalg.norm(
            monitor.detector.direction
        )
        assert abs(cosine) < 0.6
    again, other = (random_discriminants(vlm, watched(), told, seed=s) for s in (1, 2))
    assert again.digest() == control.digest() != other.digest()
    assert [c.site for c in control.channels] == list(repair(0).sites)


def test_there_is_no_random_direction_without_a_discriminant_or_text(vlm):
    with pytest.raises(UsageError, match="no monitor with a discriminant"):
        random_discriminants(vlm, repair(0), harmless(2))
    bare = [labelled_answer(Example("p", "", (picture(),), suite="benign"), "", False)]
    with pytest.raises(FitError, match="no harmless request"):
        random_discriminants(vlm, watched(), bare)


def test_a_control_reads_the_request_beside_its_picture(vlm, tmp_path):
    control = seeing_control(watched(threshold=-1e3))
    request, exchange, answer = control.monitors
    assert [m.with_picture for m in control.monitors] == [True, False, False]
    assert exchange is not request and answer.detector is None
    shown = [Exchange(Example(f"{i}", "Do it.", (picture(i, (28, 28)),))) for i in range(3)]
    seen = [scores[0][1] for scores in request.scores(vlm, shown)]
    blind = [scores[0][1] for scores in watched().monitors[0].scores(vlm, shown)]
    assert len(set(seen)) == 3 and len(set(blind)) == 1
    alarms = [alarm for alarm in request.alarms(vlm, shown) if alarm]
    assert [(alarm.monitor, alarm.tokens) for alarm in alarms] == [("pictured", 0)] * 3
    folder = control.save(tmp_path / "control")
    assert Repair.load(folder).digest() == control.digest()
    assert Repair.load(folder).monitors[0].with_picture
    with pytest.raises(UsageError, match="no discriminant of requests"):
        seeing_control(repair(0))
    with pytest.raises(UsageError, match="a request alone is read"):
        replace(exchange, with_picture=True)


def test_shuffled_labels_deal_the_same_requests_out_anew():
    told = fits.material(3, 3)
    sizes = [len(getattr(told, name)) for name in CLASSES]
    places = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    site = Site(1, "layer_out")
    told = replace(told, decisions={site: tuple(part[:, None] for part in places)})
    found = shuffled_labels(told, seed=1)
    assert [len(getattr(found, name)) for name in CLASSES] == sizes
    before = [each for name in CLASSES for each in getattr(told, name)]
    for name, kind, part, rows in zip(CLASSES, KINDS, places, found.decisions[site], strict=True):
        dealt = [before[place] for place in rows[:, 0]]
        assert [(replace(e, kind=kind), said) for e, said in dealt] == list(getattr(found, name))
        assert set(rows[:, 0]) != set(part)
        # What a monitor of requests is told is the class that it was dealt to, too.
        labelled = [labelled_request(e) for e, _ in getattr(found, name)]
        assert {each.harmful for each in labelled if each} == {kind == "malicious"}
    after = [each for name in CLASSES for each in getattr(found, name)]
    assert sorted(e.id for e, _ in after) == sorted(e.id for e, _ in before)
    assert shuffled_labels(told, seed=1) == found != shuffled_labels(told, seed=2)


def test_shuffled_material_keeps_sizes_and_each_request_its_activations() -> None:
    found = fits.material()
    site = Site(2, "layer_out")
    sizes = [len(getattr(found, name)) for name in CLASSES]
    rows = np.split(np.arange(sum(sizes))[:, None], np.cumsum(sizes)[:-1])
    mixed = shuffled_labels(replace(found, decisions={site: tuple(rows)}), [0, 3, 1])
    pooled = [each for name in CLASSES for each in getattr(found, name)]
    assert mixed.complied != found.complied
    for name, kind, part, size in zip(CLASSES, KINDS, mixed.decisions[site], sizes, strict=True):
        dealt = [pooled[place] for place in part[:, 0]]
        assert getattr(mixed, name) == tuple((replace(e, kind=kind), said) for e, said in dealt)
        assert len(part) == size
    kept = {(e.id, said) for name in CLASSES for e, said in getattr(mixed, name)}
    assert kept == {(e.id, said) for e, said in pooled}
