"""Passes have the same roles however a model is called, or are refused before an edit."""

import inspect
from contextlib import ExitStack
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

from care.defenses.repair.channel import Channel
from care.defenses.repair.edit import ChannelEdit
from care.defenses.repair.subspace import random_subspace
from care.errors import SiteError
from care.models.caches import cache_argument
from care.models.hooks import edit, read
from care.models.passes import Pass
from care.models.sites import Role, roles_of_inputs, scope_mask
from kit import tiny
from kit.passes import (
    EXAMPLES,
    SITE,
    STEPS,
    WOOD,
    by_hand,
    generated,
    models,  # noqa: F401
    never,
    repair,
    seen_roles,
    vlm,  # noqa: F401
)

IMAGE = tiny.SPECIAL.index("<image>")


WAYS = {
    "VLM": lambda vlm, examples: vlm.generate(examples, max_new_tokens=STEPS),
    "generate": generated,
    "a loop of one's own": by_hand,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("scopes", [("decision",), ("response",), ("decision", "response")])
def test_exactly_the_positions_in_scope_are_edited(models, family, way, scopes):
    vlm = models[family]
    for examples in (EXAMPLES, EXAMPLES[:1]):  # with padding, and without any
        with repair(*scopes).applied(vlm) as stats:
            WAYS[way](vlm, examples)
        each = ("decision" in scopes) + (STEPS - 1) * ("response" in scopes)
        assert stats.tokens == each * len(examples)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_prompt_is_a_prompt_and_the_rest_an_answer(models, family, way):
    vlm = models[family]
    examples = [example for example in tiny.mixed_examples(5) if example.images]
    if family.startswith("qwen") and "loop" in way:  # after pictures it needs `generate`
        examples = EXAMPLES
    whole = vlm.batch(examples).roles
    first, *steps = seen_roles(vlm, lambda: WAYS[way](vlm, examples))
    assert sorted(first.tolist()) == sorted(whole.tolist())
    assert len(steps) == STEPS - 1 and all((roles == Role.RESPONSE).all() for roles in steps)


def test_in_a_decode_step_a_decision_costs_nothing(models, monkeypatch):
    """Where nothing is in scope, activations are neither copied nor multiplied nor masked."""
    calls = []
    whole = ChannelEdit.edited
    monkeypatch.setattr(ChannelEdit, "edited", lambda *args: calls.append(1) or whole(*args))
    for scopes, count in ((("decision",), 1), (("decision", "response"), STEPS)):
        for family, way in (("llava", "VLM"), ("qwen3_vl", "VLM"), ("llava", "generate")):
            with repair(*scopes).applied(models[family]) as stats:
                WAYS[way](models[family], EXAMPLES)
            assert len(calls) == count and stats[SITE].calls == STEPS
            calls.clear()


def test_roles_that_are_known_to_be_answers_need_no_look(vlm):
    """`answering` gives the same edits as the roles themselves."""
    roles = torch.full((2, 1), int(Role.RESPONSE))
    h = torch.randn(2, 1, tiny.WIDTH)
    channels = [
        Channel(SITE, modality, scopes, random_subspace(tiny.WIDTH, 4, seed=seed))
        for seed, (modality, scopes) in enumerate(
            [("image", ("all",)), ("text", ("response",)), ("text", ("decision",))]
        )
    ]
    for some in (channels[:1], channels[:2], channels[1:], channels[2:]):
        context = Pass(vlm.anatomy, vlm.roles, vlm.tokenizer.pad_token_id, lambda: None)
        with vlm.known_roles(roles, answering=True):
            context.begin(vlm.model, (), {})
        site_edit = ChannelEdit(some, "adaptive")
        assert context.answering and context.unpadded
        assert torch.equal(site_edit.within(h, context), site_edit(h, roles))


# -- several tokens after a cache ------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
@given(
    seed=st.integers(0, 99),
    scopes=st.sampled_from([("decision",), ("decision", "response"), ("response",), ("text",)]),
    count=st.integers(1, 6),
)
@settings(max_examples=3, deadline=None)
def test_lookup_decoding_changes_no_answer(models, family, seed, scopes, count):
    """Guesses come with the prompt and after it, and rejected ones are cut off the cache."""
    vlm = models[family]
    with repair(*scopes, seed=seed).applied(vlm):
        plain = generated(vlm, steps=24)
        assert torch.equal(plain, generated(vlm, steps=24, prompt_lookup_num_tokens=count))


def test_guesses_of_an_answer_are_answers(vlm):
    ids = vlm.batch(WOOD).inputs["input_ids"].repeat(1, 2)  # so that its end has been there before
    ids[:, 2] = IMAGE
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    first, *others = seen_roles(
        vlm, lambda: vlm.model.generate(ids, **options, prompt_lookup_num_tokens=4)
    )
    length = ids.shape[1]
    assert first.shape[1] > length
    assert torch.equal(first[:, :length] == Role.IMAGE, ids == IMAGE)
    assert not (first[:, :length] == Role.RESPONSE).any()
    assert any(roles.shape[1] > 1 for roles in others)
    assert all((roles == Role.RESPONSE).all() for roles in [first[:, length:], *others])


@pytest.mark.parametrize("same", [True, False])
def test_drafts_of_an_assistant_are_answers(vlm, same):
    """Also where the model drafts for itself, in calls whose prompt is the answer so far."""
    draws = vlm.model if same else tiny.tiny_llava(5)[0]
    with repair("decision").applied(vlm) as stats:
        drafted = generated(vlm, steps=12, assistant_model=draws)
        assert stats.tokens == 1 + same  # the draft reads the prompt for itself
        assert torch.equal(drafted, generated(vlm, steps=12))


def test_a_second_turn_is_a_prompt(vlm):
    """The library takes the whole conversation, or the new turn with a mask that covers it."""
    cache = DynamicCache(config=vlm.model.config.get_text_config())
    name = cache_argument(vlm.model)
    first = generated(vlm, **{name: cache})
    asked = torch.cat([first, vlm.batch(EXAMPLES[0]).inputs["input_ids"]], dim=1)
    read_before = cache.get_seq_length()
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def ask(**inputs):
        copy = DynamicCache(config=vlm.model.config.get_text_config())
        for index, layer in enumerate(cache.layers):
            copy.update(layer.keys[:, :, :read_before], layer.values[:, :, :read_before], index)
        return vlm.model.generate(**inputs, **options, **{name: copy})

    mask = torch.ones_like(asked)
    for inputs in ({"input_ids": asked}, {"input_ids": asked[:, read_before:]}):
        turn, *steps = seen_roles(vlm, lambda inputs=inputs: ask(**inputs, attention_mask=mask))
        assert turn.shape[1] == asked.shape[1] - read_before
        assert (turn == Role.TEXT).all() and len(steps) == 3
        assert all((roles == Role.RESPONSE).all() for roles in steps)
    with repair("decision").applied(vlm) as stats:
        answer = ask(input_ids=asked, attention_mask=mask)[:, -4:]
    assert stats.tokens == 1
    with repair("decision").applied(vlm):  # the conversation read anew
        assert torch.equal(
            vlm.model.generate(asked, attention_mask=mask, **options)[:, -4:], answer
        )


def test_without_a_cache_the_prompt_stays_a_prompt(vlm):
    """Every pass reads the whole sequence again, and its decision is where it was."""
    prompt = vlm.batch(EXAMPLES).roles
    passes = seen_roles(vlm, lambda: generated(vlm, EXAMPLES, use_cache=False))
    for count, roles in enumerate(passes):
        assert torch.equal(roles[:, : prompt.shape[1]], prompt)
        assert (roles[:, prompt.shape[1] :] == Role.RESPONSE).all()
        assert roles.shape[1] == prompt.shape[1] + count
    with repair("decision", "response").applied(vlm):
        answers = generated(vlm, EXAMPLES)
        assert torch.equal(answers, generated(vlm, EXAMPLES, use_cache=False))


def test_guidance_by_another_prompt_has_roles_of_its_own(vlm):
    """The library reads the prompt's last token alone, as a prompt, and goes on in parallel."""
    passes = seen_roles(vlm, lambda: generated(vlm, steps=3, guidance_scale=1.5))
    kinds = [sorted(set(roles.flatten().tolist())) for roles in passes]
    assert kinds == [[Role.TEXT]] * 2 + [[Role.RESPONSE]] * 4


def test_a_prompt_in_pieces_is_refused(vlm):
    with pytest.raises(SiteError, match="prefill_chunk_size"), edit(vlm, {SITE: never}):
        generated(vlm, prefill_chunk_size=3)
    with repair("decision").applied(vlm) as stats:  # one piece is the whole
        generated(vlm, prefill_chunk_size=64)
    assert stats.tokens == 1


def after_a_prompt(vlm):
    """A prompt in a cache, and the arguments of a pass that reads three more tokens."""
    cache = DynamicCache(config=vlm.model.config.get_text_config())
    ids = vlm.batch(WOOD).inputs["input_ids"]
    with torch.no_grad():
        vlm.model(ids, **{cache_argument(vlm.model): cache})
    return {"input_ids": ids[:, :3], cache_argument(vlm.model): cache}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_several_tokens_after_a_cache_need_their_roles(models, family):
    vlm = models[family]
    step = after_a_prompt(vlm)
    message = r"3 tokens after 8 cached positions.*known_roles"
    with torch.no_grad(), edit(vlm, {SITE: never}), pytest.raises(SiteError, match=message):
        vlm.model(**step)
    step, roles = after_a_prompt(vlm), torch.full((1, 3), int(Role.RESPONSE))
    with torch.no_grad(), repair("response").applied(vlm) as stats, vlm.known_roles(roles):
        vlm.model(**step)
    assert stats.tokens == 3


# -- other caches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm"])
def test_beams_and_a_static_cache_under_left_padding(models, family, beams, cache):
    vlm = models[family]
    prompt = vlm.batch(EXAMPLES).roles.repeat_interleave(beams, dim=0)
    options = {"num_beams": beams, "cache_implementation": cache}
    first, *steps = seen_roles(vlm, lambda: generated(vlm, EXAMPLES, **options))
    assert torch.equal(first, prompt)
    assert len(steps) == STEPS - 1 and all((roles == Role.RESPONSE).all() for roles in steps)


def test_a_mask_that_is_longer_than_what_has_been_read(vlm):
    """A loop with a cache of fixed size may mask what isn't there yet from the start."""
    config = vlm.model.config.get_text_config()
    prompt, seen = vlm.batch(EXAMPLES).roles, []
    with read(vlm, [SITE], sink=lambda site, h, roles: seen.append(roles)):
        by_hand(vlm, EXAMPLES, cache=StaticCache(config, max_cache_len=48), padded=48)
    assert torch.equal(seen[0], prompt)
    assert all((roles == Role.RESPONSE).all() for roles in seen[1:])


# -- finished rows, and what is left behind --------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_finished_rows_are_padding_whatever_they_are_fed(models, family):
    """The library pads with what it is told to, which need not be the tokenizer's padding."""
    vlm = models[family]
    inputs = vlm.batch(EXAMPLES).inputs
    options = {"max_new_tokens": 4, "do_sample": False}
    second = vlm.model.generate(**inputs, **options, eos_token_id=None, pad_token_id=0)[:, -3]
    stop = int(second[0])
    pad = 77
    seen = []
    with read(vlm, [SITE], sink=lambda site, h, roles: seen.append(roles[:, -1])):
        vlm.model.generate(**inputs, **options, eos_token_id=stop, pad_token_id=pad)
    finished = second == stop
    assert (seen[3][finished] == Role.PAD).all()
    assert (seen[3][~finished] == Role.RESPONSE).all()


def test_roles_do_not_outlive_their_pass(vlm):
    batch = vlm.batch(EXAMPLES)
    embedded = vlm.model.get_input_embeddings()(batch.inputs["input_ids"])
    with torch.no_grad(), edit(vlm, {SITE: lambda h, roles: h}):
        vlm.forward(batch)
        with pytest.raises(SiteError, match="input_ids"):
            vlm.model.get_decoder()(inputs_embeds=embedded)
        with pytest.raises(RuntimeError):
            vlm.model(batch.inputs["input_ids"], attention_mask=torch.ones(2, 3, 4, 5))
        with pytest.raises(SiteError, match="input_ids"):
            vlm.model.get_decoder()(inputs_embeds=embedded)
    assert not vlm.anatomy.layers[0]._forward_pre_hooks


def test_generate_is_put_back_in_whatever_order_contexts_are_left(vlm):
    plain, own = generated(vlm), "generate" in vars(vlm.model)
    first, second = ExitStack(), ExitStack()
    first.enter_context(repair("decision").applied(vlm))
    stats = second.enter_context(repair("decision", seed=1).applied(vlm))
    assert inspect.signature(vlm.model.generate) == inspect.signature(
        type(vlm.model).generate.__get__(vlm.model)
    )
    generated(vlm)
    first.close()
    generated(vlm)
    assert stats.tokens == 2
    second.close()
    assert ("generate" in vars(vlm.model)) == own
    assert torch.equal(generated(vlm), plain)


def test_an_own_generate_is_kept(vlm):
    def generate(*args, **kwargs):
        return type(vlm.model).generate(vlm.model, *args, **kwargs)

    vlm.model.generate = generate
    try:
        with repair("decision").applied(vlm) as stats:
            generated(vlm)
        assert stats.tokens == 1 and vlm.model.generate is generate
    finally:
        del vlm.model.generate


# -- the rule --------------------------------------------------------------------------------------


@given(
    prompt=st.integers(1, 9),
    answer=st.integers(0, 6),
    pads=st.integers(0, 3),
    cuts=st.sets(st.integers(1, 14)),
    seed=st.integers(0, 999),
)
@settings(deadline=None)
def test_roles_of_pieces_are_the_pieces_of_the_roles(prompt, answer, pads, cuts, seed):
    """However a sequence is cut into passes, a position is what it is in the whole."""
    length, pads = prompt + answer, min(pads, prompt - 1)
    ids = torch.randint(1, 12, (2, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, :pads] = 0
    expected = torch.where(ids == 9, int(Role.IMAGE), int(Role.TEXT))
    expected[:, prompt:] = int(Role.RESPONSE)
    expected[0, :pads] = int(Role.PAD)
    edges = [0, *sorted(cut for cut in cuts if cut < length), length]
    pieces = [
        roles_of_inputs(ids[:, start:end], mask[:, :end], 9, past=start, prompt=prompt)
        for start, end in pairwise(edges)
    ]
    assert torch.equal(torch.cat(pieces, dim=1), expected)
    decisions = scope_mask(expected, ["decision"]).nonzero().tolist()
    assert decisions == [[0, prompt - 1], [1, prompt - 1]]


def test_a_mask_that_is_too_short_is_refused():
    with pytest.raises(SiteError, match="2 columns for a pass over 3 tokens"):
        roles_of_inputs(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 2), IMAGE)
