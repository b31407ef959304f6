"""What a chat API's reply says: yes, no, or nothing that is a verdict."""

import pytest

from care.judges.replies import read_reply
from kit.texts import cases


def said(text, **more):
    message = {"role": "assistant", "content": text} | more.pop("message", {})
    return read_reply({"choices": [{"message": message} | more]})


@cases("judges/api_reply")
def test_a_word_alone_is_a_verdict_and_words_around_it_are_none(text, label):
    for content in (text, [{"type": "text", "text": text}]):
        found = said(content)
        assert found.flagged is label and bool(found.error) is (label is None)


@pytest.mark.parametrize("reason", ["content_filter", "length", "max_tokens", "SAFETY", "abort"])
def test_a_reply_that_was_filtered_or_cut_is_no_verdict(reason):
    assert said("no", finish_reason=reason).flagged is None
    assert said("no", finish_reason="stop").flagged is False
    assert said("no", finish_reason=None).flagged is False


def test_a_refusal_in_its_own_field_is_no_verdict():
    assert "refused" in said("no", message={"refusal": "I can't judge this."}).error
    assert said(None, message={"refusal": "no"}).flagged is None
    assert said([{"type": "refusal", "refusal": "no"}]).flagged is None
    assert said("no", message={"refusal": None}).flagged is False
    filtered = {"violence": {"filtered": True}, "hate": {"filtered": False}}
    assert said("no", content_filter_results=filtered).flagged is None
