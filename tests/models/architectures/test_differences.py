"""Where families differ: parts of a layer, pictures beside the text, types of tokens."""

from functools import cache

import pytest
import torch

from care.errors import DataError, SiteError
from care.models.hooks import read
from care.models.sites import Site
from care.models.vlm import VLM
from kit import tiny
from kit.architectures.building import build
from kit.architectures.case import Case
from kit.architectures.checks import likelihood, neurons, sites
from kit.architectures.families import FAMILIES
from kit.refusals import refused


@cache
def case(name):
    """A tiny model of one family."""
    family = FAMILIES[name]
    try:
        parts = build(name, family)
    except ModuleNotFoundError as error:  # of a processor that had no way without it then
        pytest.skip(f"this release of transformers can't build {name}: {error}")
    except ValueError as error:
        if "Unrecognized model" not in str(error):
            raise
        pytest.skip(f"this release of transformers doesn't know {name}")
    return Case(VLM(*parts, name), family.adds, None, family.apart)


@pytest.mark.parametrize("name", ["qwen3_5", "llama4", "mllama", "lfm2_vl", "gemma4"])
def test_parts_of_a_layer_are_found_whatever_they_are_called(name):
    sites(case(name))


def test_layers_that_attend_to_the_picture_alone_are_not_counted():
    anatomy = case("mllama").vlm.anatomy
    assert anatomy.n_layers == 3 and len(anatomy.decoder.layers) == 4
    assert not any(hasattr(layer, "cross_attn") for layer in anatomy.layers)


@pytest.mark.parametrize("name", ["mllama", "paligemma"])
def test_an_answer_changes_nothing_before_it(name):
    likelihood(case(name))


@pytest.mark.parametrize("name", ["mllama", "paligemma"])
def test_pictures_beside_none_are_refused_where_they_would_be_mixed_up(name):
    with refused(DataError, "'e0' has no image, .* batch them apart"):
        case(name).vlm.batch(tiny.mixed_examples(2))


@pytest.mark.parametrize("name", ["llama4", "dots3_note"])
def test_neurons_of_experts_are_told_by_expert(name):
    neurons(case(name))
    anatomy = case(name).vlm.anatomy
    assert not all(anatomy.neurons.experts)  # some layers have a plain FFN
    layer = anatomy.neurons.experts.index(True)
    with refused(SiteError, f"Site {layer}.ffn_neurons is one for each expert; name one"):
        anatomy.module(Site(layer, "ffn_neurons"))


def test_experts_that_cant_be_reached_are_refused():
    anatomy = case("inkling_mm_model").vlm.anatomy
    anatomy.module(Site(0, "ffn_out"))
    with refused(SiteError, "the last map of InklingSharedExperts isn't a linear one; use ffn_out"):
        anatomy.module(Site(0, "ffn_neurons", 0))


def test_positions_in_one_row_are_told_apart_or_refused():
    vlm, batch = case("llama4").vlm, case("llama4").batch
    with read(vlm, [Site(1, "ffn_out")]) as recorder:
        vlm.forward(batch)
        assert recorder[Site(1, "ffn_out")][0].shape[:2] == batch.roles.shape
        with refused(SiteError, "don't fit"), vlm.known_roles(batch.roles[:, 1:]):
            vlm.model(**batch.inputs)


def test_pictures_go_as_a_list_to_processors_that_refuse_them_by_prompt():
    vlm, examples = tiny.tiny_vlm(), [e for e in tiny.mixed_examples(4) if e.images]
    by_prompt, processor = vlm.batch(examples), vlm.processor

    class Plain:
        tokenizer, apply_chat_template = processor.tokenizer, processor.apply_chat_template

        def __call__(self, images, **options):
            if isinstance(images[0], list):
                raise ValueError("nested images aren't supported")
            return processor(images=images, **options)

    vlm.processor = Plain()
    assert torch.equal(vlm.batch(examples).inputs["pixel_values"], by_prompt.inputs["pixel_values"])
