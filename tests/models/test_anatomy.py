"""Anatomy: where sites are, and the residual equation on every supported family."""

import pytest
import torch
from torch import nn

from care.errors import ModelError, SiteError
from care.models.anatomy import Anatomy
from care.models.blocks import final_norm
from care.models.hooks import read
from care.models.sites import Role, Site
from care.models.vlm import VLM
from kit import tiny
from kit.refusals import refusals

IMAGE = tiny.SPECIAL.index("<image>")


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


@torch.no_grad()
def test_the_final_norm_is_found_by_the_name_that_lfm2_gives_it():
    lfm2 = pytest.importorskip("transformers.models.lfm2")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 5}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    model = lfm2.Lfm2ForCausalLM(lfm2.Lfm2Config(**sizes, **heads, layer_types=["full_attention"]))
    norm, last = final_norm(model.get_decoder()), []
    model.get_decoder().layers[-1].register_forward_hook(lambda _, args, h: last.append(h))
    logits = model.eval()(torch.tensor([[1, 2, 3]])).logits
    assert norm is not None and final_norm(model.get_decoder().layers) is None
    torch.testing.assert_close(model.lm_head(norm(last[0])), logits)


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


def test_a_model_that_takes_nothing_without_a_picture_is_refused():
    model, _ = tiny.tiny_llava()
    model.forward = lambda pixel_values, input_ids=None, **more: None
    with pytest.raises(ModelError, match="takes no request without a picture, and generates from"):
        Anatomy.of(model)


def lacking(change):
    """The anatomy of a LLaVA after `change(model)`."""
    model, _ = tiny.tiny_llava()
    return Anatomy.of(change(model) or model)


def claim_seven(model):
    model.config.text_config.num_hidden_layers = 7


def forget_image_token(model):
    vars(model.config)["image_token_index"] = None  # which it doesn't let be set


def claim_encoder(model):
    model.config.is_encoder_decoder = True


def claim_canvas(model):
    model.config.canvas_length = 256


def add_streams(name):
    def add(model):
        setattr(model.get_decoder().layers[1], name, nn.Identity())

    return add


def lose_attention(model):
    del model.get_decoder().layers[2].self_attn


test_other_models_are_refused = refusals(
    (ModelError, "decoder", lambda: Anatomy.of(nn.Linear(2, 2))),
    (ModelError, "names no image token", lambda: lacking(forget_image_token)),
    (ModelError, "an encoder reads the request", lambda: lacking(claim_encoder)),
    (ModelError, "refines a canvas of many tokens at once", lambda: lacking(claim_canvas)),
    (ModelError, "several residual streams", lambda: lacking(add_streams("attn_hc"))),
    (ModelError, "several residual", lambda: lacking(add_streams("attn_hyper_connection"))),
    (ModelError, "4 layers where the configuration says 7", lambda: lacking(claim_seven)),
    (ModelError, "layer 2 .* has no mixer .self_attn", lambda: lacking(lose_attention)),
    (ModelError, "head", lambda: lacking(lambda model: model.model)),
)
