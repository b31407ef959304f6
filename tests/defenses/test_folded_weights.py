"""Edits folded into weights: on every family what the hooks give, and names of what can't be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from care.defenses.folded_weights import FoldedWeights, bias_settings, folded, folds, unfoldable
from care.defenses.linear_parts import affine_maps
from care.errors import UsageError
from care.models.hooks import read
from care.models.sites import Site
from care.models.vlm import VLM
from kit import tiny
from kit.merging import check_merged, linear_repair, logits_under

FFN, NEURONS = Site(1, "ffn_out"), Site(1, "ffn_neurons")
HELD = {"ffn_out": True, "mhsa_out": True, "ffn_neurons": True, "layer_out": False}
AFTER_NORMS = HELD | {"ffn_out": False, "mhsa_out": False}


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family(family, tmp_path):
    vlm = VLM(*tiny.FAMILIES[family](), name=family)
    assert check_merged(vlm, tmp_path) == (AFTER_NORMS if family == "gemma3" else HELD)


def test_two_sites_of_one_map_are_folded_in_their_order(vlm):
    repair = linear_repair(vlm, FFN, NEURONS, centred=True)
    [fold] = folds(vlm, affine_maps(repair))
    assert fold.name.endswith("layers.1.mlp.down_proj") and fold.down.shape == (6, tiny.FFN)
    examples = tiny.mixed_examples(3)
    expected, said = logits_under(vlm, repair, examples)
    found, answers = logits_under(vlm, FoldedWeights([fold]), examples)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert answers == said


def test_a_bias_that_is_there_is_edited_too():
    vlm = tiny.tiny_vlm()
    linear = vlm.anatomy.layers[1].mlp.down_proj
    linear.bias = nn.Parameter(torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(1)))
    repair = linear_repair(vlm, FFN)  # even without a centre
    made = folds(vlm, affine_maps(repair))
    assert made[0].shifts and bias_settings(vlm, made) == {}
    expected, _ = logits_under(vlm, repair, tiny.mixed_examples(2))
    found, _ = logits_under(vlm, FoldedWeights(made), tiny.mixed_examples(2))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_in_half_precision_weights_are_as_near_as_their_rounding():
    model, processor = tiny.tiny_llava()
    vlm = VLM(model.to(torch.bfloat16), processor)
    repair = linear_repair(vlm, FFN, centred=True)
    made = folds(vlm, affine_maps(repair))
    batch = vlm.batch(tiny.mixed_examples(3))
    rows = []
    for defense in (repair, FoldedWeights(made)):
        with defense.applied(vlm), read(vlm, [FFN]) as recorder:
            vlm.forward(batch)
        rows.append(recorder.rows(FFN).float())
    assert made[0].weight().dtype == torch.bfloat16
    apart = (rows[0] - rows[1]).norm() / rows[0].norm()
    assert apart < 2e-2


def test_the_model_is_as_before_whatever_happens(vlm):
    made = folds(vlm, affine_maps(linear_repair(vlm, FFN, centred=True)))
    linear = made[0].linear
    before = linear.weight, linear.bias
    with pytest.raises(RuntimeError), folded(made):
        assert linear.bias is not None and linear.weight is not before[0]
        raise RuntimeError
    assert linear.weight is before[0] and linear.bias is before[1]


def test_what_no_linear_map_writes_is_named(vlm):
    layer = Site(1, "layer_out")
    assert "a sum that no linear map writes" in unfoldable(vlm, [layer, FFN])[layer].why
    with pytest.raises(UsageError, match=r"The edit at 1\.layer_out can't be folded"):
        folds(vlm, affine_maps(linear_repair(vlm, layer)))
    gemma = VLM(*tiny.tiny_gemma3())
    assert "comes out of a Gemma3RMSNorm" in unfoldable(gemma, [FFN])[FFN].why


def test_names_prove_nothing():
    vlm = tiny.tiny_vlm()
    mlp = vlm.anatomy.layers[1].mlp
    mlp.register_forward_hook(lambda module, given, out: 2 * out)  # as a scale after it would
    assert list(unfoldable(vlm, [FFN])) == [FFN]


def test_a_map_that_others_are_added_to_in_place_does_not_write_the_site():
    vlm = tiny.tiny_vlm()
    mlp = vlm.anatomy.layers[1].mlp
    mlp.register_forward_hook(lambda module, given, out: out.add_(given[0]))
    why = unfoldable(vlm, [FFN])[FFN].why
    assert why == "what is at 1.ffn_out comes out of a LlamaMLP, not of one linear map"


def test_quantised_weights_are_named():
    vlm = tiny.tiny_vlm()
    linear = vlm.anatomy.layers[1].mlp.down_proj
    plain = linear.weight.data.clone()
    linear.forward = lambda x: x @ plain.T
    linear.weight = nn.Parameter(linear.weight.data.to(torch.int8), requires_grad=False)
    assert "quantised (int8)" in unfoldable(vlm, [FFN])[FFN].why


def test_a_centre_needs_a_place_for_a_bias():
    vlm = VLM(*tiny.tiny_internvl())
    made = folds(vlm, affine_maps(linear_repair(vlm, FFN, centred=True)))
    with pytest.raises(UsageError, match="no place for one there; leave it out with --drop centr"):
        bias_settings(vlm, made)
    assert bias_settings(vlm, folds(vlm, affine_maps(linear_repair(vlm, FFN)))) == {}
    llava = tiny.tiny_vlm()
    made = folds(llava, affine_maps(linear_repair(llava, FFN, Site(2, "mhsa_out"), centred=True)))
    assert bias_settings(llava, made) == {"mlp_bias": True, "attention_bias": True}


def test_folds_hold_float64():
    vlm = tiny.tiny_vlm()
    [fold] = folds(vlm, affine_maps(linear_repair(vlm, FFN)))
    weight = fold.linear.weight.detach().double().numpy()
    subspace = linear_repair(vlm, FFN).channels[0].subspace
    q = subspace.basis.astype(np.float64)
    exact = weight - 1.2 * q @ (q.T @ weight)
    np.testing.assert_allclose((fold.up @ fold.down).numpy() + weight, exact, atol=1e-12)
