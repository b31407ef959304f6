"""The channel scan: effects by hand, intervals, recommendations; material that is read back."""

from __future__ import annotations

import numpy as np
import pytest

from care.defenses.material import CLASSES, Material, material_from, material_to
from care.defenses.repair.channel import MODALITIES, Channel, Modality
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace
from care.diagnosis.channel_scan import (
    channel_effect,
    found_channels,
    recommend,
    scan_channels,
    scanned_sites,
)
from care.diagnosis.results import ChannelsFound
from care.diagnosis.site_results import ChannelEffect
from care.errors import DataError
from care.models.sites import Site
from care.statistics.intervals import Interval
from care.typed import from_tree, to_tree
from kit.fits import asked, material


def effect(
    layer: int, rate: float, benign: float = 0.0, half: float = 0.05, modality: Modality = "image"
) -> ChannelEffect:
    def interval(value: float) -> Interval:
        return Interval(value, value - half, value + half, 20)

    return channel_effect(Site(layer, "layer_out"), modality, interval(rate), interval(benign))


def test_selectivity_combines_both_intervals():
    item = effect(3, 0.6, 0.1)
    assert item.selectivity == pytest.approx(0.5)
    assert item.selectivity_low == pytest.approx(0.5 - np.hypot(0.05, 0.05))


def test_the_most_selective_sites_of_a_modality_that_lie_apart_are_recommended():
    found = [effect(10, 0.3), effect(24, 0.7), effect(25, 0.8), effect(28, 0.6), effect(20, 0.5)]
    found += [effect(16, 0.9, benign=0.85), effect(24, 0.4, modality="text")]
    chosen = recommend(found, 30)
    assert {modality: [site.layer for site in part] for modality, part in chosen.items()} == {
        "image": [25, 28],
        "text": [24],
    }


def test_nothing_is_recommended_where_benign_requests_are_refused_as_much():
    assert recommend([effect(4, 0.9, benign=0.9), effect(5, 0.05)], 8) == {}


def test_a_scan_survives_its_json_form():
    found = [effect(24, 0.7), effect(28, 0.8), effect(24, 0.6, modality="text")]
    facts = found_channels(found, 30)
    assert from_tree(ChannelsFound, to_tree(facts)) == facts
    chosen = {(item.modality, item.site) for item in facts.scan.sites if item.recommended}
    best = recommend(found, 30)
    assert chosen == {(modality, site) for modality in best for site in best[modality]}
    assert [(str(item.site), item.modality) for item in facts.recommended] == [
        ("28.layer_out", "image"),
        ("24.layer_out", "image"),
        ("24.layer_out", "text"),
    ]
    assert facts.scan.sites[0].n_attacks == 20
    assert "with pictures best at 28.layer_out, 24.layer_out" in facts.verdict
    assert "in words alone best at 24.layer_out" in facts.verdict
    assert "no single site" in found_channels([effect(24, 0.0)], 30).verdict


def test_later_layers_are_scanned():
    assert [site.layer for site in scanned_sites(6, "layer_out")] == [2, 3, 4, 5]
    assert [site.layer for site in scanned_sites(30, "ffn_out")] == list(range(11, 30, 2))


@pytest.mark.parametrize("scope", ["decision", "all"])
def test_the_effect_is_the_share_refused_of_what_got_past(vlm, monkeypatch, scope):
    """Counted by hand from refusal log-odds about a middle value, for want of real refusals."""
    pictured = asked("seen", 7, "malicious", True, 0)
    worded = asked("bad", 6, "malicious", False, 0)
    benign = [*asked("good", 5, "benign", True, 0), *asked("fine", 5, "benign", False, 0)]
    everything = [*pictured, *worded, *benign]
    middle = np.sort(vlm.refusal_log_odds(everything))[10:12].mean()  # between two of 23
    log_odds = vlm.log_odds
    monkeypatch.setattr(vlm, "log_odds", lambda logits: log_odds(logits) - middle)

    def close(site: Site, modality: Modality) -> Repair:
        sign = 1 if modality == "image" else -1
        mean = np.full(vlm.anatomy.width, sign * 3.0, np.float32)
        basis = random_subspace(vlm.anatomy.width, 20, mean, site.layer)
        return Repair((Channel(site, modality, (scope,), basis, 3.0),))

    counted: list[int] = []
    sites = [Site(1, "layer_out"), Site(2, "layer_out")]
    attacks = [*pictured, *worded]
    found = scan_channels(vlm, sites, MODALITIES, close, attacks, benign, advance=counted.append)
    assert sum(counted) == len(everything)
    assert [(item.site, item.modality) for item in found] == [
        (site, modality) for site in sites for modality in MODALITIES
    ]
    for item in found:
        with close(item.site, item.modality).applied(vlm):
            now = vlm.refusal_log_odds(everything) > 0
        before = vlm.refusal_log_odds(everything) > 0
        own = slice(0, 7) if item.modality == "image" else slice(7, 13)
        assert item.n_attacks == (~before[own]).sum()
        assert item.effect == pytest.approx(now[own][~before[own]].mean())
        assert item.benign_effect == pytest.approx(now[13:][~before[13:]].mean())
    assert len({item.effect for item in found} | {item.benign_effect for item in found}) > 1


def test_a_modality_that_never_gets_past_the_model_is_left_out(vlm, monkeypatch):
    attacks = asked("bad", 4, "malicious", False, 0)
    benign = asked("good", 4, "benign", False, 0)
    monkeypatch.setattr(vlm, "refusal_log_odds", lambda reading, **_: np.full(8, -1.0))
    closed: list[str] = []

    def close(site: Site, modality: Modality) -> Repair:
        closed.append(modality)
        basis = random_subspace(vlm.anatomy.width, 2)
        return Repair((Channel(site, modality, ("decision",), basis),))

    found = scan_channels(vlm, [Site(1, "layer_out")], MODALITIES, close, attacks, benign)
    assert closed == ["text"] == [item.modality for item in found]


def test_a_scan_without_benign_requests_that_are_answered_is_refused(vlm, monkeypatch):
    attacks, benign = asked("bad", 4, "malicious", False, 0), asked("good", 1, "benign", False, 0)
    monkeypatch.setattr(vlm, "refusal_log_odds", lambda reading, **_: np.full(5, -1.0))
    with pytest.raises(DataError, match=r"at least 2 different goals .* got 1"):
        scan_channels(vlm, [Site(1, "layer_out")], MODALITIES, lambda s, m: None, attacks, benign)


def test_material_survives_its_json_form():
    found = material()
    known = [e for part in (found.complied, found.refused, found.answered) for e, _ in part]
    again = material_from(material_to(found), known)
    assert isinstance(again, Material)
    assert again == found
    with pytest.raises(DataError, match="same suite and id"):
        material_from(material_to(found), [*known, known[0]])
    stored = material_to(found)
    by_id = {
        name: [[key.partition("/")[2], answer] for key, answer in stored[name]] for name in CLASSES
    }
    assert material_from(by_id, known) == found  # as earlier versions wrote it
