"""Estimates of neurons' effects: against plain autograd, exact where exactness is due."""

import dataclasses

import numpy as np
import pytest
import torch

from care.data.example import Example
from care.data.minimal_pairs import Pair
from care.diagnosis.neurons.activation_patching import patch
from care.diagnosis.neurons.attribution_patching import MOST_GROUPS, estimate, goal_groups
from care.diagnosis.neurons.interventions import (
    Counterfactual,
    against_means,
    between_pairs,
    neuron_means,
)
from care.errors import DataError, FitError, UsageError
from care.models.alignment import align
from care.models.hooks import edit, read
from care.models.sites import Site, position_classes, scope_mask
from care.models.vlm import VLM
from kit import planted, tiny

METHODS = ("atp", "ig", "graddrop")


def mixed_pairs(n=4) -> list[Pair]:
    """Pairs that don't align: other lengths, some with a picture on one side only."""
    benign = tiny.mixed_examples(n)
    attacks = [
        Example(f"a{k}", f"Explain how {e.prompt} is done", images=e.images, kind="malicious")
        for k, e in enumerate(benign)
    ]
    return [Pair(*both) for both in zip(attacks, benign, strict=True)]


def neurons_and_gradients(vlm, batch):
    """Plain oracle: values a (B, T, F) and ∂m/∂a of every layer, by adding a zero parameter."""
    values, zeros = {}, {}

    def add(layer, h):
        values[layer] = h.detach()
        zeros[layer] = torch.zeros_like(h, requires_grad=True)
        return h + zeros[layer]

    edits = {
        Site(layer, "ffn_neurons"): lambda h, roles, layer=layer: add(layer, h)
        for layer in range(tiny.LAYERS)
    }
    with edit(vlm, edits):
        odds = vlm.log_odds(vlm.forward(batch, logits_to_keep=1, grad=True)[:, -1])
    odds.sum().backward()
    vlm.model.zero_grad()
    return values, {layer: zero.grad for layer, zero in zeros.items()}


# -- against plain autograd ------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("scopes", [("decision",), ("text",), ("all",)])
def test_attribution_between_pairs_equals_plain_autograd(family, scopes):
    vlm = VLM(*tiny.FAMILIES[family](), name=family)
    pairs = mixed_pairs()
    found = estimate(vlm, between_pairs(pairs, scopes=scopes), batch_size=2)
    expected = 0
    for pair in pairs:
        here, there = vlm.batch(pair.benign), vlm.batch(pair.attack)
        own, gradients = neurons_and_gradients(vlm, here)
        others, _ = neurons_and_gradients(vlm, there)
        index, aligned = align(here.roles, there.roles)
        mask = (scope_mask(here.roles, scopes) & aligned)[..., None]
        scores = []
        for layer in range(tiny.LAYERS):
            taken = others[layer][0, index[0]][None]
            scores.append(((taken - own[layer]) * gradients[layer] * mask).sum((0, 1)))
        expected = expected + torch.stack(scores)
    expected = expected.numpy() / len(pairs)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found.mean, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_attribution_against_means_equals_plain_autograd():
    vlm, examples = tiny.tiny_vlm(), tiny.mixed_examples(5)
    means = neuron_means(vlm, examples, batch_size=2)
    found = estimate(vlm, Counterfactual(tuple(examples), ("all",), ("g",) * 5, means=means))
    expected = 0
    for example in examples:
        batch = vlm.batch(example)
        own, gradients = neurons_and_gradients(vlm, batch)
        classes = position_classes(batch.roles)
        expected = expected + torch.stack(
            [
                ((means[site][classes] - own[site.layer]) * gradients[site.layer]).sum((0, 1))
                for site in vlm.anatomy.sites("ffn_neurons")
            ]
        )
    np.testing.assert_allclose(found.mean, expected.numpy() / 5, rtol=1e-3, atol=1e-4)
    squares = torch.cat([neurons_and_gradients(vlm, vlm.batch(e))[0][2][0] for e in examples])
    np.testing.assert_allclose(found.size[2], squares.square().mean(0).sqrt(), rtol=1e-4)


def test_means_are_per_role():
    vlm, examples = tiny.tiny_vlm(), tiny.mixed_examples(4)
    site = Site(1, "ffn_neurons")
    means = neuron_means(vlm, examples, batch_size=3)
    assert set(means) == set(vlm.anatomy.sites("ffn_neurons"))
    with read(vlm, [site], ("image",)) as seen:
        vlm.forward(vlm.batch(examples))
    torch.testing.assert_close(means[site][2], seen.rows(site).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_estimates_dont_depend_on_batches_and_leave_nothing_behind(method):
    vlm = tiny.tiny_vlm()
    question = between_pairs(mixed_pairs(5), scopes=("all",))
    vlm.refusal_log_odds(question.examples)  # after which transformers has put on hooks of its own

    def state():
        hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in vlm.model.modules())
        return vlm.model.config._attn_implementation, hooks

    before = state()
    counted = []
    one = estimate(vlm, question, method, batch_size=2, advance=counted.append)
    other = estimate(vlm, question, method, batch_size=16)
    assert sum(counted) == 5
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-3 * np.abs(one.mean).max())
    np.testing.assert_allclose(one.size, other.size, rtol=1e-4)
    assert state() == before
    assert all(weight.requires_grad for weight in vlm.model.parameters())


# -- exact where the model is linear ---------------------------------------------------------------


def linear() -> VLM:
    """m is linear in every neuron of the last layer, and nothing else moves it.

    They all write along d, each by another factor; there is no final norm, and d shifts the logits
    of all refusal tokens alike and no others, so that m = const + factor · a.
    """
    vlm = planted.vlm(layer=3)
    _, d = planted.directions()
    factors = torch.randn(tiny.FFN, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for layer in vlm.anatomy.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        vlm.anatomy.layers[3].mlp.down_proj.weight.copy_(0.1 * d[:, None] * factors)
    vlm.model.get_decoder().norm = torch.nn.Identity()
    return vlm


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", ["benign", "attack"])
def test_estimates_are_exact_where_the_model_is_linear(method, base):
    vlm = linear()
    question = between_pairs(planted.pairs(4), base, scopes=("all",))
    found = estimate(vlm, question, method, steps=5)
    neurons = [(3, neuron) for neuron in range(tiny.FFN)]
    exact = patch(vlm, question, neurons).effects.mean(1)
    assert np.abs(exact).max() > 1
    np.testing.assert_allclose(found.mean[3], exact, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.mean[:3], 0, atol=1e-6)


def test_mean_ablation_is_exact_where_the_model_is_linear():
    vlm = linear()
    question = against_means(vlm, planted.attacks(4), planted.benign(4))
    found = estimate(vlm, question)
    exact = patch(vlm, question, [(3, neuron) for neuron in range(tiny.FFN)]).effects.mean(1)
    assert np.abs(exact).max() > 0.5
    np.testing.assert_allclose(found.mean[3], exact, rtol=1e-3, atol=1e-3)


# -- where attribution patching fails --------------------------------------------------------------


def test_integrated_gradients_are_closer_where_the_metric_saturates():
    vlm = planted.vlm()  # the final norm bounds what the neuron can do
    question = between_pairs(planted.pairs(6))
    at = (planted.LAYER, planted.NEURON)
    exact = patch(vlm, question, [at]).effects.mean()
    misses = [
        abs(estimate(vlm, question, method, steps=steps).mean[at] - exact)
        for method, steps in (("atp", 1), ("ig", 5), ("ig", 20))
    ]
    assert misses[0] > 0.5 * abs(exact)
    assert misses[1] < 0.2 * misses[0]
    assert misses[2] < 0.05 * abs(exact)


def cancelling(strength: float) -> VLM:
    """The planted neuron's direct effect, and one through a neuron of the last layer against it.

    That neuron is open in every prompt and reads r, which the planted one writes; it writes along
    d. At the `strength` at which both cancel, no gradient of m is left at benign prompts; really
    replaced, the planted neuron's way through the other one saturates in its norm.
    """
    vlm = planted.vlm(layer=1)
    _, d, r, always = planted.directions(4)
    with torch.no_grad():
        embeddings = vlm.model.get_input_embeddings().weight
        for direction in (r, always):
            embeddings -= embeddings @ direction[:, None] * direction
        embeddings += 2 * always
        vlm.anatomy.layers[1].mlp.down_proj.weight[:, planted.NEURON] += 0.4 * r
        mlp = vlm.anatomy.layers[3].mlp
        mlp.gate_proj.weight[7], mlp.up_proj.weight[7] = always, r
        mlp.down_proj.weight[:, 7] = strength * d
    return vlm


def test_graddrop_finds_a_neuron_whose_effects_cancel():
    at = (1, planted.NEURON)
    question = between_pairs(planted.pairs(6))
    without, with_one = (estimate(cancelling(s), question).mean[at] for s in (0.0, 1.0))
    vlm = cancelling(float(without / (without - with_one)))
    attribution = estimate(vlm, question)
    dropped = estimate(vlm, question, "graddrop", groups=4)
    exact = patch(vlm, question, [at]).effects.mean()
    assert abs(exact) > 1  # it does matter
    assert abs(attribution.mean[at]) < 0.01 * abs(without)
    assert attribution.ranking(1) != [at]
    assert dropped.ranking(1) == [at]
    assert dropped.mean[at] == pytest.approx(without / 4, rel=0.5)  # one of four passes sees it


def test_graddrop_closes_sublayers_but_not_the_neurons_inside(vlm):
    """Two groups: the gradient of the last layer's neurons is there in both passes."""
    question = between_pairs(mixed_pairs(), scopes=("all",))
    plain, dropped = (estimate(vlm, question, m, groups=2) for m in ("atp", "graddrop"))
    scale = np.abs(plain.mean).max()
    per_example = [
        estimate(vlm, dataclasses.replace(question, **one), m, groups=2).mean[3]
        for one in (
            {
                "examples": question.examples[:1],
                "donors": question.donors[:1],
                "goals": question.goals[:1],
            },
        )
        for m in ("atp", "graddrop")
    ]
    np.testing.assert_allclose(*per_example, atol=1e-4 * scale)
    assert np.abs(plain.mean[0] - dropped.mean[0]).max() > 1e-2 * scale


# -- costs, groups, errors -------------------------------------------------------------------------


def test_costs_are_stated():
    vlm, question = planted.vlm(), between_pairs(planted.pairs(2))
    passes = []
    handle = vlm.model.register_forward_hook(lambda *_: passes.append(1))
    stated = {}
    for method in METHODS:
        passes.clear()
        found = estimate(vlm, question, method, steps=5, groups=3)
        # Two prompts make one batch: passes per batch are passes per example.
        assert found.forward_equivalents == len(passes) + 2 * found.steps
        stated[method] = found.forward_equivalents
    handle.remove()
    assert stated == {"atp": 4, "ig": 17, "graddrop": 8}


def test_goals_are_folded_into_groups():
    names = [f"goal {k}" for k in range(200)] * 2
    groups = goal_groups(names)
    assert groups.max() == MOST_GROUPS - 1
    assert (groups[:200] == groups[200:]).all()
    assert goal_groups(["b", "a", "b"]).tolist() == [1, 0, 1]


def test_sums_are_per_goal():
    vlm, pairs = planted.vlm(), planted.pairs(12)  # ten goals, two of them twice
    found = estimate(vlm, between_pairs(pairs))
    assert found.sums.shape == (10, tiny.LAYERS, tiny.FFN)
    assert sorted(found.counts) == [1] * 8 + [2] * 2
    at = (planted.LAYER, planted.NEURON)
    assert found.mean[at] == pytest.approx(found.sums[:, *at].sum() / 12)


def test_scopes_default_to_what_aligns():
    assert between_pairs(planted.pairs(3)).scopes == ("decision",)
    picture = [tiny.picture(k) for k in range(2)]
    example = Example("e", "help", images=(picture[0],), kind="malicious")
    twin = dataclasses.replace(example, images=(picture[1],), kind="benign")
    assert between_pairs([Pair(example, twin)] * 2).scopes == ("all",)


def test_bad_input_is_named():
    vlm, pairs = planted.vlm(), planted.pairs(3)
    question = between_pairs(pairs)
    with pytest.raises(UsageError, match="method is 'gradient'"):
        estimate(vlm, question, "gradient")  # pyright: ignore
    with pytest.raises(UsageError, match="steps must be at least 1, got 0"):
        estimate(vlm, question, "ig", steps=0)
    with pytest.raises(UsageError, match="groups must be at least 2"):
        estimate(vlm, question, "graddrop", groups=1)
    with pytest.raises(DataError, match="No prompt has a position in scope image"):
        estimate(vlm, between_pairs(pairs, scopes=("image",)))
    with pytest.raises(UsageError, match="at least 2 pairs, got 1"):
        between_pairs(pairs[:1])
    with pytest.raises(UsageError, match="base is 'both'"):
        between_pairs(pairs, "both")  # pyright: ignore
    with pytest.raises(UsageError, match="12 and 0"):
        against_means(vlm, planted.attacks(), [], means={})
    with pytest.raises(UsageError, match="pass one of them"):
        Counterfactual(question.examples, ("all",), question.goals)
    with pytest.raises(UsageError, match="3 prompts need as many donors, got 2"):
        dataclasses.replace(question, donors=question.donors[:2])
    with pytest.raises(UsageError, match=r"needs means\[0.ffn_neurons\]"):
        estimate(vlm, Counterfactual(question.examples, ("all",), question.goals, means={}))
    vlm.refusal_ids = []
    with pytest.raises(UsageError, match="refusal_ids is empty"):
        estimate(vlm, question)


def test_gradients_that_arent_finite_are_named():
    vlm = planted.vlm()
    with torch.no_grad():
        vlm.model.lm_head.weight[9, 0] = float("inf")
    with pytest.raises(FitError, match="aren't finite"):
        estimate(vlm, between_pairs(planted.pairs(3)))
