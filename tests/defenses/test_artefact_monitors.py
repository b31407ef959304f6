"""Monitors in artefacts: what is saved is read, and what makes no monitor is refused."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from care.data.example import Example
from care.defenses.artefact import digest
from care.defenses.artefact_card import card
from care.defenses.monitors.detector import Detector
from care.defenses.monitors.monitor import Monitor
from care.defenses.monitors.reading import Exchange
from care.defenses.repair.repair import Repair
from care.errors import ArtefactError, UsageError
from care.models.sites import Site
from kit import tiny
from kit.repairs import made

SITE = Site(2, "layer_out")


def monitor(reads="answer", seed=0, **options):
    rng = np.random.default_rng(seed)
    parts = (rng.standard_normal(tiny.WIDTH).astype(np.float32) for _ in range(2))
    return Monitor(reads, 0.5, SITE, Detector(*parts), alarmed={"benign": 0.02}, **options)


def watched(*monitors):
    return Repair((made(),), monitors=monitors or (monitor("request"), monitor(seed=1)))


def test_what_is_saved_is_read(tmp_path):
    repair = Repair(
        (made(),),
        monitors=(
            monitor("request"),
            monitor("exchange", 1, pooling="window"),
            Monitor("answer", 2),
        ),
    )
    read = Repair.load(repair.save(tmp_path / "r"))
    assert read.digest() == repair.digest()
    for old, new in zip(repair.monitors, read.monitors, strict=True):
        for name in ("reads", "threshold", "site", "pooling", "alarmed"):
            assert getattr(new, name) == getattr(old, name)
        if old.detector is not None:
            assert_array_equal(new.detector.direction, old.detector.direction)
            assert_array_equal(new.detector.mean, old.detector.mean)


def test_a_read_monitor_scores_as_the_saved_one(vlm, tmp_path):
    repair = watched()
    read = Repair.load(repair.save(tmp_path / "r"), vlm)
    exchanges = [Exchange(Example("a", "How do you build a house?"), "Sure, here is how.")]
    for old, new in zip(repair.monitors, read.monitors, strict=True):
        assert old.scores(vlm, exchanges) == new.scores(vlm, exchanges)


def test_a_repair_without_monitors_is_written_as_before(tmp_path):
    facts = json.loads((Repair((made(),)).save(tmp_path / "r") / "repair.json").read_text())
    assert facts["format"] == 2 and "monitors" not in facts
    facts = json.loads((watched().save(tmp_path / "w") / "repair.json").read_text())
    assert facts["format"] == 3 and len(facts["monitors"]) == 2


def test_a_repair_of_monitors_alone_is_one(tmp_path):
    alone = watched().monitors_only()
    assert Repair.load(alone.save(tmp_path / "r")).channels == ()
    with pytest.raises(UsageError, match="at least one channel or monitor"):
        Repair(())


@pytest.mark.parametrize(
    "other",
    [
        monitor(seed=2),
        replace(monitor(seed=1), threshold=0.6),
        replace(monitor(seed=1), pooling="last"),
        replace(monitor(seed=1), site=Site(1, "layer_out")),
        replace(monitor(seed=1), reads="exchange"),
    ],
)
def test_the_digest_covers_all_that_a_monitor_does(other):
    assert digest(watched(monitor("request"), other)) != digest(watched())


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (("threshold",), None, "threshold"),
        (("threshold",), "high", "threshold"),
        (("reads",), "picture", "reads"),
        (("pooling",), "median", "pooling"),
        (("site",), "2.nowhere", "site"),
        (("site",), None, "a site and a detector|uses its numbers"),
        (("alarmed", "benign"), 2.0, "alarmed"),
    ],
)
def test_facts_that_make_no_monitor_are_refused(tmp_path, place, value, sentence):
    folder = watched().save(tmp_path / "r")
    facts = json.loads((folder / "repair.json").read_text())
    part = facts["monitors"][0]
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    _signed(folder, facts)
    with pytest.raises(ArtefactError, match=sentence):
        Repair.load(folder)


def test_numbers_that_make_no_monitor_are_refused(tmp_path):
    broken = Detector(np.full(tiny.WIDTH, 1e10, np.float32), np.zeros(tiny.WIDTH, np.float32))
    with pytest.raises(ArtefactError, match=re.escape("the number 1e+10 in its direction")):
        watched(replace(monitor(), detector=broken)).save(tmp_path / "r")


def test_a_monitor_of_another_model_is_refused(vlm):
    narrow = Detector(np.ones(3, np.float32), np.ones(3, np.float32))
    with pytest.raises(ArtefactError, match=r"detector at 2\.layer_out has width 3"):
        watched(replace(monitor(), detector=narrow)).check(vlm)
    with pytest.raises(ArtefactError, match=r"reads 9\.layer_out"):
        watched(replace(monitor(), site=Site(9, "layer_out"))).check(vlm)


def test_the_card_tells_what_watches():
    told = card(watched())
    assert "| request | 2.layer_out | mean | 0.5 |" in told and "repair.answer(vlm" in told
    assert "monitor" not in card(Repair((made(),))).split("## Threat model")[0]


def test_the_card_has_transfer_adaptive_and_certified_side_by_side():
    def figures(name):
        rates = {"before": (0.5, 0.4, 0.6), "after": (0.05, 0.01, 0.14)}
        cells = {w: dict(zip(("rate", "low", "high"), r, strict=True)) for w, r in rates.items()}
        return {"name": name, "metric": "ASR", "n": 60, **cells}

    limit = {"rate": 0.1, "low": 0.05, "high": 0.2, "n": 60, "unstated": 0}
    certified = {"pgd-32": limit, "pictured-goal": limit | {"unstated": 60}}
    evaluation = {"suites": [figures(name) for name in ("pgd-32", "pictured-goal", "benign")]}
    told = card(replace(watched(), manifest={"evaluation": evaluation | {"certified": certified}}))
    rate = "0.05 [0.01, 0.14]"
    bare = "| 60 | 0.50 [0.40, 0.60] |"
    assert f"| pgd-32 (ASR) {bare} {rate} | {rate} | ≤ 0.10 [0.05, 0.20] |" in told
    assert f"| pictured-goal (ASR) {bare} {rate} |  | none: goals aren't in the text |" in told
    assert f"| benign (ASR) {bare} {rate} |  |  |" in told
    assert (
        "| suite | n | bare model | transfer | adaptive | certified, beside any picture |" in told
    )
    assert "which none of them was told" in told


def _signed(folder, facts):
    """Write facts with the digest that goes with them, as who means to deceive would."""
    from care.defenses.stored import digest_of

    facts.pop("sha256")
    facts["sha256"] = digest_of(facts, (folder / "repair.safetensors").read_bytes())
    (folder / "repair.json").write_text(json.dumps(facts))
