"""Neurons of experts: reached one by one, estimated, suppressed and saved as what they are."""

import os
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from care.data.example import Example, ExampleKind
from care.defenses.neuron_suppression import NeuronSuppression
from care.diagnosis.neurons.activation_patching import patch
from care.diagnosis.neurons.attribution_patching import estimate
from care.diagnosis.neurons.interventions import Counterfactual, against_means, neuron_means
from care.diagnosis.neurons.search import NeuronConfig, find_neurons
from care.errors import ArtefactError, SiteError
from care.models.experts import reaching
from care.models.hooks import edit, hooked, read
from care.models.neuron_table import NeuronTable
from care.models.sites import DECISION, Site
from care.models.vlm import VLM
from care.statistics.sampling import SamplingSpec
from care.typed import to_tree
from kit import tiny
from kit.architectures.building import build
from kit.architectures.families import FAMILIES
from kit.experts import written
from kit.refusals import refused


@cache
def model(name: str = "aria") -> VLM:
    """A tiny model whose layers have four experts, and a shared one."""
    try:
        vlm = VLM(*build(name, FAMILIES[name]), name)
    except (ModuleNotFoundError, KeyError) as error:  # Aria's processor once took one size alone
        if isinstance(error, KeyError) and os.environ.get("CARE_LIBRARIES") != "oldest":
            raise
        pytest.skip(f"this release of transformers can't build {name}: {error!r}")
    with torch.no_grad():  # as they begin, weights are so small that neurons do nothing
        for weight in vlm.anatomy.layers.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    return vlm


def prompts(n: int, kind: ExampleKind = "malicious") -> list[Example]:
    """Requests without pictures, of different words."""

    word = {"malicious": "bad", "benign": "good"}[kind]
    return [
        Example(f"{word}{k}", f"{word} {k} " * (k + 1), kind=kind, suite=kind) for k in range(n)
    ]


# -- places ----------------------------------------------------------------------------------------


def test_every_neuron_has_a_place_and_every_place_a_neuron():
    table = NeuronTable(((5,), (2, 2, 3)), (False, True))
    assert table.shape == (2, 7) and table.total == 12 and table.real.sum() == 12
    every = [(0, 4), (1, 0, 1), (1, 1, 0), (1, 2, 2)]
    assert [table.place(each) for each in every] == [(0, 4), (1, 1), (1, 2), (1, 6)]
    assert table.neurons(table.flat(every)) == every
    assert [str(site) for site in table.columns] == [
        "0.ffn_neurons",
        "1.ffn_neurons.0",
        "1.ffn_neurons.1",
        "1.ffn_neurons.2",
    ]
    assert Site.parse("1.ffn_neurons.2") == Site(1, "ffn_neurons", 2)


@pytest.mark.parametrize(
    ("neuron", "said"),
    [
        ((2, 0), "Layer 2 does not exist"),
        ((0, 1, 2), "is no neuron of layer 0, whose FFN is a plain one; write"),
        ((1, 2), "is no neuron of layer 1, whose FFN is one of experts; write"),
        ((1, 3, 0), "Expert 3 of layer 1 does not exist: it has 3, 0 to 2"),
        ((1, 0, 2), "Neuron 2 of expert 0 of layer 1 does not exist: it has 2"),
        ((0, 5), "Neuron 5 of layer 0 does not exist: it has 5, 0 to 4"),
    ],
)
def test_a_neuron_that_isnt_there_is_named(neuron, said):
    with refused(SiteError, said):
        NeuronTable(((5,), (2, 2, 3)), (False, True)).place(neuron)


# -- reading and editing ---------------------------------------------------------------------------


def test_neurons_are_active_only_where_the_router_sends_a_token():
    vlm = model()
    sites = [site for site in vlm.anatomy.neurons.columns if site.layer == 1]
    sent: dict[Site, torch.Tensor] = {}
    values: dict[Site, torch.Tensor] = {}

    def see(site, h, context):
        values[site] = h
        sent[site] = context.sent

    batch = vlm.batch(prompts(3))
    with hooked(vlm, {s: (lambda h, context, s=s: see(s, h, context)) for s in sites}):
        vlm.forward(batch)
    *routed, shared = sites
    assert sent[shared] is None
    chosen = torch.stack([sent[site] for site in routed]).sum(0)
    assert (chosen == 2).all()  # experts a token
    for site in routed:
        active = (values[site] != 0).any(-1)
        assert torch.equal(active, sent[site])


def test_an_edit_reaches_only_those_tokens_and_is_counted_there():
    vlm, site = model(), Site(1, "ffn_neurons", 0)
    batch = vlm.batch(prompts(3))
    with edit(vlm, {site: lambda h, roles: h + 1}) as stats:
        changed = written(vlm, batch, 1)
    with read(vlm, [site]) as recorder:
        before = written(vlm, batch, 1)
    there = (recorder[site][0] != 0).any(-1)
    assert there.any() and not there.all()
    assert torch.equal((changed != before).any(-1).reshape(there.shape), there)
    assert stats[site].tokens == int((there & (batch.roles != 0)).sum())


def test_what_computes_something_else_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(2, 8, 3))
            self.down_proj = nn.Parameter(torch.randn(2, 3, 4))
            self.act_fn = nn.SiLU()

        def forward(self, hidden_states, top_k_index, top_k_weights):
            return hidden_states

    odd = Odd()
    with (
        refused(SiteError, "neurons of Odd can't be reached: its experts compute"),
        reaching(odd, {}),
    ):
        pass
    assert "forward" not in vars(odd)


# -- effects ---------------------------------------------------------------------------------------


def test_means_are_over_the_tokens_that_are_sent():
    vlm, site = model(), Site(2, "ffn_neurons", 1)
    examples = prompts(4)
    means = neuron_means(vlm, examples)
    with read(vlm, [site]) as recorder:
        batch = vlm.batch(examples)
        vlm.forward(batch)
    h, roles = recorder[site]
    there = (h != 0).any(-1) & (roles == 1)
    there[:, -1] = False  # decisions are a class of their own
    torch.testing.assert_close(means[site][1], h[there].mean(0), rtol=1e-4, atol=1e-5)
    assert means[site].shape == (5, 64) and torch.isfinite(means[site][DECISION]).all()


def test_estimates_are_those_of_plain_autograd():
    vlm, examples = model(), prompts(3)
    means = neuron_means(vlm, examples)
    question = Counterfactual(tuple(examples), ("decision",), ("a", "b", "c"), means=means)
    found = estimate(vlm, question, batch_size=3)
    site = Site(2, "ffn_neurons", 2)
    expected = np.zeros(64)
    for example in examples:
        batch = vlm.batch(example)
        kept = {}

        def add(h, roles, kept=kept):
            kept["a"], kept["zero"] = h.detach(), torch.zeros_like(h, requires_grad=True)
            return h + kept["zero"]

        with edit(vlm, {site: add}):
            odds = vlm.log_odds(vlm.forward(batch, logits_to_keep=1, grad=True)[:, -1])
        odds.sum().backward()
        gradient = kept["zero"].grad[0, -1]
        expected += ((means[site][DECISION] - kept["a"][0, -1]) * gradient).numpy() / 3
    vlm.model.zero_grad()
    assert np.abs(expected).max() > 0
    scale = np.abs(expected).max()
    columns = vlm.anatomy.neurons.columns[site]
    np.testing.assert_allclose(found.mean[2, columns], expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("method", ["ig", "graddrop"])
def test_other_methods_run_on_experts(method):
    vlm = model()
    question = against_means(vlm, prompts(2), prompts(2, "benign"), scopes=("decision",))
    found = estimate(vlm, question, method, steps=2, groups=2)
    assert np.isfinite(found.mean).all() and found.mean.any()


def test_exact_effects_are_those_of_the_weights():
    vlm, examples = model(), prompts(3)
    zeros = {site: torch.zeros(5, 64) for site in vlm.anatomy.neurons.columns}
    question = Counterfactual(tuple(examples), ("all",), ("a", "b", "c"), means=zeros)
    neurons = [(1, 0, 5), (2, 3, 7), (3, 4, 1)]  # the last one of the shared expert
    effects = patch(vlm, question, neurons).effects
    before = vlm.refusal_log_odds(examples)
    for row, neuron in zip(effects, neurons, strict=True):
        column = vlm.anatomy.output_columns(Site(neuron[0], "ffn_neurons", neuron[1]))[:, neuron[2]]
        kept = column.clone()
        with torch.no_grad():
            column.zero_()
            after = vlm.refusal_log_odds(examples)
            column.copy_(kept)
        np.testing.assert_allclose(row, after - before, atol=1e-4)


def test_a_search_names_experts_and_their_suppression_is_saved(tmp_path):
    vlm = model()
    attacks, benign = prompts(6), prompts(6, "benign")
    question = against_means(vlm, attacks, benign, scopes=("decision",))
    config = NeuronConfig(verified=8, described=1, sampling=SamplingSpec(resamples=100))
    report = find_neurons(vlm, question, config=config)
    assert report.n_neurons == vlm.anatomy.neurons.total == 4 * 5 * 64
    assert all(len(item.key) == 3 for item in (*report.found, *report.controls))
    assert {"expert"} <= to_tree(report.found[0]).keys()
    made = NeuronSuppression.of(
        vlm, [item.key for item in report.found], "mean", question.means, scopes=("all",)
    )
    made.save(tmp_path)
    loaded = NeuronSuppression.load(tmp_path, vlm)
    assert loaded.neurons == made.neurons and loaded.digest() == made.digest()
    with loaded.applied(vlm):
        now = vlm.refusal_log_odds(attacks)
    with made.applied(vlm):
        np.testing.assert_array_equal(now, vlm.refusal_log_odds(attacks))
    assert (now != vlm.refusal_log_odds(attacks)).any()
    with refused(ArtefactError, "the neurons are of a model of 4 layers with 320 each"):
        loaded.check(tiny.tiny_vlm())
