"""What a model says before its answer: told apart, read with its template, never stopped in."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from care import Example
from care.errors import UsageError
from care.judges.rules import refused
from care.models.spec import ModelSpec
from care.models.thoughts import (
    TAGS,
    answer_of,
    known_tags,
    opened_by,
    outside_thoughts,
    read,
    text_of,
)
from kit.texts import cases
from kit.tiny import tiny_vlm


@cases("models/thoughts")
def test_an_answer_is_told_from_the_thoughts_before_it(text, label):
    """None where the thoughts have no end; the text itself where there are none."""
    found = read(text)
    assert found.answer == answer_of(text) == label
    if label is None:
        return
    assert read(label).answer == label
    if label == text:
        assert found.thoughts is None
    else:
        assert found.thoughts and label not in found.thoughts


pieces = st.sampled_from([mark for pair in TAGS for mark in pair] + ["a", "\n", " ", '"', "`", "<"])


@settings(max_examples=50, deadline=None)
@given(st.lists(pieces | st.text(max_size=4), max_size=12).map("".join))
def test_reading_an_answer_again_changes_nothing(text):
    answer = answer_of(text)
    assert answer is None or answer_of(answer) == answer


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TAGS), st.text(alphabet="abc \n.", max_size=30), st.text("xyz ", min_size=1))
def test_any_thought_between_any_tags(pair, thought, answer):
    opening, closing = pair
    assert answer_of(f"{opening}{thought}{closing}{answer}") == answer.strip()
    assert answer_of(f"{thought}{closing}{answer}") == answer.strip()
    assert answer_of(f"{opening}{thought}") is None


def test_tags_of_ones_own():
    tags = known_tags(["Here is my thought process:…Here is my response:", "<a>...</a>"])
    assert answer_of("Here is my thought process: x Here is my response: no", tags) == "no"
    assert answer_of("<a>x</a>no", tags) == "no" and answer_of("<think>x</think>no", tags) == "no"
    assert answer_of("<a>x</a>no") == "<a>x</a>no"
    for wrong in ("<a>", "…</a>", "<a>…", "a…b…c"):
        with pytest.raises(UsageError, match="OPEN…CLOSE"):
            known_tags([wrong])


def test_tags_of_a_specification_are_checked():
    with pytest.raises(UsageError, match="OPEN…CLOSE"):
        ModelSpec("m", thoughts=("<a>",))


# -- while generating ------------------------------------------------------------------------------


def test_an_early_stop_sees_the_answer_alone():
    seen = []
    stop = outside_thoughts(lambda text: seen.append(text) or "sorry" in text)
    assert not stop("<think>I'm sorry") and seen == []
    assert not stop("<think>I'm sorry</think>Well") and seen == ["Well"]
    assert stop("<think>x</think>I'm sorry")


def scripted_vlm(text, template_end=""):
    """A tiny model that says `text`, token by token, and whose template may end in a tag."""
    vlm = tiny_vlm()
    for part in (vlm.processor, vlm.tokenizer):
        if getattr(part, "chat_template", None):
            part.chat_template = part.chat_template + template_end
    ids = vlm.tokenizer(text, add_special_tokens=False)["input_ids"]
    forward = vlm.model.forward

    def said(*args, **options):
        out = forward(*args, **options)
        row, step = out.logits, said.step
        row[...] = -10.0
        row[:, -1, ids[step] if step < len(ids) else vlm.tokenizer.eos_token_id] = 10.0
        said.step += 1
        return out

    said.step = 0
    vlm.model.forward = said
    return vlm


def test_a_stop_while_generating_waits_for_the_answer():
    text = "<think>I'm sorry, no, no, no, no, no.</think>Take some wood."
    answers = scripted_vlm(text).answers(Example("a", "Hi"), max_new_tokens=200, stop=refused)
    assert answers[0].text == text
    stop = lambda said: "Take" in said  # noqa: E731
    (cut,) = scripted_vlm(text).answers(Example("a", "Hi"), max_new_tokens=200, stop=stop)
    assert cut.text.startswith("<think>I'm sorry") and "Take" in cut.text


def test_a_template_that_opens_the_thoughts_is_read_with_them():
    for end in ("<think>\n", "<think>"):
        vlm = scripted_vlm("The user wants to", end)
        (text,) = vlm.generate(Example("a", "Hi"), max_new_tokens=40)
        assert text == "<think>The user wants to" and answer_of(text) is None
    vlm = scripted_vlm("Sure.", "<think>\n\n</think>\n\n")
    assert vlm.generate(Example("a", "Hi"), max_new_tokens=40) == ["Sure."]
    assert opened_by("…assistant\n<think>\n") == "<think>" and opened_by("<think></think>") == ""


def test_tags_that_are_special_tokens_are_kept():
    vlm = tiny_vlm()
    vlm.tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<think>", "</think>", "<other>"]}
    )
    ids = vlm.tokenizer("<think>red</think><other>green", add_special_tokens=False)["input_ids"]
    said = text_of(vlm.tokenizer, ids)
    assert answer_of(said) == "green" and "<other>" not in said


def test_first_token_measures_say_that_the_model_thinks():
    vlm = scripted_vlm("Sure", "<think>\n")
    with pytest.warns(UserWarning, match="begins its answers with a thought"):
        vlm.refusal_log_odds([Example("a", "Hi")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vlm.refusal_log_odds([Example("a", "Hi")])  # once is enough
        tiny_vlm().refusal_log_odds([Example("a", "Hi")])
    vlm = tiny_vlm()
    vlm.tokenizer.add_tokens(["<think>"])
    vlm.model.resize_token_embeddings(len(vlm.tokenizer))
    logits = np.zeros((1, len(vlm.tokenizer)), np.float32)
    logits[0, vlm.tokenizer.convert_tokens_to_ids("<think>")] = 5.0
    with pytest.warns(UserWarning, match="begins its answers with a thought"):
        vlm.log_odds(torch.tensor(logits))
