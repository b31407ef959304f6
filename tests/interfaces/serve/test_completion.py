"""Answers as completions: stops, thoughts, and what a stream shows piece by piece."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from care.interfaces.requests.decoding import Decoding
from care.interfaces.serve.completion import Completion, finish_reason
from care.interfaces.serve.engine import Served
from care.models.alarms import Alarm, Withdrawn
from care.models.thoughts import TAGS
from kit.serving import said

ALARM = Alarm("answer", 1.2, 0.7, 16)


def made(until=(), opening=""):
    return Completion("id", 1, "tiny", Decoding(9, until=until), TAGS, 11, opening)


def streamed(pieces, answer, until=(), opening=""):
    """(deltas, last care object, end) of a stream."""
    completion = made(until, opening)
    events = [completion.first()]
    for piece in pieces:
        events += completion.more(piece)
    events += completion.last(Served(answer, "d"))
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    return chunks


def shown(chunks, part="content"):
    """What a client shows that minds what is withdrawn."""
    text = ""
    for chunk in chunks:
        if "withdrawn" in chunk.get("care", {}):
            text = ""
        text += chunk["choices"][0]["delta"].get(part, "")
    return text


def test_a_whole_answer_has_its_parts():
    found = made().whole(Served(said("<think>Hm.</think>Soap.", ended=False), "d1"))
    [choice] = found["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": "Soap.", "reasoning_content": "<think>Hm.</think>",
    }  # fmt: skip
    assert choice["finish_reason"] == "length" and found["object"] == "chat.completion"
    assert found["care"] == {"source": "model", "alarms": [], "repair": "d1"}
    assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_a_refusal_is_filtered_and_counts_the_prompt_as_it_came():
    answer = said("I'm sorry.", "refusal", [ALARM], tokens=0)
    answer.prompt_tokens = 0
    found = made().whole(Served(answer, "d1"))
    assert found["choices"][0]["finish_reason"] == "content_filter"
    assert found["usage"]["prompt_tokens"] == 11 and found["usage"]["total_tokens"] == 11
    [alarm] = found["care"]["alarms"]
    assert alarm == {"monitor": "answer", "score": 1.2, "threshold": 0.7, "tokens": 16}


def test_a_stop_ends_the_answer_before_it():
    found = made(("soap",)).whole(Served(said("Take soap and", ended=False), "d"))
    assert found["choices"][0]["message"]["content"] == "Take "
    assert found["choices"][0]["finish_reason"] == "stop"
    assert finish_reason(said("x", ended=False), stopped=False) == "length"


@pytest.mark.parametrize(
    ("pieces", "until"),
    [
        (["Take", " soap", " and", " water"], ()),
        (["Take", " soap", " and", " water"], ("and w",)),
        (["Take s", "oa", "p an", "d water"], ("soap",)),
        (["Take", " soap", " and", " water"], ("water!",)),
        (["<th", "ink>Hm", ".</thi", "nk>Take", " soap"], ("soap", "Hm")),
        (["Hm", ".</think>", "Take", " soap"], ()),
        (["<", "b>Take"], ()),
        ([], ()),
    ],
)
def test_a_stream_shows_what_the_whole_answer_is(pieces, until):
    answer = said("".join(pieces) or "Soap.")
    chunks = streamed(pieces, answer, until)
    whole = made(until).whole(Served(answer, "d"))["choices"][0]
    assert shown(chunks) == whole["message"]["content"]
    assert shown(chunks, "reasoning_content") == whole["message"].get("reasoning_content", "")
    ends = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert ends == [None] * (len(chunks) - 1) + [whole["finish_reason"]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["care"] == {"source": "model", "alarms": [], "repair": "d"}


@pytest.mark.parametrize(
    ("opening", "pieces", "until", "content"),
    [
        ("```python\n", ["```python\nx = 1", "\n``", "`\nDone"], ("```",), "```python\nx = 1\n"),
        ("Code:\n", ["Code:", "\nx = 1", "\ny"], ("\n",), "Code:\nx = 1"),
        ("A ``", ["A ```", " b"], ("```",), "A ``` b"),
        ("<think>a.</think>B. ", ["<think>a.</think>B. c", ". d"], (".",), "B. c"),
        ("<think>a", ["<think>a</think>b", ". d"], (".",), "b"),
    ],
)
def test_no_stop_is_looked_for_in_words_that_others_began_the_answer_with(
    opening, pieces, until, content
):
    answer = said("".join(pieces))
    assert made(until, opening).whole(Served(answer, "d"))["choices"][0]["message"]["content"] == (
        content
    )
    chunks = streamed(pieces, answer, until, opening)
    assert shown(chunks) == content and not any("withdrawn" in c.get("care", {}) for c in chunks)


def test_an_answer_without_those_words_is_cut_from_its_first_on():
    found = made(("sorry",), "I'm sorry").whole(Served(said("I'm sorry.", "plain"), "d"))
    assert found["choices"][0]["message"]["content"] == "I'm "


def test_no_stop_cuts_a_refusal_that_is_put_in_the_answers_place():
    answer = said("I'm sorry.", "refusal", [ALARM])
    found = made(("sorry",)).whole(Served(answer, "d"))
    assert found["choices"][0]["message"]["content"] == "I'm sorry."
    chunks = streamed(["Mix", Withdrawn("Mix", ALARM), "I'm sorry."], answer, ("sorry",))
    assert shown(chunks) == "I'm sorry."


@pytest.mark.parametrize(
    ("pieces", "until", "seen"),
    [
        (["Ta", "ke s", "o", "ap"], ("soap",), "Take "),
        (["Ta", "ke s", "o"], ("soap",), "Take "),
        (["<thi", "nk>Hm"], (), ""),
        (["<thi"], (), ""),
        (["<b"], (), "<b"),
    ],
)
def test_no_part_of_a_stop_or_a_tag_is_ever_shown(pieces, until, seen):
    completion = made(until)
    chunks = [json.loads(event[6:]) for piece in pieces for event in completion.more(piece)]
    assert shown(chunks) == seen


def test_what_is_withdrawn_is_told_and_what_follows_begins_anew():
    pieces = ["Mix", " two", Withdrawn("Mix two", ALARM), "I'm sorry."]
    chunks = streamed(pieces, said("I'm sorry.", "refusal", [ALARM]))
    [told] = [chunk for chunk in chunks if "withdrawn" in chunk.get("care", {})]
    assert told["care"]["withdrawn"]["content"] == "Mix two"
    assert told["care"]["withdrawn"]["alarm"]["monitor"] == "answer"
    assert shown(chunks) == "I'm sorry." and chunks[-1]["care"]["source"] == "refusal"
    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"


def test_nothing_is_withdrawn_that_was_held_back():
    chunks = streamed([Withdrawn("", ALARM), "I'm sorry."], said("I'm sorry.", "refusal", [ALARM]))
    assert not [chunk for chunk in chunks if "withdrawn" in chunk.get("care", {})]
    assert shown(chunks) == "I'm sorry." and chunks[-1]["care"]["alarms"]


def test_a_stream_can_end_with_its_numbers():
    completion = replace(made(), tells_usage=True)
    events = [completion.first(), *completion.last(Served(said("Soap."), "d"))]
    *chunks, found = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert [chunk["usage"] for chunk in chunks] == [None] * 3
    assert "usage" not in streamed([], said("Soap."))[0]
    assert found["choices"] == [] and found["usage"]["total_tokens"] == 8
    assert found["care"]["repair"] == "d"
