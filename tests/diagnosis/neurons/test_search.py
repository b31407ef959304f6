"""Neurons: the planted one is found by every method and moves with it; figures against chance."""

import json

import numpy as np
import pytest
import torch

from care.data.minimal_pairs import Pair
from care.diagnosis.neurons.activation_patching import patch
from care.diagnosis.neurons.attribution_patching import estimate
from care.diagnosis.neurons.interventions import against_means, between_pairs
from care.diagnosis.neurons.search import NeuronConfig, _precision, find_neurons, matched_controls
from care.errors import FitError, SiteError, UsageError
from care.models.alignment import align
from care.models.hooks import edit, read
from care.models.sites import Site, scope_mask
from care.models.vlm import VLM
from care.runs.files import to_json
from care.statistics.sampling import SamplingSpec
from care.typed import to_tree
from kit import planted, tiny

FAST = NeuronConfig(described=2)
PLACES = [(0, 3), (2, 5), (3, 60)]


# -- the planted neuron ----------------------------------------------------------------------------


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("method", ["atp", "ig", "graddrop"])
def test_every_method_ranks_the_planted_neuron_first(at, method):
    vlm = planted.vlm(*at)
    for question in (
        between_pairs(planted.pairs(4)),
        between_pairs(planted.pairs(4), "attack"),
        between_pairs(planted.pairs(4), scopes=("all",)),
        against_means(vlm, planted.attacks(4), planted.benign(4)),
    ):
        found = estimate(vlm, question, method, steps=5)
        assert found.ranking(1) == [at]
        first, second = (abs(found.mean[place]) for place in found.ranking(2))
        assert first > 5 * second


@pytest.mark.parametrize("at", PLACES)
def test_exact_patching_of_all_neurons_ranks_the_planted_one_first(at):
    vlm = planted.vlm(*at)
    everyone = [(layer, k) for layer in range(tiny.LAYERS) for k in range(tiny.FFN)]
    effects = patch(vlm, between_pairs(planted.pairs(3)), everyone).effects.mean(1)
    assert everyone[int(np.abs(effects).argmax())] == at
    assert effects.min() < -5 and np.sort(np.abs(effects))[-2] < 1


@pytest.mark.parametrize("at", PLACES)
def test_the_planted_neuron_is_reported(at):
    vlm = planted.vlm(*at)
    report = find_neurons(vlm, between_pairs(planted.pairs()), config=FAST)
    best = report.found[0]
    assert (best.layer, best.neuron) == at
    assert best.low <= best.exact <= best.high < -5  # the attack's value makes it comply
    assert best.estimate < 0 and best.p < 0.01 and best.q < 0.1
    assert abs(best.benign_exact) < 0.1  # between two benign prompts it does nothing
    assert report.n_neurons == tiny.LAYERS * tiny.FFN and report.forward_equivalents == 4
    assert len(report.found) == len(report.controls) == 8 and set(report.precision) == {"8"}
    assert report.control_ratio > 10
    assert -1 <= report.spearman.low <= report.spearman.rho <= report.spearman.high <= 1
    assert report.scopes == ("decision",)
    # What it does: it writes against refusals and fires on the trigger, in attacks only.
    refusals = {vlm.tokenizer.decode([token]) for token in vlm.refusal_ids}
    assert refusals <= set(best.suppressed_tokens)
    assert [item.token for item in best.examples] == [planted.TRIGGER] * 2
    assert all(item.example.startswith("a") and item.activation > 5 for item in best.examples)
    assert best.patches == ()


def test_mean_ablation_reports_the_planted_neuron_with_the_other_sign():
    vlm = planted.vlm()
    question = against_means(vlm, planted.attacks(), planted.benign())
    report = find_neurons(vlm, question, config=FAST)
    best = report.found[0]
    assert (best.layer, best.neuron) == (planted.LAYER, planted.NEURON)
    assert best.low > 1 > abs(best.benign_exact)


def test_other_prompts_can_verify():
    vlm, pairs = planted.vlm(), planted.pairs(12)
    first, second = between_pairs(pairs[:6]), between_pairs(pairs[6:])
    made = estimate(vlm, first)
    report = find_neurons(vlm, first, verify=second, config=FAST, estimates=made)
    best = report.found[0]
    assert (best.layer, best.neuron) == (planted.LAYER, planted.NEURON)
    exact = patch(vlm, second, [(best.layer, best.neuron)]).effects.mean()
    assert best.exact == pytest.approx(exact)
    assert best.estimate == pytest.approx(made.mean[best.layer, best.neuron])


def test_a_report_is_plain_json_and_repeats():
    vlm, question = planted.vlm(), between_pairs(planted.pairs(4))
    report = find_neurons(vlm, question, config=FAST)
    tree = to_tree(report)
    assert json.loads(to_json(tree)) == tree
    assert tree["found"][0]["layer"] == planted.LAYER
    assert tree["precision"].keys() == {"8"} and "rho" in tree["spearman"]
    assert find_neurons(vlm, question, config=FAST) == report
    bare = find_neurons(
        vlm, question, config=NeuronConfig(sampling=SamplingSpec(resamples=50), described=0)
    )
    assert bare.found[0].top_tokens == () and bare.found[0].exact == report.found[0].exact


# -- exact patching --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("scopes", [("decision",), ("all",)])
def test_a_patch_equals_a_plain_edit_of_a_full_pass(family, scopes):
    vlm = VLM(*tiny.FAMILIES[family](), name=family)
    benign = tiny.mixed_examples(4)
    pairs = [Pair(other, one) for one, other in zip(benign, benign[::-1], strict=True)]
    neurons = [(3, 1), (0, 7), (1, 7)]
    found = patch(vlm, between_pairs(pairs, scopes=scopes), neurons, batch_size=3)
    for k, pair in enumerate(pairs):
        here, there = vlm.batch(pair.benign), vlm.batch(pair.attack)
        index, aligned = align(here.roles, there.roles)
        mask = scope_mask(here.roles, scopes) & aligned
        clean = vlm.log_odds(vlm.forward(here, logits_to_keep=1)[:, -1])
        assert found.clean[k] == pytest.approx(float(clean), abs=2e-4)
        for place, (layer, neuron) in enumerate(neurons):
            site = Site(layer, "ffn_neurons")
            with read(vlm, [site]) as seen:
                vlm.forward(there)
            taken = seen[site][0][0, index[0], neuron]

            def put(h, roles, taken=taken, neuron=neuron, mask=mask):
                new = h.clone()
                new[0, :, neuron] = torch.where(mask[0], taken, h[0, :, neuron])
                return new

            with edit(vlm, {site: put}):
                odds = vlm.log_odds(vlm.forward(here, logits_to_keep=1)[:, -1])
            assert found.effects[place, k] == pytest.approx(float(odds - clean), abs=2e-4)
    assert np.abs(found.effects).max() > 2e-3


def test_patches_of_unknown_neurons_are_refused():
    vlm, question = planted.vlm(), between_pairs(planted.pairs(2))
    with pytest.raises(SiteError, match="Neuron 64 of layer 1 does not exist"):
        patch(vlm, question, [(1, 64)])
    with pytest.raises(SiteError, match="4 layers"):
        patch(vlm, question, [(4, 0)])
    with pytest.raises(UsageError, match="No neurons were given"):
        patch(vlm, question, [])
    with torch.no_grad():
        vlm.model.lm_head.weight[9, 0] = float("nan")
    with pytest.raises(FitError, match="isn't finite in 4 of 4"):
        patch(vlm, question, [(1, 1)])


# -- statistics ------------------------------------------------------------------------------------


def test_precision_counts_the_greatest_of_both():
    guessed, caused = np.array([9.0, -8, 7, 1, 0]), np.array([0.1, -9, 0, 8, 0.2])
    assert _precision(guessed, caused, 2) == 0.5
    assert _precision(guessed, guessed, 3) == 1.0


def test_controls_are_other_neurons_that_write_as_much():
    vlm = tiny.tiny_vlm()
    examples = tiny.mixed_examples(4)
    pairs = [Pair(other, one) for one, other in zip(examples, examples[::-1], strict=True)]
    made = estimate(vlm, between_pairs(pairs, scopes=("all",)))
    top = made.ranking(12)
    controls = matched_controls(vlm, made, top, seed=1)
    assert len({*top, *controls}) == 24
    columns = [vlm.anatomy.layers[k].mlp.down_proj.weight.norm(dim=0) for k in range(tiny.LAYERS)]
    size = torch.stack(columns).detach().numpy() * made.size
    rank = size.ravel().argsort().argsort().reshape(size.shape)
    for one, other in zip(top, controls, strict=True):
        assert abs(int(rank[one]) - int(rank[other])) <= 80
    assert controls == matched_controls(vlm, made, top, seed=1)
    assert controls != matched_controls(vlm, made, top, seed=2)


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "grad"},
        {"steps": 0},
        {"groups": 1},
        {"verified": 7},
        {"described": -1},
        {"batch_size": 0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        NeuronConfig(**wrong)


def test_bad_input_is_named():
    vlm, pairs = planted.vlm(), planted.pairs(3)
    with pytest.raises(UsageError, match="200 neurons and as many controls can't be verified"):
        find_neurons(vlm, between_pairs(pairs), config=NeuronConfig(verified=200))
    with pytest.raises(UsageError, match="at least 2 goals, got 1"):
        find_neurons(vlm, between_pairs([pairs[0], pairs[0]]))
    same = [Pair(pair.benign, pair.benign) for pair in pairs]
    with pytest.raises(FitError, match="no neuron does anything in scope all"):
        find_neurons(vlm, between_pairs(same), config=FAST)
