"""Prompt and answer together fit into what a model can read; what was cut there is marked."""

import warnings
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, Gemma3TextConfig, GPT2Config, LlamaConfig, MptConfig

from care import Example, Suite
from care.errors import DataError
from care.evaluation.runner import evaluate
from care.judges.rules import RulesJudge
from care.models.context import context_limit
from care.models.vlm import VLM
from kit import tiny

LIMIT = 40
LOOPS = ["llava", "gemma3"]
"""Families that run through the loop of our own and through the library's, with sliding windows."""


def endless(family, limit=LIMIT):
    """A model that never ends an answer and states this limit."""
    model, processor = tiny.FAMILIES[family]()
    model.config.get_text_config().max_position_embeddings = limit
    model.generation_config.eos_token_id = processor.tokenizer.eos_token = None
    return VLM(model, processor, family)


def of_length(vlm, tokens):
    """A request whose prompt has this many tokens."""
    template = int(vlm.batch(Example("e", "x")).roles.shape[1]) - 1
    example = Example(f"n{tokens}", "x" * (tokens - template))
    assert vlm.batch(example).roles.shape[1] == tokens
    return example


MODELS = {family: endless(family) for family in LOOPS}


@pytest.mark.parametrize("family", LOOPS)
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(5, LIMIT - 1), min_size=1, max_size=4), most=st.integers(1, 30))
def test_no_answer_goes_beyond_the_context(family, lengths, most):
    vlm = MODELS[family]
    examples = [of_length(vlm, length) for length in lengths]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        answers = vlm.answers(examples, max_new_tokens=most)
    said = [str(warning.message) for warning in said if warning.category is UserWarning]
    cut = [LIMIT - length < most for length in lengths]
    for answer, length, full in zip(answers, lengths, cut, strict=True):
        assert answer.prompt_tokens == length
        assert answer.tokens == min(most, LIMIT - length)
        assert (answer.ended, answer.context_full) == (False, full)
    told = f"{sum(cut)} of {len(cut)} answers were cut because {family} can read no more than 40"
    assert said == [f"{told} tokens; shorten the prompts."] if any(cut) else not said


@pytest.mark.parametrize("family", LOOPS)
def test_answers_up_to_the_limit_are_those_without_one(family):
    vlm, free = MODELS[family], endless(family, 512)
    examples = [of_length(vlm, length) for length in (12, 30, 39)]
    whole = free.answers(examples, max_new_tokens=20)
    with pytest.warns(UserWarning, match="2 of 3 answers were cut"):
        cut = vlm.answers(examples, max_new_tokens=20)
    assert [answer.tokens for answer in cut] == [20, 10, 1] and cut[0] == whole[0]
    assert all(long.text.startswith(short.text) for long, short in zip(whole, cut, strict=True))


@pytest.mark.parametrize("family", LOOPS)
def test_prompts_that_leave_no_room_are_refused_alone(family):
    vlm = MODELS[family]
    full, fine = of_length(vlm, LIMIT), of_length(vlm, 10)
    with pytest.raises(
        DataError, match="'n40' has 40 tokens and leaves no room for an answer in the 40"
    ):
        vlm.generate([fine, full], max_new_tokens=4)
    with pytest.raises(DataError, match="leaves no room"):
        vlm.generate(vlm.prefill([fine, full]), max_new_tokens=4)
    assert len(vlm.refusal_log_odds([full])) == 1  # it can be read
    rows = evaluate(
        vlm, [Suite("s", "attack", (fine, full))], [None], judge=RulesJudge(), max_new_tokens=4
    ).rows
    assert rows[0]["error"] is None and "leaves no room" in rows[1]["error"]


def test_an_answer_that_ends_with_the_context_is_no_cut_one():
    vlm = MODELS["llava"]
    example = of_length(vlm, LIMIT - 4)
    (answer,) = vlm.answers(example, max_new_tokens=8, stop=lambda text: True)
    assert (answer.tokens, answer.ended, answer.context_full) == (4, True, False)


def llama(**rope):
    return LlamaConfig(max_position_embeddings=512, **({"rope_scaling": rope} if rope else {}))


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (llama(), 512),
        (llama(rope_type="linear", factor=2.0), 512),
        (llama(rope_type="dynamic", factor=4.0), 2048),
        (llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=128), 512),
        (llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=512), 2048),
        (
            llama(
                rope_type="llama3",
                factor=8.0,
                original_max_position_embeddings=32,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
            ),
            512,
        ),
        (Gemma3TextConfig(max_position_embeddings=512, sliding_window=8), 512),
        (GPT2Config(n_positions=512), 512),
        (MptConfig(max_seq_len=512), 512),
        (tiny.tiny_gemma3()[0].config, 512),
        (BloomConfig(), None),
    ],
)
def test_what_configurations_state(config, limit):
    assert context_limit(config) == limit


def test_models_without_a_limit_have_none():
    for stated in ({}, {"max_position_embeddings": 0}, {"max_position_embeddings": "many"}):
        config = SimpleNamespace(**stated)
        config.get_text_config = lambda config=config: config
        assert context_limit(config) is None
    vlm = endless("llava", 8)
    vlm.context = None
    assert vlm.answers(Example("e", "x" * 20), max_new_tokens=4)[0].tokens == 4
