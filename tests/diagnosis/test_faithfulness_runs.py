"""What sets attacks apart, with sites or neurons removed: against ablations done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from care.defenses.neuron_suppression import NeuronSuppression
from care.diagnosis.ablation import ablate
from care.diagnosis.activation_means import collect
from care.diagnosis.faithfulness_runs import Compared
from care.diagnosis.neurons.interventions import neuron_means
from care.models.sites import Site
from kit import planted


@pytest.fixture(scope="module")
def vlm():
    return planted.vlm()


@pytest.mark.parametrize("paired", [True, False])
def test_nothing_removed_is_the_difference_of_the_runs(vlm, paired):
    pairs = planted.pairs(5)
    compared = Compared.of_pairs(pairs)
    if not paired:
        compared = Compared(compared.attacks, compared.benign[:3], paired=False)
    own = vlm.refusal_log_odds(list(compared.attacks))
    other = vlm.refusal_log_odds(list(compared.benign))
    expected = own - (other if paired else other.mean())
    sites = vlm.anatomy.sites("ffn_out")
    assert compared.without_sites(vlm, sites)([]) == pytest.approx(expected, abs=1e-4)
    assert compared.without_neurons(vlm)([]) == pytest.approx(expected, abs=1e-4)
    assert len(compared.goals) == len(expected) == 5


def test_sites_are_removed_together_by_their_means(vlm):
    compared = Compared.of_pairs(planted.pairs(4))
    sites = [Site(1, "ffn_out"), Site(3, "mhsa_out")]
    means = collect(vlm, compared.examples, sites).means
    with ablate(vlm, sites, "mean", means):
        values = vlm.refusal_log_odds(compared.examples)
    found = compared.without_sites(vlm, sites)(sites[::-1])
    assert found == pytest.approx(compared.difference(values), abs=1e-3)


def test_neurons_are_removed_together_by_their_means():
    vlm = planted.vlm(harm=0.0)  # attacks differ in what the neuron does alone
    compared = Compared.of_pairs(planted.pairs(4))
    neurons = [(planted.LAYER, planted.NEURON), (1, 7)]
    means = neuron_means(vlm, compared.examples)
    with NeuronSuppression.of(vlm, neurons, "mean", means).applied(vlm):
        values = vlm.refusal_log_odds(compared.examples)
    found = compared.without_neurons(vlm)(neurons)
    assert found == pytest.approx(compared.difference(values), abs=1e-3)
    assert np.abs(found).max() < 0.25 * np.abs(compared.without_neurons(vlm)([])).min()
