"""Openings of answers: what the model goes on from, in every way of decoding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from care.errors import DataError
from care.models import prompt_cache
from care.models.hooks import read
from care.models.sites import Role, Site, scope_mask
from care.models.stops import StopTexts
from care.models.vlm import VLM
from kit import tiny
from kit.repairs import repair

OPENING, LONGER = "Sure, here is", "To wash a car, you'll need to"
PLAIN = tiny.mixed_examples(6)
BEGUN = [replace(e, opening=OPENING if i % 3 else LONGER) for i, e in enumerate(PLAIN)]
MIXED = [PLAIN[0], *BEGUN[1:4], PLAIN[4], BEGUN[5]]
NEW = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def llava():
    return tiny.tiny_vlm()


def naive(vlm, example, steps=8):
    """Greedy answer by whole passes over the prompt, the opening and what was said so far."""
    said = vlm.response_ids(example.opening)
    ends = {vlm.tokenizer.eos_token_id}
    inputs = vlm.batch(replace(example, opening="")).inputs
    for _ in range(steps):
        ids = torch.cat([inputs["input_ids"], torch.tensor([said], dtype=torch.long)], dim=1)
        rest = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        types = {k: v for k, v in inputs.items() if k.endswith("token_type_ids")}
        rest |= {k: torch.nn.functional.pad(v, (0, len(said))) for k, v in types.items()}
        with torch.no_grad():
            token = int(vlm.model(**{**inputs, **rest}).logits[0, -1].argmax())
        if token in ends:
            break
        said.append(token)
    return vlm.tokenizer.decode(said, skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_answer_goes_on_from_its_opening(family):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    answers = vlm.answers(MIXED, **NEW)
    assert [answer.text for answer in answers] == [naive(vlm, example) for example in MIXED]
    for example, answer in zip(MIXED, answers, strict=True):
        assert answer.text.startswith(example.opening)
        prompt = vlm.batch(replace(example, opening="")).inputs["input_ids"].shape[1]
        assert answer.prompt_tokens == prompt
        assert 0 <= answer.tokens - len(vlm.response_ids(example.opening)) <= 8
    assert vlm.generate(MIXED, batch_size=1, **NEW) == [answer.text for answer in answers]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_both_loops_say_the_same_under_edits_and_show_the_same_roles(family, monkeypatch):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    defense, site = repair(0, ("decision", "response")), Site(1, "ffn_out")
    found = []
    for plain in (prompt_cache.PLAIN_POSITIONS, frozenset()):
        monkeypatch.setattr(prompt_cache, "PLAIN_POSITIONS", plain)
        seen = []
        with (
            defense.applied(vlm),
            read(vlm, [site], sink=lambda site, h, roles, seen=seen: seen.append(roles)),
        ):
            texts = vlm.generate(MIXED[1:2], **NEW)
        found.append((texts, [roles.tolist() for roles in seen]))
    assert found[0] == found[1] and found[0][0] != vlm.generate(MIXED[1:2], **NEW)
    first = torch.tensor(found[0][1][0])
    length = len(vlm.response_ids(MIXED[1].opening))
    assert (first[0, -length:] == Role.RESPONSE).all()
    assert scope_mask(first, ["decision"])[0].nonzero().item() == first.shape[1] - length - 1
    assert found[0][1][1:] == [[[Role.RESPONSE]]] * (len(found[0][1]) - 1)


def test_prompts_that_were_read_serve_begun_answers_too(llava):
    bare, odds = llava.generate(MIXED, **NEW), llava.refusal_log_odds(MIXED)
    prompts = llava.prefill(MIXED)
    assert all(start.cache is not None for _, start in prompts.parts)
    assert llava.generate(prompts, **NEW) == bare
    assert np.allclose(llava.refusal_log_odds(prompts), odds, atol=1e-4)
    for defense in (repair(0), repair(1, ("decision", "response"))):
        with defense.applied(llava):
            expected, moved = llava.generate(MIXED, **NEW), llava.refusal_log_odds(MIXED)
            assert llava.generate(prompts, **NEW) == expected != bare
            assert np.allclose(llava.refusal_log_odds(prompts), moved, atol=1e-4)
    assert llava.generate(prompts, **NEW) == bare


def test_a_picture_at_the_end_is_not_read_in_two_pieces(llava):
    """An opening longer than the text after another row's picture."""
    asked = [replace(PLAIN[1], prompt="", id="x"), replace(BEGUN[3], opening=LONGER * 2)]
    prompts = llava.prefill(asked)
    assert [start.cache for _, start in prompts.parts] == [None]
    assert llava.generate(prompts, **NEW) == llava.generate(asked, batch_size=1, **NEW)


def test_a_stop_sees_the_opening(llava):
    seen = []
    llava.generate(BEGUN[:2], max_new_tokens=8, stop=lambda text: bool(seen.append(text)))
    assert seen and all(text.startswith((OPENING, LONGER)) for text in seen)
    stopped = llava.answers(BEGUN[:2], max_new_tokens=8, stop=lambda text: True)
    for example, answer in zip(BEGUN, stopped, strict=False):
        assert answer.ended and answer.tokens <= len(llava.response_ids(example.opening)) + 4


def test_a_stop_at_texts_looks_behind_the_opening(llava):
    (whole,) = llava.answers(BEGUN[:1], **NEW)
    said = whole.text.removeprefix(LONGER)
    for text, early in (("wash", "wash" in said), (said[2:4], True)):
        (answer,) = llava.answers(BEGUN[:1], **NEW, stop=StopTexts((text,)))
        assert (answer.tokens < whole.tokens) is early


def test_likelihoods_are_of_what_follows_the_opening(llava):
    more = " and a house."
    assert llava.response_ids(OPENING + more) == [
        *llava.response_ids(OPENING),
        *llava.response_ids(more),
    ]
    asked = [replace(example, opening=OPENING) for example in PLAIN[:3]]
    whole = llava.score(PLAIN[:3], [OPENING + more] * 3)
    first = llava.score(PLAIN[:3], [OPENING] * 3)
    rest = llava.score(asked, [more] * 3)
    assert np.allclose(whole.logprob, first.logprob + rest.logprob, atol=1e-4)
    assert (rest.tokens == len(llava.response_ids(more))).all()
    mixed = llava.score([PLAIN[0], asked[1]], [more, " no"])
    assert mixed.logprob[1] == pytest.approx(llava.score([asked[1]], [" no"]).logprob[0], abs=1e-4)


def test_drawn_answers_depend_on_the_opening_and_go_on_from_it(llava):
    hot = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
    drawn = llava.generate(BEGUN, **hot)
    assert drawn == llava.generate(llava.prefill(BEGUN, batch_size=2), **hot)
    assert all(text.startswith(e.opening) for e, text in zip(BEGUN, drawn, strict=True))


def test_an_opening_takes_room_and_holds_no_picture():
    vlm = tiny.tiny_vlm()
    used = int(vlm.batch(BEGUN[0]).inputs["attention_mask"].sum())
    vlm.context = used + 3
    with pytest.warns(UserWarning, match="answers were cut"):
        (answer,) = vlm.answers(BEGUN[:1], max_new_tokens=8)
    assert answer.context_full and answer.prompt_tokens + answer.tokens == used + 3
    vlm.context = used
    with pytest.raises(DataError, match="leaves no room"):
        vlm.answers(BEGUN[:1], max_new_tokens=8)
    with pytest.raises(DataError, match="placeholder"):
        vlm.batch(replace(PLAIN[0], opening="<image>"))
