"""The channel scan: effects by hand, intervals, recommendations, selection among candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import care.channels as channels
import tiny
from care.anatomy import Site
from care.channels import ChannelEffect, recommend, recommended, scan_channels, scanned_sites
from care.contrast import Material
from care.errors import DataError
from care.fitting import PRESETS, Fitter
from care.repair import Channel, Repair
from care.selection import MARGINS, QUANTILES, candidates, choose, material_from, material_to
from care.statistics import Interval
from care.subspace import random_subspace
from test_fitting import asked, material


@pytest.fixture(scope="module")
def vlm():
    return tiny.tiny_vlm()


def effect(layer: int, rate: float, benign: float = 0.0, half: float = 0.05) -> ChannelEffect:
    def interval(value: float) -> Interval:
        return Interval(value, value - half, value + half, 20)

    return ChannelEffect(Site(layer, "layer_out"), interval(rate), interval(benign))


def test_selectivity_combines_both_intervals():
    item = effect(3, 0.6, 0.1)
    assert item.selectivity == pytest.approx(0.5)
    assert item.selectivity_low == pytest.approx(0.5 - np.hypot(0.05, 0.05))


def test_the_most_selective_sites_that_lie_apart_are_recommended():
    found = [effect(10, 0.3), effect(24, 0.7), effect(25, 0.8), effect(28, 0.6), effect(20, 0.5)]
    found += [effect(16, 0.9, benign=0.85), effect(5, 0.12)]
    assert [site.layer for site in recommend(found, 30)] == [25, 28, 20]


def test_nothing_is_recommended_where_benign_requests_are_refused_as_much():
    assert recommend([effect(4, 0.9, benign=0.9), effect(5, 0.05)], 8) == []


def test_a_scan_survives_its_json_form():
    found = [effect(24, 0.7), effect(28, 0.8)]
    facts = channels.to_json(found, 40, 60, 30)
    assert recommended(facts["scan"]) == recommend(found, 30)
    assert [item["site"] for item in facts["recommended"]] == ["28.layer_out", "24.layer_out"]
    assert facts["scan"]["sites"][0]["n_attacks"] == 40
    assert "best at 28.layer_out, 24.layer_out" in facts["verdict"]
    assert "no single site" in channels.to_json([effect(24, 0.0)], 40, 60, 30)["verdict"]
    assert recommended(None) == []


def test_later_layers_are_scanned():
    assert [site.layer for site in scanned_sites(6, "layer_out")] == [2, 3, 4, 5]
    assert [site.layer for site in scanned_sites(30, "ffn_out")] == list(range(11, 30, 2))


def test_the_effect_is_the_change_in_refusals(vlm, monkeypatch):
    """With a judge of our own, effects are counted by hand from plain generation."""
    monkeypatch.setattr(channels, "refused", lambda text: len(text) % 2 == 0)
    attacks = asked("bad", 6, "malicious", False, 0)
    benign = asked("good", 5, "benign", True, 0)
    site = Site(1, "layer_out")
    width = vlm.anatomy.width

    def close(site: Site, scope: str = "decision") -> Repair:
        mean = np.full(width, 3.0, np.float32)
        return Repair((Channel(site, "text", (scope,), random_subspace(width, 20, mean), 3.0),))

    def share(examples, repair=None):
        if repair is None:
            answers = vlm.generate(examples, max_new_tokens=8, stop=channels.refused)
        else:
            with repair.applied(vlm):
                answers = vlm.generate(examples, max_new_tokens=8, stop=channels.refused)
        return np.mean([len(answer) % 2 == 0 for answer in answers])

    for scope in ("decision", "all"):
        repair = close(site, scope)
        [found] = scan_channels(vlm, [site], lambda s, r=repair: r, attacks, benign)
        assert found.effect.rate == pytest.approx(share(attacks, repair) - share(attacks))
        assert found.benign.rate == pytest.approx(share(benign, repair) - share(benign))
    counted = []
    sites = [site, Site(2, "layer_out")]
    scan_channels(vlm, sites, close, attacks, benign, advance=counted.append)
    assert counted == [1, 1]


def test_a_scan_of_one_goal_is_refused(vlm):
    attacks, benign = asked("bad", 4, "malicious", False, 0), asked("good", 1, "benign", False, 0)
    with pytest.raises(DataError, match="benign with at least 2 different goals, got 1"):
        scan_channels(vlm, [Site(1, "layer_out")], lambda s: None, attacks, benign)


# -- selection -------------------------------------------------------------------------------------


def rates(asr: float, utility: float = 1.0, answered: float = 1.0, degenerate: float = 0.0):
    return {"asr": asr, "utility": utility, "answered": answered, "degenerate": degenerate}


def test_the_least_asr_within_the_margins_wins_and_ties_go_to_the_first():
    before = rates(0.7)
    tried = {
        "mild": rates(0.3),
        "best": rates(0.2, utility=1.0 - MARGINS["utility"]),
        "again": rates(0.2),
        "costly": rates(0.05, answered=1.0 - MARGINS["answered"] - 0.01),
        "broken": rates(0.0, degenerate=MARGINS["degenerate"] + 0.01),
    }
    assert choose(before, tried) == "best"


def test_without_one_within_the_margins_the_least_excess_wins_then_the_least_asr():
    tried = {
        "a": rates(0.1, answered=0.5),
        "b": rates(0.3, answered=0.9),
        "c": rates(0.2, answered=0.9),
    }
    assert choose(rates(0.7), tried) == "c"


def test_candidates_are_single_sites_and_the_best_together_at_every_quantile(vlm):
    fitter = Fitter(vlm, material(), PRESETS["corrected"])
    sites = [Site(3, "layer_out"), Site(1, "layer_out"), Site(2, "layer_out")]
    tried = candidates(fitter, "corrected", sites)
    assert len(tried) == len({c.name for c in tried}) == 5 * len(QUANTILES)
    together = [
        (sites[0],),
        (sites[1],),
        (sites[2],),
        tuple(sorted(sites[:2])),
        tuple(sorted(sites)),
    ]
    assert [c.repair.sites for c in tried[:: len(QUANTILES)]] == together
    quantiles = [c.repair.channels[0].gate.quantile for c in tried]
    assert quantiles == [*QUANTILES] * 5
    assert {c.repair.sites for c in candidates(fitter, "corrected", [])} <= {
        (Site(2, "layer_out"),),
        (Site(3, "layer_out"),),
        (Site(2, "layer_out"), Site(3, "layer_out")),
    }


def test_a_preset_without_a_gate_has_one_candidate(vlm):
    config = PRESETS["paper"]
    small = replace(config, subspace=replace(config.subspace, rank=2))
    [only] = candidates(Fitter(vlm, material(), small), "paper", [])
    assert only.name == "paper"


def test_material_survives_its_json_form():
    found = material()
    known = [e for part in (found.complied, found.refused, found.answered) for e, _ in part]
    again = material_from(material_to(found), known)
    assert isinstance(again, Material)
    assert again == found
    with pytest.raises(DataError, match="same id"):
        material_from(material_to(found), [*known, known[0]])
