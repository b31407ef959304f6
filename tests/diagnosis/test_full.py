"""The whole diagnosis on a model with a planted neuron, and what it makes of missing parts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from care.data.minimal_pairs import Pair
from care.defenses.neuron_suppression import NeuronSuppression
from care.diagnosis.faithfulness import FaithfulnessConfig
from care.diagnosis.full_config import DiagnosisConfig
from care.diagnosis.neurons.search import NeuronConfig
from care.diagnosis.parts import DiagnosisParts
from care.diagnosis.results import Diagnosis
from care.diagnosis.scan import ScanRow
from care.diagnosis.site_scan_config import SiteScanConfig
from care.errors import DataError
from care.models.sites import Site
from care.report.conclusions import verdict
from care.report.files import write_diagnosis
from care.statistics.sampling import SamplingSpec
from care.typed import to_tree
from kit import planted

SMALL = DiagnosisConfig(
    sites=SiteScanConfig(max_attacks=6, max_benign=4, generate_examples=2, top_sites=1),
    neurons=NeuronConfig(verified=8, described=1, sampling=SamplingSpec(resamples=200)),
    curves=FaithfulnessConfig(sizes=3, draws=2, sampling=SamplingSpec(resamples=200)),
    pairs=5,
    neuron_prompts=8,
    reseeded=4,
    rescanned=3,
    repair_prompts=4,
    repair_most=4,
)


def parts(vlm, paired: bool = True, **changes) -> DiagnosisParts:
    return DiagnosisParts(
        vlm,
        planted.attacks(12),
        planted.benign(12),
        pairs=planted.pairs(10) if paired else (),
        validation=(planted.attacks(4), planted.benign(4)),
        config=replace(SMALL, **changes),
    )


@pytest.fixture(scope="module")
def vlm():
    return planted.vlm()


@pytest.fixture(scope="module")
def whole(vlm):
    asked = parts(vlm)
    repairs: list[NeuronSuppression] = []
    sites, effects = asked.sites(), asked.effects()
    neurons = asked.neurons(save=repairs.append)
    return Diagnosis.of(sites, effects, neurons, asked.curves(effects, neurons)), repairs


def test_the_planted_neuron_and_its_layer_are_found_by_every_part(whole):
    found, repairs = whole
    first = found.neurons.found[0]
    assert (first.layer, first.neuron) == (planted.LAYER, planted.NEURON)
    rows = [row for row in found.causal if row.metric == found.causal[0].metric]
    best = max(rows, key=lambda row: abs(row.reversed_indirect.rate))
    assert best.site == f"{planted.LAYER}.ffn_out"
    single = [row for row in found.heatmap if row.window == 1 and row.component != "layer"]
    assert max(single, key=lambda row: row.selectivity).layer == planted.LAYER
    assert repairs[0].neurons == ((planted.LAYER, planted.NEURON),)
    repair = found.neurons.repair
    assert repair.neurons == ((planted.LAYER, planted.NEURON),)
    assert repair.after.not_refused < repair.before.not_refused


def test_both_rankings_have_curves_and_other_looks_are_taken(whole):
    found, _ = whole
    units = [curve.units for curve in found.trust.faithfulness]
    assert units == ["FFN and attention outputs", "FFN neurons"]
    assert {row.kind for row in found.trust.stability} >= {"half", "intervention"}
    assert [item.top for item in found.rescan.sites] == [True] * 3 + [False] * 3
    assert found.rescan.sites[0].site == Site(planted.LAYER, "ffn_out")
    said = verdict(to_tree(found))
    assert any(
        text.startswith("Two ways of removing") for text in (*said.supported, *said.unsupported)
    )
    assert said.supported and said.unsupported


def test_the_page_is_written_from_the_same_figures(whole, tmp_path):
    page = write_diagnosis(whole[0], tmp_path, "Diagnosis of a planted model")
    text = page.read_text()
    assert "Diagnosis of a planted model" in text and "diagnosis.json" in text
    assert f"<code>{planted.LAYER}" in text or f"{planted.LAYER}.ffn_out" in text
    again = Diagnosis.load(tmp_path)
    assert again.supported and replace(again, supported=(), unsupported=()) == whole[0]


def test_a_diagnosis_survives_its_file_and_says_what_was_found(whole, tmp_path):
    found, _ = whole
    file = found.save(tmp_path / "found.json")
    assert Diagnosis.load(file) == found
    assert f"{planted.LAYER}.ffn_out" in str(found) and found.verdict in str(found)
    assert f"{planted.LAYER}.{planted.NEURON}" in str(found) and "halves of" in str(found)
    file.write_text(file.read_text().replace(f'"n_layers": {found.n_layers}', '"n_layers": 1'))
    with pytest.raises(DataError, match=r"The diagnosis .*heatmap\[\d+\].layer` is \d, but"):
        Diagnosis.load(file)


def test_without_pairs_neurons_are_compared_with_means_and_effects_are_left_out(vlm):
    asked = parts(vlm, paired=False, repair_prompts=0)
    assert asked.effects() == ()
    found = asked.neurons()
    assert (found.found[0].layer, found.found[0].neuron) == (planted.LAYER, planted.NEURON)
    assert found.repair is None
    units = [curve.units for curve in asked.curves((), found)]
    assert units == ["FFN and attention outputs", "FFN neurons"]


def test_a_scan_goes_on_after_its_last_row(vlm):
    rows: list[ScanRow] = []
    asked = parts(vlm, reseeded=0)
    first = asked.sites(keep=rows.append)
    more: list[ScanRow] = []
    again = parts(vlm, reseeded=0).sites(
        [ScanRow.from_json(row.to_json()) for row in rows[: len(rows) // 2]], more.append
    )
    assert again == first
    assert len(more) == len(rows) - len(rows) // 2


def test_effects_are_taken_of_each_kind_of_pairs(vlm):
    """Another kind, of pairs that don't differ: it has effects of its own, all of them nothing."""
    pairs = [Pair(pair.attack, pair.benign, "in words") for pair in planted.pairs(6)]
    same = [Pair(pair.benign, pair.benign, "the same") for pair in planted.pairs(6)]
    asked = DiagnosisParts(
        vlm, planted.attacks(8), planted.benign(8), pairs=[*pairs, *same], config=SMALL
    )
    rows = asked.effects()
    by = {name: [row for row in rows if row.pairs == name] for name in ("in words", "the same")}
    assert len(by["in words"]) == 2 * len(by["the same"]) == 2 / 3 * len(rows) > 0
    assert len({row.metric for row in by["in words"]}) == 2
    same = by["the same"]
    assert all(abs(row.total.rate) < 1e-5 and row.noising is None for row in same)
    assert max(abs(row.total.rate) for row in by["in words"]) > 1
    assert rows[0].pairs == "in words"  # the first kind's first metric ranks the sites
    asked.config = replace(SMALL, pair_kinds=1)
    assert {row.pairs for row in asked.effects()} == {"in words"}
    found = asked.neurons()
    assert found.pairs == "in words"
    assert found.found[0].neuron == planted.NEURON
    assert asked._compared().metric.endswith("(nats; in words)")
