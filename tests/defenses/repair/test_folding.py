"""Folding in: the same numbers as a fit on everything, in any split; what there is to refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from care.data.example import Example
from care.data.small_world import suites
from care.defenses.activations import at_decision
from care.defenses.artefact import MEMORY
from care.defenses.artefact_card import card
from care.defenses.controls import random_control, seeing_control
from care.defenses.material import CLASSES, Material, Sorted
from care.defenses.monitors.choosing import fit_monitors
from care.defenses.monitors.fitting import MonitorConfig
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.fitting_data import said
from care.defenses.repair.folding import folded, updates_of
from care.defenses.repair.memory import Memory
from care.defenses.repair.presets import PRESETS
from care.defenses.repair.repair import Repair
from care.errors import FitError, UsageError
from care.evaluation.leak_check import stated_goals
from care.models.sites import Site
from kit import tiny
from kit.fits import asked
from kit.fits import material as made
from kit.said import SMALL
from kit.said import said as spoken

SITE_23 = Site(23, "layer_out")
SITES = (Site(2, "layer_out"), Site(3, "layer_out"))


@pytest.fixture(scope="module")
def everything(vlm) -> Material:
    """Material with activations, in which two families have ten attacks more."""
    part = made(22, 22)
    parts = {name: getattr(part, name) for name in CLASSES}
    rows = {name: at_decision(vlm, [e for e, _ in own], SITES) for name, own in parts.items()}
    decisions = {site: tuple(rows[name][site] for name in CLASSES) for site in SITES}
    return replace(part, decisions=decisions)


def parted(whole: Material, cuts: list[dict[str, list[int]]]) -> list[Sorted]:
    return [Sorted(**vars_of(whole)).part(cut) for cut in cuts]


def vars_of(part: Sorted) -> dict:
    return {name: getattr(part, name) for name in (*CLASSES, "decisions")}


def together(parts: list[Sorted]) -> Material:
    """All parts as one material, one after the other."""
    return Material(
        **{name: tuple(each for part in parts for each in getattr(part, name)) for name in CLASSES},
        decisions={
            site: tuple(
                np.concatenate([part.decisions[site][place] for part in parts])
                for place in range(len(CLASSES))
            )
            for site in parts[0].decisions
        },
        max_new_tokens=24,
    )


def channels_of(vlm, material: Material) -> Repair:
    fitter = Fitter(vlm, material, PRESETS["corrected"], 8)
    repair = fitter.repair(list(SITES))
    return Repair.of(replace(repair, memory=fitter.remembered(repair.channels)))


def assert_same_channels(one: Repair, other: Repair, atol: float = 1e-10) -> None:
    assert len(one.channels) == len(other.channels) > 0
    for ours, theirs in zip(one.channels, other.channels, strict=True):
        assert ours.gate is not None and theirs.gate is not None
        assert ours.gate.families == theirs.gate.families
        assert ours.gate.opened == theirs.gate.opened
        for name in ("filters", "mean", "low", "high"):
            assert_allclose(getattr(ours.gate, name), getattr(theirs.gate, name), atol=atol)
        for name in ("basis", "mean", "eigenvalues"):
            pair = (getattr(each.subspace, name) for each in (ours, theirs))
            assert_allclose(*pair, atol=atol)


@given(seed=st.integers(0, 2**16), steps=st.integers(1, 3))
def test_channels_are_those_of_a_fit_on_old_rows_and_new_ones(vlm, everything, seed, steps):
    rng = np.random.default_rng(seed)
    cuts: list[dict[str, list[int]]] = [{} for _ in range(steps + 1)]
    for name in CLASSES:
        order = rng.permutation(len(getattr(everything, name)))
        # Ten of each to begin with at least; a part may bring nothing of a class.
        ends = np.sort(rng.integers(24 if name == "complied" else 10, len(order) + 1, steps))
        for cut, part in zip(cuts, np.split(order, ends), strict=True):
            cut[name] = part.tolist()
    first, *others = parted(everything, cuts)
    others = [part for part in others if part.complied or part.answered]  # else there is no news
    repair = channels_of(vlm, together([first]))
    for part in others:
        repair = Repair.of(folded(repair, vlm, part))
    whole = channels_of(vlm, together([first, *others]))
    assert_same_channels(repair, whole)
    ours, theirs = repair.manifest["fitted_on"], whole.manifest["fitted_on"]
    assert ours == theirs and len(updates_of(repair)) == len(others)


def test_monitors_are_those_of_a_fit_on_old_answers_and_new_ones(vlm):
    old, new, held = spoken(20), spoken(14, 50, family="novel"), spoken(16, start=100)
    new_harmless = {"request": 14, "answer": 28}  # of answers, refusals too
    small, compared = replace(SMALL, kinds=("layer_out",), depths=(0.7,)), 0
    for poolings in (("mean", "last"), ("mean", "window")):
        config = replace(small, poolings=poolings)
        repair = watching(fit_monitors(vlm, old, held, config))
        got = Repair.of(folded(repair, vlm, sorted_said(new)))
        whole = fit_monitors(vlm, [*old, *sorted_first(new)], held, config)
        by_key = {each.key: each for each in whole.memory}
        assert [m.reads for m in got.monitors] == [m.reads for m in repair.monitors]
        for ours, kept in zip(got.monitors, got.memory.monitors, strict=True):
            theirs = by_key.get(kept.key)
            if theirs is None or theirs.share != kept.share:
                continue  # the whole fit has taken another pooling
            if kept.site is None:  # nothing is fitted to it: what is harmless counts
                assert len(kept.held.kinds) == len(theirs.held.kinds) + new_harmless[kept.reads]
                continue
            compared += 1
            assert kept.fitted.tags == theirs.fitted.tags
            assert_allclose(kept.fitted.x, theirs.fitted.x, atol=1e-5)
            same = replace(kept, fitted=theirs.fitted, held=theirs.held).monitor()
            assert_allclose(theirs.monitor().threshold, same.threshold, atol=1e-10)
            assert ours.threshold == pytest.approx(same.threshold, abs=1e-3)
            assert same.alarmed == theirs.monitor().alarmed
    assert compared >= 2


def watching(found) -> Repair:
    manifest = {"fitted_on": {"examples": [], "goals": {"scheme": "care.goals/1", "digests": []}}}
    return Repair((), monitors=found.monitors, memory=Memory(None, found.memory), manifest=manifest)


def sorted_said(heard) -> Sorted:
    return Sorted(
        tuple((e, a) for e, a, harmful in heard if harmful),
        tuple((e, a) for e, a, harmful in heard if not harmful and e.kind == "malicious"),
        tuple((e, a) for e, a, harmful in heard if e.kind == "benign"),
    )


def sorted_first(heard) -> list:
    return said(sorted_said(heard))


def test_two_steps_are_one(vlm):
    found = fit_monitors(vlm, spoken(20), (), SMALL)
    new = sorted_said(spoken(14, start=50, family="novel"))
    kept = {name: list(range(len(getattr(new, name)))) for name in CLASSES}
    halves = [
        new.part({name: part[:7] for name, part in kept.items()}),
        new.part({name: part[7:] for name, part in kept.items()}),
    ]
    once = folded(watching(found), vlm, new)
    twice = folded(folded(watching(found), vlm, halves[0]), vlm, halves[1])
    for one, other in zip(once.memory.monitors, twice.memory.monitors, strict=True):
        # The same rows in another order, and in other batches: the same numbers but for rounding.
        assert sorted(map(str, one.fitted.tags)) == sorted(map(str, other.fitted.tags))
    for one, other in zip(once.monitors, twice.monitors, strict=True):
        assert one.threshold == pytest.approx(other.threshold, abs=1e-3)
    assert once.manifest["fitted_on"] == twice.manifest["fitted_on"]


def test_a_suite_is_a_family_once_enough_of_it_worked(vlm, everything):
    repair = channels_of(vlm, everything)
    few = new_family(5)
    first = Repair.of(folded(repair, vlm, few))
    assert first.manifest["updates"][0]["waiting"] == {"novel": 5}
    assert families(first, "text") == ("template",)
    second = Repair.of(folded(first, vlm, new_family(3, start=5)))
    assert families(second, "text") == ("template", "novel")
    assert second.manifest["updates"][1]["waiting"] == {}
    assert second.manifest["updates"][1]["families"] == {"novel": 3}
    pictured = Repair.of(folded(repair.only("image"), vlm, new_family(9)))
    assert pictured.manifest["updates"][0]["unserved"] == {"novel": 9}


def test_the_card_says_what_was_folded_in(vlm, everything):
    repair = channels_of(vlm, everything)
    assert "folded in" not in card(repair)
    twice = folded(folded(repair, vlm, new_family(9)), vlm, new_family(4, start=9))
    assert "Since it was fitted, 13 attacks that worked, 0 refusals and" in card(twice)


def new_family(count: int, start: int = 0) -> Sorted:
    examples = asked("novel", start + count, "malicious", False, 0)[start:]
    return Sorted(tuple((e, "To do it, you'll need") for e in examples), (), ())


def families(repair: Repair, modality: str) -> tuple[str, ...]:
    return next(c.gate.families for c in repair.channels if c.modality == modality and c.gate)


def test_what_was_fitted_on_is_left_out_and_nothing_new_is_refused(vlm, everything):
    repair = channels_of(vlm, everything)
    new = new_family(9)
    once = Repair.of(folded(repair, vlm, new))
    with pytest.raises(FitError, match="nothing new to fold into care: all 9 requests"):
        folded(once, vlm, new)
    more = new_family(12)
    again = folded(once, vlm, more)
    assert again.manifest["updates"][1] | {"families": {}} == {
        **dict.fromkeys(("refused", "answered"), 0),
        **{"complied": 3, "known": 9, "families": {}, "waiting": {}, "unserved": {}},
    }
    # Read in batches of other sizes, activations differ by rounding.
    assert_same_channels(Repair.of(again), Repair.of(folded(repair, vlm, more)), 1e-4)


def test_a_request_is_known_by_what_it_asks_whatever_it_is_called(vlm, everything):
    repair = Repair.of(folded(channels_of(vlm, everything), vlm, new_family(9)))
    named = [
        (replace(e, id=f"x{n}", suite="y"), a) for n, (e, a) in enumerate(new_family(9).complied)
    ]
    with pytest.raises(FitError, match="nothing new to fold into care: all 9 requests"):
        folded(repair, vlm, replace(new_family(9), complied=tuple(named)))


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (("benign", "benign"), r"9 of 9 requests passed as attacks are benign .* 'novel-0'"),
        (("malicious", "malicious"), r"9 of 9 requests passed as benign requests are malicious"),
    ],
)
def test_a_request_of_the_wrong_kind_is_no_news(vlm, everything, kinds, said):
    """Else harmful answers would be learned as harmless ones, without a word."""
    attacks, benign = (asked("novel", 9, kind, False, 0) for kind in kinds)
    with pytest.raises(UsageError, match=said):
        channels_of(vlm, everything).partial_fit(vlm, attacks, benign)
    with pytest.raises(UsageError, match=said):
        Repair.fit(vlm, attacks, benign)


def test_of_a_large_suite_as_many_answers_are_heard_as_a_fit_hears(vlm, everything, monkeypatch):
    watched = watching(fit_monitors(vlm, spoken(20), (), SMALL))
    kept = folded(watched, vlm, new_family(9))
    monkeypatch.setattr(MonitorConfig, "most", 5)
    fewer = folded(watched, vlm, new_family(9))
    sizes = [[len(each.fitted.tags) for each in part.memory.monitors if each.site is not None]
             for part in (watched, kept, fewer)]  # fmt: skip
    assert [n - m for m, n in zip(sizes[0], sizes[1], strict=True)] == [9] * len(sizes[0])
    assert [n - m for m, n in zip(sizes[0], sizes[2], strict=True)] == [5] * len(sizes[0])


def test_goals_that_were_folded_in_are_told_so_that_nobody_tests_on_them(vlm, everything):
    repair = channels_of(vlm, everything)
    before, _ = stated_goals(repair.manifest)
    after, _ = stated_goals(Repair.of(folded(repair, vlm, new_family(9))).manifest)
    assert before < after and len(after) == len(before) + 9
    assert (
        "evaluation"
        not in folded(
            replace(repair, manifest=repair.manifest | {"evaluation": {}}), vlm, new_family(9)
        ).manifest
    )


def test_a_repair_that_remembers_nothing_is_refused(vlm, everything):
    repair = channels_of(vlm, everything)
    for forgetful in (replace(repair, memory=None), random_control(repair), repair.opened()):
        with pytest.raises(UsageError, match=r"doesn't remember .* fit anew .* `care fit`"):
            forgetful.partial_fit(vlm, asked("novel", 9, "malicious", False, 0))
    watched = watching(fit_monitors(vlm, spoken(20), (), SMALL))
    with pytest.raises(UsageError, match="doesn't remember"):
        folded(replace(watched, channels=repair.channels), vlm, new_family(9))
    assert seeing_control(watched).memory is None if watched.monitors[0].detector else True


def test_the_model_answers_the_new_requests_alone(vlm, everything, monkeypatch):
    repair = channels_of(vlm, everything)
    attacks = asked("novel", 9, "malicious", False, 0)
    seen: list[list[Example]] = []
    prefill = vlm.prefill

    def watched(examples, **how):
        seen.append(list(examples))
        return prefill(examples, **how)

    monkeypatch.setattr(vlm, "prefill", watched)
    got = repair.partial_fit(vlm, attacks, judge=tiny_judge(harmful=True), max_new_tokens=3)
    assert sorted(e.id for part in seen for e in part) == sorted(e.id for e in attacks)
    assert got.manifest["updates"][0]["complied"] == 9
    by_hand = folded(repair, vlm, new_family(9))
    for ours, theirs in zip(got.channels, by_hand.channels, strict=True):
        assert ours.gate is not None and theirs.gate is not None
        assert_allclose(ours.gate.filters, theirs.gate.filters, atol=2e-3)
    with pytest.raises(FitError, match=r"No new request is one to learn from: .* refused 9"):
        repair.partial_fit(vlm, attacks, judge=tiny_judge(harmful=False), max_new_tokens=3)


def tiny_judge(harmful: bool):
    from care.judges.base import Verdict
    from care.judges.rules import RulesJudge

    class Decided(RulesJudge):
        def __call__(self, goals, responses):
            return [Verdict(refused=not harmful, degenerate=False, on_goal=True) for _ in goals]

    return Decided()


def test_strength_and_edited_tokens_stay(vlm, everything):
    repair = channels_of(vlm, everything).with_strength(2.5)
    got = folded(repair, vlm, new_family(9))
    assert {channel.strength for channel in got.channels} == {2.5}
    assert [c.scopes for c in got.channels] == [c.scopes for c in repair.channels]
    assert_array_equal([c.site for c in got.channels], [c.site for c in repair.channels])
    assert got.channels[0].subspace.width == tiny.WIDTH


@pytest.mark.embedded
def test_the_embedded_model_learns_a_family_that_was_left_out(embedded_vlm, tmp_path):
    """Goals shown in pictures, which neither the gates nor the monitors have seen."""
    watching = MonitorConfig(kinds=("ffn_out",), depths=(0.5,), poolings=("mean",))
    names = {"direct": 40, "beside-image": 40, "text-jailbreak": 60}
    attacks = [e for name, n in names.items() for e in suites.load(name, "fit", n)]
    benign = [e for name in suites.UTILITY for e in suites.load(name, "fit", 24)]
    repair = Repair.fit(
        embedded_vlm, attacks, benign, sites=[SITE_23],
        config=replace(PRESETS["corrected"], monitors=watching), max_new_tokens=24,
    )  # fmt: skip
    read = Repair.load(repair.save(tmp_path / "r"), embedded_vlm)
    newer = read.partial_fit(
        embedded_vlm, suites.load("pictured-goal", "fit", 30), max_new_tokens=24
    )
    assert "pictured-goal" not in families(read, "image") and "pictured-goal" in families(
        newer, "image"
    )
    gate = next(c.gate for c in newer.channels if c.modality == "image")
    assert gate.opened["pictured-goal"] > 0.5 and gate.opened_benign < 0.1
    before, after = (
        next(c.gate for c in each.channels if c.modality == "image") for each in (read, newer)
    )
    unseen = at_decision(embedded_vlm, list(suites.load("pictured-goal", "test", 16)), [SITE_23])[
        SITE_23
    ]
    opened = [float(each.openness(unseen).mean()) for each in (before, after)]
    assert opened[1] > opened[0] + 0.2, opened
    size = sum((tmp_path / "r" / name).stat().st_size for name in MEMORY)
    assert size < 16 * 2**20
