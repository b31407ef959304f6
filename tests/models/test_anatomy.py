"""Anatomy: sites, roles, and the residual equation on every supported family."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from care.errors import ModelError, SiteError
from care.models.anatomy import Anatomy, Role, Site, roles_of_inputs, scope_mask
from care.models.hooks import read
from care.models.vlm import VLM
from kit import tiny

IMAGE = tiny.SPECIAL.index("<image>")


@given(st.integers(0, 200), st.sampled_from(["ffn_out", "mhsa_out", "layer_out", "ffn_neurons"]))
def test_site_text_round_trip(layer, kind):
    site = Site(layer, kind)
    assert Site.parse(str(site)) == site


def test_sites_sort_by_layer_then_kind():
    sites = [Site(10, "ffn_out"), Site(2, "mhsa_out"), Site(2, "ffn_out")]
    assert [str(site) for site in sorted(sites)] == ["2.ffn_out", "2.mhsa_out", "10.ffn_out"]


@pytest.mark.parametrize("text", ["", "ffn_out", "16", "16.", "x.ffn_out", "-1.ffn_out", "1.mlp"])
def test_malformed_sites_are_refused(text):
    with pytest.raises(SiteError):
        Site.parse(text)


@pytest.mark.parametrize("layer", [-1, 1.0, True, "3"])
def test_a_layer_is_a_non_negative_integer(layer):
    with pytest.raises(SiteError, match="layer index"):
        Site(layer, "ffn_out")


def test_scope_masks():
    roles = torch.tensor([[0, 1, 2, 2, 1, 3]])
    assert scope_mask(roles, ["image"]).tolist() == [[False, False, True, True, False, False]]
    assert scope_mask(roles, ["text", "response"]).sum() == 3
    assert scope_mask(roles, ["all", "image"]).sum() == 5
    assert torch.equal(scope_mask(roles, "image"), scope_mask(roles, ["image"]))
    for wrong in ([], ["images"]):
        with pytest.raises(SiteError, match="Scope"):
            scope_mask(roles, wrong)


def test_the_decision_is_the_last_position_before_the_answer():
    pad, text, image, response = 0, 1, 2, 3
    roles = torch.tensor([[pad, text, image, text], [text, text, response, response]])
    places = scope_mask(roles, ["decision"]).nonzero().tolist()
    assert places == [[0, 3], [1, 1]]
    # One position at a time: the end of a prompt is a decision, an answer's token isn't.
    step = torch.tensor([[text], [response], [pad], [image]])
    assert scope_mask(step, ["decision"]).flatten().tolist() == [True, False, False, True]


def test_roles_in_prefill_and_decode():
    ids = torch.tensor([[0, 0, 9, IMAGE, IMAGE, 8], [7, IMAGE, 9, 9, 9, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    roles = roles_of_inputs(ids, mask, IMAGE)
    assert roles.tolist() == [[0, 0, 1, 2, 2, 1], [1, 2, 1, 1, 1, 1]]
    step = torch.tensor([[5], [0]])
    longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
    assert roles_of_inputs(step, longer, IMAGE, past=6).tolist() == [[3], [3]]
    # Rows that have finished are fed padding.
    assert roles_of_inputs(step, longer, IMAGE, past=6, pad_token_id=0).tolist() == [[3], [0]]
    # Without a 2-D mask only leading padding can be padding.
    full = torch.zeros(2, 1, 6, 6)
    assert roles_of_inputs(ids, full, IMAGE, pad_token_id=0)[0, :3].tolist() == [0, 0, 1]
    assert (roles_of_inputs(ids, None, IMAGE) != Role.PAD).all()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_anatomy_and_residual_equation(family):
    """layer_out − layer input = mhsa_out + ffn_out, and ffn_out comes from the neurons."""
    model, processor = tiny.FAMILIES[family]()
    vlm = VLM(model, processor, family)
    anatomy = vlm.anatomy
    assert (anatomy.n_layers, anatomy.width, anatomy.ffn_width) == (
        tiny.LAYERS,
        tiny.WIDTH,
        tiny.FFN,
    )
    assert anatomy.image_token_id == IMAGE
    last = tiny.LAYERS - 1  # deepstack adds to early layers outside of them
    kinds = ["mhsa_out", "ffn_out", "layer_out", "ffn_neurons"]
    sites = [Site(last, kind) for kind in kinds] + [Site(last - 1, "layer_out")]
    batch = vlm.batch(tiny.mixed_examples(3))
    with read(vlm, sites) as recorder:
        vlm.forward(batch)
    mhsa, ffn, layer, neurons, before = (recorder[site][0] for site in sites)
    real = batch.roles != Role.PAD
    torch.testing.assert_close((layer - before)[real], (mhsa + ffn)[real], rtol=1e-4, atol=1e-4)
    assert neurons.shape == (*batch.roles.shape, tiny.FFN)
    down = anatomy.module(sites[3])(neurons)
    if family != "gemma3":  # there a norm follows
        torch.testing.assert_close(down, ffn)


def test_unknown_layers_are_refused():
    anatomy = tiny.tiny_vlm().anatomy
    with pytest.raises(SiteError, match="0 to 3"):
        anatomy.module(Site(4, "ffn_out"))
    with pytest.raises(SiteError, match="No sites"):
        anatomy.check([])
    assert anatomy.sites("ffn_out") == [Site(layer, "ffn_out") for layer in range(4)]


def test_ffn_neurons_need_a_down_projection():
    model, _ = tiny.tiny_llava()
    layer = model.get_decoder().layers[1]
    layer.mlp = nn.Sequential(nn.Linear(32, 32))
    anatomy = Anatomy.of(model)
    anatomy.module(Site(1, "ffn_out"))
    with pytest.raises(SiteError, match="no down_proj"):
        anatomy.module(Site(1, "ffn_neurons"))


def test_text_only_models_are_refused():
    with pytest.raises(ModelError, match="takes no images"):
        Anatomy.of(tiny.tiny_llama())


def test_things_that_are_no_models_are_refused():
    with pytest.raises(ModelError, match="decoder"):
        Anatomy.of(nn.Linear(2, 2))


def test_a_wrong_layer_count_is_refused():
    model, _ = tiny.tiny_llava()
    model.config.text_config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="4 layers where the configuration says 7"):
        Anatomy.of(model)


def test_layers_without_attention_are_refused():
    model, _ = tiny.tiny_llava()
    del model.get_decoder().layers[2].self_attn
    with pytest.raises(ModelError, match=r"layer 2 .* has no self_attn"):
        Anatomy.of(model)


def test_a_model_without_a_head_is_refused():
    model, _ = tiny.tiny_llava()
    with pytest.raises(ModelError, match="head"):
        Anatomy.of(model.model)
