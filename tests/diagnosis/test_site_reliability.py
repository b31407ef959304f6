"""Other looks at sites: the second way of removing them against ablations done by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from care.diagnosis.ablation import ablate
from care.diagnosis.activation_means import collect, goals_of
from care.diagnosis.full_config import DiagnosisConfig
from care.diagnosis.reliability import ReliabilityConfig
from care.diagnosis.site_reliability import SECOND, SiteReliability
from care.diagnosis.site_scan import scan_sites
from care.diagnosis.site_scan_config import SiteScanConfig
from care.diagnosis.site_scan_runs import Data
from care.errors import DataError, UsageError
from care.statistics.sampling import SamplingSpec
from care.typed import to_tree
from kit import planted

CONFIG = SiteScanConfig(
    windows=(1,), max_attacks=6, max_benign=4, sampling=SamplingSpec(resamples=200)
)
STABILITY = ReliabilityConfig(top=2, splits=20, sampling=SamplingSpec(resamples=100))
ATTACKS, BENIGN = planted.attacks(12), planted.benign(8)
BEST = f"{planted.LAYER}.ffn_out"


@pytest.fixture(scope="module")
def vlm():
    return planted.vlm()


@pytest.fixture(scope="module")
def changes(vlm):
    return scan_sites(vlm, ATTACKS, BENIGN, config=CONFIG, generate=False).changes


def looks(vlm, changes, **settings) -> SiteReliability:
    return SiteReliability(vlm, changes, replace(CONFIG, **settings), STABILITY)


@pytest.mark.parametrize("how", [way for way in SECOND if way != "mean"])
def test_the_planted_site_is_the_greatest_in_every_way(vlm, changes, how):
    found, same = looks(vlm, changes).rescan(ATTACKS, BENIGN, how, 3)
    assert found is not None and (found.intervention, found.against) == (how, "mean")
    assert [item.top for item in found.sites] == [True] * 3 + [False] * 3
    assert len({item.site for item in found.sites}) == 6
    assert str(found.sites[0].site) == BEST
    again = [item.again.rate for item in found.sites]
    assert again[0] == max(again) and found.sites[0].again.low > 0
    row = to_tree(same)
    assert row["kind"] == "intervention" and row["name"].endswith("3 greatest sites and 3 others")
    assert row["spearman"]["low"] <= row["spearman"]["rho"] <= row["spearman"]["high"]


def test_effects_are_those_of_ablations_by_hand(vlm, changes):
    found, _ = looks(vlm, changes).rescan(ATTACKS, BENIGN, "zero", 3)
    assert found is not None
    attacks = Data.of(ATTACKS, BENIGN, CONFIG).attacks
    clean = vlm.refusal_log_odds(attacks)
    by_hand = []
    for item in found.sites:
        with ablate(vlm, [item.site], "zero"):
            by_hand.append(float(np.mean(vlm.refusal_log_odds(attacks) - clean)))
    assert [item.again.rate for item in found.sites] == pytest.approx(by_hand, abs=1e-3)
    first = {effect.site: effect.effect for effect in changes.effects}
    assert [item.effect.rate for item in found.sites] == pytest.approx(
        [first[item.site] for item in found.sites], abs=1e-9
    )
    tops = [item.effect.rate for item in found.sites if item.top]
    assert min(tops) >= max(item.effect.rate for item in found.sites if not item.top)


def test_means_are_over_the_prompts_that_the_settings_say(vlm, changes):
    data = Data.of(ATTACKS, BENIGN, CONFIG)
    site = changes.effects[0].site
    for reference, asked in (("all", data.examples), ("benign", data.benign)):
        made = looks(vlm, changes, reference=reference)._means(data.attacks, data.benign, [site])
        assert made[site] == pytest.approx(collect(vlm, asked, [site]).means[site])


def test_too_few_sites_have_no_second_look(vlm, changes):
    assert looks(vlm, changes).rescan(ATTACKS, BENIGN, "zero", 1) is None
    with pytest.raises(DataError, match="there are 0 of those"):
        looks(vlm, changes, max_benign=8).rescan(ATTACKS, BENIGN, "constant", 3)


def test_another_draw_has_other_goals(vlm, changes):
    used = set(changes.goals[: changes.n_attacks])
    rest = [e for e in ATTACKS if goals_of([e])[0] not in used]
    assert rest and looks(vlm, changes).redrawn(ATTACKS, BENIGN, 4) is not None
    assert looks(vlm, changes).redrawn([e for e in ATTACKS if e not in rest], BENIGN, 4) is None


def test_the_second_way_is_another_than_the_first():
    assert DiagnosisConfig(second="zero").second == "zero"
    with pytest.raises(UsageError, match="second is 'mean' where sites are removed by mean"):
        DiagnosisConfig(second="mean")
    with pytest.raises(UsageError, match="use one of mean, constant, zero"):
        DiagnosisConfig(sites=SiteScanConfig(intervention="resample"))
    assert (
        DiagnosisConfig(sites=SiteScanConfig(intervention="resample"), rescanned=0).rescanned == 0
    )
    with pytest.raises(UsageError, match="rescanned must be at least 0, got -1"):
        DiagnosisConfig(rescanned=-1)
