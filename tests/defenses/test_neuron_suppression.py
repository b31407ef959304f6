"""Neuron suppression: the edit against its formula, the search against a planted neuron."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from care.data.example import Suite
from care.defenses.base import Defense
from care.defenses.neuron_suppression import NeuronSuppression
from care.defenses.repair.repair import Repair
from care.diagnosis.neurons.attribution_patching import estimate
from care.diagnosis.neurons.interventions import against_means, neuron_means
from care.diagnosis.neurons.suppression_search import BEYOND, rank_for_suppression, search_neurons
from care.errors import ArtefactError, UsageError
from care.evaluation.runner import evaluate
from care.judges.rules import RulesJudge
from care.models.hooks import read
from care.models.sites import N_CLASSES, Role, Site, position_classes, scope_mask
from care.runs.files import config_digest
from kit import planted, tiny
from kit.repairs import made

PLANTED = (planted.LAYER, planted.NEURON)
SHAPE = (tiny.LAYERS, tiny.FFN)


def a_repair(**options) -> NeuronSuppression:
    means = ((0.0, 1.0, 2.0, 3.0, 9.0), (0.0, -1.0, 0.5, 0.0, 2.0), (0.0, 4.0, 4.0, 4.0, 4.0))
    return NeuronSuppression(((1, 3), (1, 60), (2, 7)), means, SHAPE, **options)


# -- the edit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scopes", [("all",), ("image",), ("decision",), ("text", "response")])
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_neurons_are_drawn_towards_their_means(scopes, strength):
    vlm, repair = tiny.tiny_vlm(), a_repair(scopes=scopes, strength=strength)
    batch = vlm.batch(tiny.mixed_examples(3))
    site = Site(1, "ffn_neurons")
    with read(vlm, [site]) as before, repair.applied(vlm) as stats, read(vlm, [site]) as after:
        vlm.forward(batch)
    (h, roles), (new, _) = before[site], after[site]
    inside = scope_mask(roles, scopes)
    expected = h.clone()
    for neuron, means in zip((3, 60), repair.means[:2], strict=True):
        target = torch.tensor(means)[position_classes(roles)]
        moved = h[..., neuron] + strength * (target - h[..., neuron])
        expected[..., neuron] = torch.where(inside, moved, h[..., neuron])
    torch.testing.assert_close(new, expected)
    assert stats[site].tokens == int(inside.sum()) * (strength > 0)
    assert set(stats) == {site, Site(2, "ffn_neurons")}


def test_zero_and_mean_suppression():
    vlm, examples = tiny.tiny_vlm(), tiny.mixed_examples(4)
    means = neuron_means(vlm, examples)
    mean = NeuronSuppression.of(vlm, [(2, 9)], "mean", means)
    assert mean.means[0][Role.IMAGE] == pytest.approx(
        float(means[Site(2, "ffn_neurons")][Role.IMAGE, 9])
    )
    zero = NeuronSuppression.of(vlm, [(2, 9)], "zero")
    assert zero.means == ((0.0,) * N_CLASSES,)
    assert mean.touches == "prompt"
    assert NeuronSuppression.of(vlm, [(2, 9)], "zero", scopes=("decision",)).touches == "decision"
    with pytest.raises(UsageError, match=r"needs means\[2.ffn_neurons\]"):
        NeuronSuppression.of(vlm, [(2, 9)])
    with pytest.raises(UsageError, match="how is 'skip'"):
        NeuronSuppression.of(vlm, [(2, 9)], "skip")  # pyright: ignore


def test_a_repair_acts_while_generating():
    """The planted neuron keeps the model from opening with a refusal."""
    vlm, attacks = planted.vlm(), planted.attacks(4)
    repair = NeuronSuppression.of(vlm, [PLANTED], "zero")
    assert (vlm.refusal_log_odds(attacks) < 0).all()
    with repair.applied(vlm):
        assert (vlm.refusal_log_odds(attacks) > 0).all()
        with_repair = vlm.generate(attacks, max_new_tokens=2)
    assert with_repair != vlm.generate(attacks, max_new_tokens=2)


def test_it_is_a_defense_beside_a_subspace_repair():
    vlm = planted.vlm()
    repair = NeuronSuppression.of(vlm, [PLANTED], "zero", name="one neuron")
    assert isinstance(repair, Defense)
    suites = [
        Suite("attacks", "attack", tuple(planted.attacks(3))),
        Suite("benign", "utility", tuple(planted.benign(3))),
    ]
    late = dataclasses.replace(repair, scopes=("decision",), name="late")
    subspace = Repair((made(scopes=("decision",)),), name="subspace")
    table = evaluate(
        vlm, suites, [None, repair, late, subspace], judge=RulesJudge(), max_new_tokens=2
    )
    assert {row["defense"] for row in table.rows} == {"none", "one neuron", "late", "subspace"}
    answers = {
        name: [row["response"] for row in table.rows if row["defense"] == name and row["kind"] == k]
        for name, k in (("none", "malicious"), ("one neuron", "malicious"), ("late", "malicious"))
    }
    assert answers["none"] != answers["one neuron"]
    assert all(row["error"] is None for row in table.rows)


# -- the artefact ----------------------------------------------------------------------------------

finite = st.floats(-1e6, 1e6)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 63)), min_size=1, max_size=6, unique=True),
    st.data(),
)
def test_json_round_trip(neurons, data):
    rows = st.tuples(*[finite] * N_CLASSES)
    means = tuple(data.draw(rows) for _ in neurons)
    repair = NeuronSuppression(
        tuple(neurons),
        means,
        SHAPE,
        scopes=data.draw(st.sampled_from([("all",), ("text", "image"), ("decision",)])),
        strength=data.draw(st.floats(0, 1)),
        name=data.draw(st.text(min_size=1, max_size=8)),
        manifest={"model": "tiny"},
    )
    again = NeuronSuppression.from_json(repair.to_json())
    assert again == repair and again.manifest == repair.manifest


def test_any_change_of_a_file_is_refused_by_its_digest(tmp_path):
    repair, path = a_repair(name="three"), tmp_path / "neurons.json"
    assert repair.save(tmp_path) == tmp_path
    tree = json.loads(path.read_text())
    assert tree["sha256"] == repair.digest() == NeuronSuppression.load(path).digest()
    for key, value in tree.items():
        changed = value[:-1] if isinstance(value, list | str) else 0.5
        for other in (tree | {key: changed}, {k: v for k, v in tree.items() if k != key}):
            path.write_text(json.dumps(other))
            with pytest.raises(ArtefactError):
                NeuronSuppression.load(path)
    path.write_text(json.dumps(tree)[:-1] + ', "strength": 0.0}')
    with pytest.raises(ArtefactError, match=r"strength.*twice"):
        NeuronSuppression.load(path)


def test_what_a_file_holds_is_checked_though_its_digest_is_right(tmp_path):
    tree = {k: v for k, v in a_repair(name="three").to_json().items() if k != "sha256"}
    for wrong in (
        tree | {"means": [[1.0]]},
        tree | {"neurons": [[1]]},
        tree | {"scopes": ["everywhere"]},
        tree | {"strength": 7},
        tree | {"shape": [10**400, None]},
    ):
        with pytest.raises(ArtefactError, match="damaged"):
            NeuronSuppression.from_json(wrong | {"sha256": config_digest(wrong)})


def test_a_file_round_trip_and_damaged_files(tmp_path):
    repair, path = a_repair(name="three"), tmp_path / "neurons.json"
    assert NeuronSuppression.load(repair.save(tmp_path)) == NeuronSuppression.load(path) == repair
    tree = repair.to_json()
    for wrong, message in [
        ({}, "not neuron suppression"),
        ([], "not neuron suppression"),
        (tree | {"means": [[1.0]]}, "damaged"),
        (tree | {"neurons": [[1]]}, "damaged"),
        (tree | {"scopes": ["everywhere"]}, "damaged"),
        (tree | {"strength": 7}, "damaged"),
        ({k: v for k, v in tree.items() if k != "shape"}, "damaged"),
    ]:
        with pytest.raises(ArtefactError, match=message):
            NeuronSuppression.from_json(wrong)
    path.write_text("{")
    with pytest.raises(
        ArtefactError,
        match=r"^[^(]*neurons\.json isn't valid JSON \(.*\); pass the folder[^()]*in\.$",
    ):
        NeuronSuppression.load(path)
    with pytest.raises(ArtefactError, match=r"^[^(]*absent\.json"):
        NeuronSuppression.load(tmp_path / "absent.json")


def test_wrong_repairs_and_models_are_refused(vlm):
    with pytest.raises(UsageError, match="one or more different neurons"):
        NeuronSuppression((), (), SHAPE)
    with pytest.raises(UsageError, match="one or more different neurons"):
        NeuronSuppression(((1, 1), (1, 1)), ((0.0,) * N_CLASSES,) * 2, SHAPE)
    with pytest.raises(UsageError, match="strength must lie between 0 and 1"):
        a_repair(strength=1.5)
    with pytest.raises(UsageError, match="finite"):
        NeuronSuppression(((1, 1),), ((float("nan"),) * N_CLASSES,), SHAPE)
    other = dataclasses.replace(a_repair(), shape=(30, 1536))
    with (
        pytest.raises(ArtefactError, match="30 layers with 1536 each, but"),
        other.applied(vlm),
    ):
        pass
    beyond = NeuronSuppression(((1, 64),), ((0.0,) * N_CLASSES,), SHAPE)
    with (
        pytest.raises(ArtefactError, match="Neuron 64 of layer 1 does not exist"),
        beyond.applied(vlm),
    ):
        pass
    with pytest.raises(UsageError, match="isn't suppressed here"):
        a_repair().only([(0, 0)])
    assert a_repair().only([(2, 7)]).means == ((0.0, 4.0, 4.0, 4.0, 4.0),)
    assert a_repair().with_strength(0.5).strength == 0.5


# -- the search ------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [(0, 3), (2, 5), (3, 60)])
@pytest.mark.parametrize("scopes", [("all",), ("decision",)])
def test_the_repair_consists_of_the_planted_neuron(at, scopes):
    vlm = planted.vlm(*at)
    means = neuron_means(vlm, planted.benign(6))
    options = {"scopes": scopes, "means": means}
    question = against_means(vlm, planted.attacks(6), planted.benign(6), **options)
    ranking = rank_for_suppression(estimate(vlm, question), estimate(vlm, question.control))
    found = search_neurons(vlm, ranking, planted.attacks(), planted.benign(), **options)
    assert found.chosen is not None and found.chosen.neurons == (at,)
    assert found.before.not_refused == 1 and found.after.not_refused == 0
    assert found.before.benign_refused == found.after.benign_refused == 0
    assert found.tried[0] == found.before and found.chosen.touches == (
        "decision" if scopes == ("decision",) else "prompt"
    )
    again = NeuronSuppression.from_json(found.chosen.to_json())
    with again.applied(vlm):
        assert (vlm.refusal_log_odds(planted.attacks()) > 0).all()


def test_neurons_that_arent_needed_are_left_out():
    """The planted neuron is the third of the ranking; the set of three is pruned to it."""
    vlm = planted.vlm()
    ranking = [(0, 1), (1, 1), PLANTED, (3, 1), (3, 2)]
    counted = []
    found = search_neurons(
        vlm, ranking, planted.attacks(4), planted.benign(4), how="zero", advance=counted.append
    )
    assert found.chosen is not None and found.chosen.neurons == (PLANTED,)
    assert sum(counted) == 8 * len(found.tried)
    assert len(found.tried) == len({item.neurons for item in found.tried})


def test_benign_refusals_are_a_limit():
    """Prompts with the trigger count as benign: every set that helps is beyond the margin."""
    vlm, attacks = planted.vlm(), planted.attacks(6)
    options = {"how": "zero", "most": 4}
    found = search_neurons(vlm, [PLANTED, (0, 1)], attacks, attacks, **options)
    assert found.chosen is None and found.after == found.before
    assert found.closest is not None and found.closest.neurons == (PLANTED,)
    assert found.closest.name == BEYOND
    found = search_neurons(vlm, [PLANTED], attacks, attacks, margin=1.0, **options)
    assert found.chosen is not None and found.closest is None


def test_no_repair_where_nothing_helps():
    vlm = planted.vlm()
    found = search_neurons(vlm, [(0, 1)], planted.attacks(3), planted.benign(3), how="zero")
    assert found.chosen is None and found.closest is None and len(found.tried) == 2


def test_only_helpful_neurons_are_ranked():
    vlm = planted.vlm()
    question = against_means(vlm, planted.attacks(4), planted.benign(4))
    own, other = estimate(vlm, question), estimate(vlm, question.control)
    ranking = rank_for_suppression(own, other)
    assert ranking[0] == PLANTED and len(ranking) < tiny.LAYERS * tiny.FFN
    assert all(own.mean[at] > abs(other.mean[at]) for at in ranking)


def test_bad_searches_are_named():
    vlm, attacks, benign = planted.vlm(), planted.attacks(2), planted.benign(2)
    with pytest.raises(UsageError, match="got 0, 2 and 2"):
        search_neurons(vlm, [], attacks, benign, how="zero")
    with pytest.raises(UsageError, match="got 1, 2 and 0"):
        search_neurons(vlm, [PLANTED], attacks, [], how="zero")
    with pytest.raises(UsageError, match="margin and tolerance"):
        search_neurons(vlm, [PLANTED], attacks, benign, how="zero", margin=-1)
