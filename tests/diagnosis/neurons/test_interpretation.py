"""What neurons write and fire on: against plain products and recorded activations."""

from dataclasses import astuple

import pytest
import torch

from care.data.example import Example
from care.diagnosis.neurons.interpretation import firings, patch_places, written_tokens
from care.errors import ModelError, SiteError
from care.models.hooks import read
from care.models.sites import Role, Site
from care.models.vlm import VLM
from kit import planted, tiny

NEURONS = [(0, 3), (3, 9), (1, 40)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_written_tokens_are_those_of_the_output_column(family):
    vlm = VLM(*tiny.FAMILIES[family](), name=family)
    found = written_tokens(vlm, NEURONS, k=4)
    for (layer, neuron), tokens in zip(NEURONS, found, strict=True):
        block = vlm.anatomy.layers[layer]
        column = block.mlp.down_proj.weight[:, neuron]
        if family == "gemma3":  # a norm follows its FFN
            column = block.post_feedforward_layernorm(column)
        logits = vlm.model.lm_head(vlm.model.get_decoder().norm(column))
        order = logits.argsort(descending=True).tolist()
        assert tokens.promoted == tuple(vlm.tokenizer.decode([k]) for k in order[:4])
        assert tokens.suppressed == tuple(vlm.tokenizer.decode([k]) for k in order[:-5:-1])


def test_the_planted_neuron_suppresses_refusals():
    vlm = planted.vlm(1, 8)
    (tokens,) = written_tokens(vlm, [(1, 8)], k=len(vlm.refusal_ids))
    assert set(tokens.suppressed) == {vlm.tokenizer.decode([k]) for k in vlm.refusal_ids}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm"])
def test_firings_are_the_greatest_recorded_activations(family):
    vlm = VLM(*tiny.FAMILIES[family](), name=family)
    examples = tiny.mixed_examples(5)
    found = firings(vlm, examples, NEURONS, k=3, batch_size=2)
    for (layer, neuron), fires in zip(NEURONS, found, strict=True):
        site, texts, patches = Site(layer, "ffn_neurons"), [], []
        for example in examples:
            batch = vlm.batch(example)
            with read(vlm, [site]) as seen:
                vlm.forward(batch)
            values = seen[site][0][0, :, neuron]
            at = int(values.abs().argmax())
            token = vlm.tokenizer.decode([int(batch.inputs["input_ids"][0, at])])
            texts.append((example.id, token, float(values[at])))
            visual = values[batch.roles[0] == Role.IMAGE]
            if len(visual):
                best = int(visual.abs().argmax())
                patches.append((example.id, 0, best // 2, best % 2, float(visual[best])))
        for ours, plain in ((fires.texts, texts), (fires.patches, patches)):
            plain.sort(key=lambda item: -abs(item[-1]))
            assert len(ours) == min(3, len(plain))
            for mine, theirs in zip(ours, plain, strict=False):
                assert mine.activation == pytest.approx(theirs[-1], abs=1e-4)
                # Prompts that begin alike are equally strong there, so their order is open.
                assert astuple(mine)[:-1] in [item[:-1] for item in plain]
    assert [len(fires.patches) for fires in found] == [2] * 3  # two prompts have a picture


def test_a_neuron_that_reads_one_patch_is_placed_there():
    """The neuron reads the direction of one visual token of one picture."""
    vlm = tiny.tiny_vlm()
    example = Example("e", "help", images=(tiny.picture(4),))
    batch = vlm.batch(example)
    with read(vlm, [Site(0, "mhsa_out")]):
        seen = []
        mlp = vlm.anatomy.layers[0].mlp
        handle = mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        vlm.forward(batch)
        handle.remove()
    place = int((batch.roles[0] == Role.IMAGE).nonzero()[2])  # the third of a 2 × 2 grid
    centred = seen[0][0] - seen[0][0].mean(0)
    with torch.no_grad():
        for part in (mlp.gate_proj, mlp.up_proj):
            part.weight[11] = centred[place]
    (fires,) = firings(vlm, [example], [(0, 11)])
    (patch,) = fires.patches
    assert (patch.example, patch.image, patch.row, patch.column) == ("e", 0, 1, 0)


def test_places_of_several_pictures_and_of_unknown_grids():
    vlm = tiny.tiny_vlm()
    two = Example("e", "help", images=(tiny.picture(1), tiny.picture(2)))
    batch = vlm.batch([two])
    assert patch_places(batch, 0, 2) == [(i, r, c) for i in (0, 1) for r in (0, 1) for c in (0, 1)]
    assert patch_places(vlm.batch(Example("t", "help")), 0, 0) == []
    # Visual tokens in more places than there are pictures are tiles whose order isn't known.
    spread = batch.roles.clone()
    spread[0, int((spread[0] == Role.IMAGE).nonzero()[3])] = Role.TEXT
    object.__setattr__(batch, "roles", spread)
    assert patch_places(batch, 0, 1) == []


def test_bad_input_is_named():
    vlm = tiny.tiny_vlm()
    with pytest.raises(SiteError, match="Neuron 64 of layer 0"):
        written_tokens(vlm, [(0, 64)])
    with pytest.raises(SiteError, match="4 layers"):
        firings(vlm, tiny.mixed_examples(1), [(9, 0)])
    vlm.model.get_decoder().norm = None
    with pytest.raises(ModelError, match="no final norm"):
        written_tokens(vlm, NEURONS)
