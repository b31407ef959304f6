"""First tokens under edits, from the first layer that an edit can change on."""

import numpy as np
import pytest
import torch

from care.models import vlm as of_vlms
from care.models.first_pass import FirstPass
from care.models.prompt_cache import PLAIN_POSITIONS
from care.models.sites import Site
from care.models.vlm import VLM
from kit import tiny
from kit.repairs import SITES, repair

EXAMPLES = [e for e in tiny.mixed_examples(8) if e.images]
PLACES = [
    (Site(0, "ffn_out"),),
    (Site(0, "layer_out"),),
    (Site(1, "mhsa_out"), Site(2, "layer_out")),
    (Site(2, "layer_out"), Site(1, "layer_out")),
    SITES,
]


@pytest.fixture(scope="module", params=sorted(PLAIN_POSITIONS))
def vlm(request):
    return VLM(*tiny.FAMILIES[request.param](), request.param)


def calls_of(vlm):
    """How often each layer was really computed, counted while the test goes on."""
    counts = [0] * vlm.anatomy.n_layers
    for place, layer in enumerate(vlm.anatomy.layers):
        forward = layer.mlp.forward

        def counting(*args, place=place, forward=forward, **kwargs):
            counts[place] += 1
            return forward(*args, **kwargs)

        layer.mlp.forward = counting
    return counts


def test_log_odds_are_those_of_whole_passes_to_the_bit(vlm):
    prompts = vlm.prefill(EXAMPLES)
    first = FirstPass(vlm, prompts)
    assert (first.bare == vlm.refusal_log_odds(prompts)).all()
    for sites in [*PLACES, *PLACES[::-1]]:  # nothing of one is left for the next
        with repair(3, sites=sites).applied(vlm):
            expected = vlm.refusal_log_odds(prompts)
            assert (first.log_odds(sites) == expected).all()
        assert (expected != first.bare).all()
    assert (first.bare == vlm.refusal_log_odds(prompts)).all()


def test_only_the_layers_after_the_first_edit_are_computed(vlm):
    first, counts = FirstPass(vlm, vlm.prefill(EXAMPLES)), calls_of(vlm)
    layers = vlm.anatomy.n_layers
    for site, start in ((Site(1, "ffn_out"), 1), (Site(1, "layer_out"), 2)):
        counts[:] = [0] * layers
        with repair(sites=(site,)).applied(vlm):
            first.log_odds([site])
        assert counts == [0] * start + [1] * (layers - start)


def test_prompts_in_several_batches_are_passed_through_whole():
    llava, site = tiny.tiny_vlm(), Site(2, "layer_out")
    prompts = llava.prefill(tiny.mixed_examples(8), batch_size=3)
    first, counts = FirstPass(llava, prompts), calls_of(llava)
    with repair(sites=(site,)).applied(llava):
        assert (first.log_odds([site]) == llava.refusal_log_odds(prompts)).all()
    assert counts[0] == 2 * len(prompts.parts)


@pytest.mark.parametrize("full", ["at first", "later"])
def test_a_pass_that_does_not_fit_is_halved(monkeypatch, full):
    llava, site = tiny.tiny_vlm(), Site(2, "layer_out")
    prompts, logits, most = llava.prefill(EXAMPLES), of_vlms.first_logits, 2

    def limited(model, roles, start):
        found = logits(model, roles, start)
        if len(start) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    with repair(sites=(site,)).applied(llava):
        expected = llava.refusal_log_odds(prompts)
    if full == "at first":
        monkeypatch.setattr(of_vlms, "first_logits", limited)
    first = FirstPass(llava, prompts)
    monkeypatch.setattr(of_vlms, "first_logits", limited)
    with repair(sites=(site,)).applied(llava):
        np.testing.assert_allclose(first.log_odds([site]), expected, rtol=1e-5)
