"""Answers are greedy whatever the settings that come with a model, in both loops of `decoding`."""

from functools import partial

import pytest
import torch
from transformers import GenerationConfig

from care.defenses.repair.channel import Channel
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace
from care.models import decoding, prompt_cache
from care.models.sites import Site
from care.models.vlm import VLM
from kit import tiny

EXAMPLES = tiny.mixed_examples(3)
NEW_TOKENS = 12

ODD = {
    "bad_words_ids": [[[50]], [[60, 61], [7]]],
    "cache_implementation": ["static", "offloaded", "hybrid", "paged"],
    "custom_generate": ["someone/else"],
    "exponential_decay_length_penalty": [(2, 1.7)],
    "forced_eos_token_id": [1, [1, 2]],
    "force_words_ids": [[[50, 51]]],
    "max_time": [0.0, 1e-9],
    "output_attentions": [True],
    "sequence_bias": [{(50,): 20.0}, [[[50], -20.0]]],
    "stop_strings": ["e", ["a", "t"]],
    "watermarking_config": [{"greenlist_ratio": 0.25, "bias": 20.0}],
}
"""Values that a field alone takes; all others are tried with `COMMON`."""
COMMON = [True, 3, 1.7, list(range(40, 300))]

HONOURED = {"eos_token_id"}
"""What ends an answer is the model's own."""


def fields():
    """Every field that this release of transformers knows."""
    return sorted(set(vars(GenerationConfig())) - HONOURED)


def shallow():
    """A model of one layer, since hundreds of settings are tried."""
    model, processor = tiny.tiny_llava()
    text = model.config.get_text_config()
    model.get_decoder().layers = model.get_decoder().layers[:1]
    text.num_hidden_layers = 1
    return VLM(model, processor, "shallow")


@pytest.mark.slow
def test_no_setting_of_the_model_makes_the_loops_disagree(monkeypatch):
    vlm, examples = shallow(), EXAMPLES[::2]
    greedy = vlm.generate(examples, max_new_tokens=8)
    monkeypatch.setattr(prompt_cache, "PLAIN_POSITIONS", frozenset())
    own, changed = vlm.model.generation_config, {}
    for name in fields():
        for value in ODD.get(name, COMMON):
            vlm.model.generation_config = made = GenerationConfig(**own.to_diff_dict())
            setattr(made, name, value)
            try:
                if vlm.generate(examples, max_new_tokens=8) != greedy:
                    changed[name] = value
            except Exception as error:
                changed[name] = error
            assert vlm.model.generation_config is made
    assert not changed
    assert len(set(greedy)) == 2 and len(fields()) > 50


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_settings_that_are_shipped_change_no_answer(family):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    greedy = vlm.generate(EXAMPLES, max_new_tokens=NEW_TOKENS)
    settings = vlm.model.generation_config
    settings.repetition_penalty, settings.num_beams, settings.min_length = 1.5, 3, 400
    assert vlm.generate(EXAMPLES, max_new_tokens=NEW_TOKENS) == greedy
    assert settings.num_beams == 3


@pytest.mark.parametrize("temperature", [1e-300, 1e-40])
def test_hardly_any_temperature_is_greedy(temperature):
    logits = torch.tensor([[-90.0, 69.9, 70.0], [2.9, -torch.inf, 3.0]])
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    rows = decoding.AnswerRows(frozenset(), str, None, temperature, generators)
    assert rows.pick(logits, [0, 1]).tolist() == [2, 2]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_model_s_own_end_tokens_are_heeded(family):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    example = EXAMPLES[0]
    whole = vlm.answers(example, max_new_tokens=NEW_TOKENS)[0]
    ids = vlm.response_ids(whole.text)
    vlm.model.generation_config.eos_token_id = [1, ids[3]]
    (cut,) = vlm.answers(example, max_new_tokens=NEW_TOKENS)
    assert cut.ended and cut.tokens < whole.tokens and whole.text.startswith(cut.text)


def test_settings_are_put_back_whatever_happens(monkeypatch):
    vlm = VLM(*tiny.tiny_qwen2_5_vl())
    before = vlm.model.generation_config
    during = []

    def fails(**options):
        during.append(vlm.model.generation_config)
        raise RuntimeError("broken kernel")

    monkeypatch.setattr(vlm.model, "forward", fails)
    monkeypatch.setattr(vlm.model, "generate", fails)
    with pytest.raises(RuntimeError, match="broken kernel"):
        vlm.generate(EXAMPLES)
    assert during[0] is not before and vlm.model.generation_config is before


def test_settings_of_a_part_that_generates_are_left_out_too():
    vlm = VLM(*tiny.tiny_qwen2_5_vl())
    part = vlm.model.model.language_model
    part.generation_config = before = GenerationConfig(repetition_penalty=3.0)
    with decoding.neutral_settings(vlm.model):
        assert part.generation_config.repetition_penalty is None
    assert part.generation_config is before


def test_a_generate_function_that_came_with_the_weights_is_not_called():
    """Nor under a repair, which edits the right positions all the same."""
    vlm = VLM(*tiny.tiny_qwen2_5_vl())
    greedy = vlm.generate(EXAMPLES, max_new_tokens=4)
    width = vlm.anatomy.site_width(Site(1, "layer_out"))
    channel = Channel(Site(1, "layer_out"), "text", ("decision",), random_subspace(width, 4))
    vlm.model.generate = came_with_the_weights = partial(pytest.fail, "was called")
    assert vlm.generate(EXAMPLES, max_new_tokens=4) == greedy
    with Repair((channel,)).applied(vlm) as stats:
        vlm.generate(EXAMPLES, max_new_tokens=4)
    assert stats.tokens == len(EXAMPLES)
    assert vlm.model.generate is came_with_the_weights
