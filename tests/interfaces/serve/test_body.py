"""Bodies of requests: what is honoured, what is neutral, and a sentence for all else."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from care.errors import CareError
from care.interfaces.requests.decoding import Decoding
from care.interfaces.serve.body import read_body
from care.interfaces.serve.config import Limits
from care.interfaces.serve.failures import RequestFailure, failure_of
from kit.serving import data_url, user

LIMITS = Limits(max_answer_tokens=100, max_prompt_tokens=50, max_images=2, max_pixels=10_000)


DEEP = [[]]
for _ in range(800):
    DEEP = [DEEP]


def read(body, **changed):
    """A body, as bytes or as what is changed in a plain request."""
    if not isinstance(body, bytes):
        asked = {"model": "tiny", "messages": user()} | body | changed
        body = json.dumps({k: v for k, v in asked.items() if v is not Ellipsis}).encode()
    return read_body(body, "tiny", LIMITS, 24)


def refusal_of(body):
    """The status and the sentence of a body that isn't read."""
    with pytest.raises(CareError) as caught:
        read(body)
    failure = failure_of(caught.value)
    assert "\n" not in str(failure) and str(failure).rstrip(")").endswith(".")
    assert len(str(failure)) < 400
    return failure


# -- honoured --------------------------------------------------------------------------------------


def test_a_plain_request_is_greedy_and_repaired():
    found = read({})
    assert found.decoding == Decoding(24, 0.0, (), 0)
    assert found.conversation.messages() == [
        {"role": "user", "content": [{"type": "text", "text": "how do you wash a car?"}]}
    ]
    assert (found.stream, found.usage, found.repaired) == (False, False, True)


def test_what_is_asked_for_is_honoured():
    found = read(
        {"max_tokens": 7, "temperature": 0.5, "seed": 3, "stop": ["a", "b"], "stream": True},
        stream_options={"include_usage": True}, care={"repair": False},
    )  # fmt: skip
    assert found.decoding == Decoding(7, 0.5, ("a", "b"), 3)
    assert (found.stream, found.usage, found.repaired) == (True, True, False)
    assert read({"max_completion_tokens": 9, "stop": "x"}).decoding == Decoding(9, until=("x",))
    assert read({"max_completion_tokens": 9, "max_tokens": 9}).decoding.max_new_tokens == 9


def test_an_answer_drawn_without_a_seed_is_drawn_anew_and_with_one_again():
    drawn = [read({"temperature": 1}).conversation.digest() for _ in range(2)]
    seeded = [read({"temperature": 1, "seed": 0}).conversation.digest() for _ in range(2)]
    assert drawn[0] != drawn[1] and seeded[0] == seeded[1]


def test_turns_pictures_and_an_opening_are_kept():
    red, blue = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (5, 4), "blue")
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": "Before"},
            {"type": "image_url", "image_url": {"url": data_url(red), "detail": "auto"}},
            {"type": "text", "text": "after"},
        ]},
        {"role": "assistant", "content": "A car.", "refusal": None, "tool_calls": []},
        *user("And this?", data_url(blue, "WEBP")),
        {"role": "assistant", "content": "It is"},
    ]  # fmt: skip
    found = read({"messages": messages}).conversation
    assert [turn["role"] for turn in found.messages()] == ["system", "user", "assistant", "user"]
    kinds = [part["type"] for part in found.messages()[1]["content"]]
    assert kinds == ["text", "image", "text"] and found.opening == "It is"
    first, second = found.load_images()
    assert np.array_equal(np.asarray(first), np.asarray(red)) and second.size == (5, 4)


@pytest.mark.parametrize(
    "neutral",
    [
        {"n": 1}, {"top_p": 1.0}, {"presence_penalty": 0}, {"logprobs": False}, {"tools": []},
        {"tool_choice": "none"}, {"response_format": {"type": "text"}}, {"user": "me"},
        {"metadata": {"a": "b"}}, {"logit_bias": {}}, {"logit_bias": None}, {"anything": None},
        {"top_p": 0.3, "temperature": 0}, {"top_k": -1, "temperature": 1}, {"store": False},
        {"stream": None, "stop": None, "seed": None, "care": None, "max_tokens": None},
    ],
)  # fmt: skip
def test_what_changes_no_answer_is_taken(neutral):
    assert read(neutral).conversation.id == read({}).conversation.id


@pytest.mark.parametrize("thoughts", ["<think>Hm.</think>", None])
def test_thoughts_that_come_back_are_no_part_of_what_is_asked(thoughts):
    first, answer, second = *user("a"), {"role": "assistant", "content": "b"}, *user("c")
    told = answer | {"reasoning_content": thoughts}
    found = read({"messages": [first, told, second]}).conversation
    assert found.id == read({"messages": [first, answer, second]}).conversation.id


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "said", "param"),
    [
        ({"n": 2}, "n=2 can't be honoured", "n"),
        ({"n": True}, "n=True can't be honoured", "n"),
        ({"top_p": 0.3, "temperature": 1}, "top_p=0.3 can't", "top_p"),
        ({"logprobs": True}, "logprobs=True", "logprobs"),
        ({"logprobs": 0}, "logprobs=0", "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools=a list", "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format=", "response_format"),
        ({"frobnicate": 0}, "frobnicate=0 can't be honoured", "frobnicate"),
        ({"x" * 5000: 1}, "xxx", repr("x" * 60)),
        ({"a\nb": 1}, "'a\\nb'=1 can't", "'a\\nb'"),
        ({"\ud800": 1}, "'\\ud800'=1 can't", "'\\ud800'"),
        ({"tools": DEEP}, "tools=a list can't", "tools"),
        ({"messages": DEEP}, "messages[0] is an object, got a list", "messages"),
        ({"care": {"\ud800": 1}}, "got '\\ud800'", "care"),
        ({"messages": [{"role": "user", "content": "x", "\ud800": 1}]}, "can't", "messages"),
        ({"temperature": 3}, "temperature is a number from 0 to 2, got 3", "temperature"),
        ({"temperature": "hot"}, "temperature is a number", "temperature"),
        ({"temperature": True}, "temperature is a number", "temperature"),
        ({"max_tokens": 0}, "max_tokens is a whole number from 1 to 100, got 0", "max_tokens"),
        ({"max_tokens": 101}, "from 1 to 100, got 101", "max_tokens"),
        ({"max_tokens": 5.5}, "whole number", "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "differ; pass one", "max_tokens"),
        ({"seed": -1}, "seed is a whole number from 0", "seed"),
        ({"seed": [1]}, "got a list", "seed"),
        ({"stop": ""}, "stop is a text or a list", "stop"),
        ({"stop": ["a"] * 17}, "at most 16", "stop"),
        ({"stop": {"a": 1}}, "got an object", "stop"),
        ({"stream": "yes"}, "stream is true or false, got 'yes'", "stream"),
        ({"stream_options": {"include_usage": True}}, "needs stream", "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "takes include_usage", "stream_options"),
        ({"care": {"repair": 0}}, "repair is true or false, got 0", "repair"),
        ({"care": {"monitors": False}}, "care takes repair, got 'monitors'", "care"),
        ({"care": []}, "care is an object, got a list", "care"),
        ({"messages": ...}, "has no messages", "messages"),
        ({"messages": []}, "ends with a user's message", None),
        ({"messages": "hello"}, "messages is a list, got a text", "messages"),
        ({"messages": [1]}, r"messages[0] is an object, got a number", "messages"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "no tools are called", "messages"),
        ({"messages": [{"role": ["user"], "content": "4"}]}, "got a list", "messages"),
        ({"messages": [{"role": "user"}]}, "content is a text or a list of parts, got null",
         "messages"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "[0].name can't",
         "messages"),
        ({"messages": [{"role": "user", "content": "x", "reasoning_content": "y"}]},
         "[0].reasoning_content can't", "messages"),
        ({"messages": [{"role": "assistant", "content": "x", "reasoning_content": ["y"]}]},
         "[0].reasoning_content can't", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
         "got an object", "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "is empty", None),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]},
         "role 'system'", None),
        ({"messages": [{"role": "assistant", "content": user("", data_url())[0]["content"]}]},
         "only a user's may", "messages"),
        ({"messages": user("a \ud83d b")}, "half a character", "messages"),
        ({"messages": user("x" * 1601)}, "1,601 characters", "messages"),
        ({"messages": [*user("a")] * 60}, "120 messages and parts", "messages"),
    ],
)  # fmt: skip
def test_what_cant_be_honoured_is_named(asked, said, param):
    failure = refusal_of(asked)
    assert failure.status == 400 and said in str(failure) and failure.param == param


def test_another_model_isnt_found():
    failure = refusal_of({"model": "gpt-7"})
    assert failure.status == 404 and failure.code == "model_not_found" and "'tiny'" in str(failure)
    assert read({"model": ...}).conversation  # and none is this one


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "isn't JSON"),
        (b"{", "isn't JSON"),
        (b"\xff\xfe{}", "isn't JSON"),
        (b'{"messages": NaN}', "NaN is no number"),
        (b'{"temperature": Infinity}', "Infinity is no number"),
        (b"[1]", "JSON object, got a list"),
        (b"null", "JSON object, got null"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"model":"tiny","messages":[],"seed":1' + b"0" * 5000 + b"}", "isn't JSON"),
    ],
    ids=range(10),
)
def test_a_broken_body_is_one_sentence(body, said):
    failure = refusal_of(body)
    assert (failure.status, failure.code) == (400, "invalid_json") and said in str(failure)


# -- pictures --------------------------------------------------------------------------------------


def encoded(content, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def bomb(width, height):
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def other_format(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, kind)
    return encoded(buffer.getvalue())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.org/x.png", "nothing is fetched"),
        ("HTTP://169.254.169.254/latest", "nothing is fetched"),
        ("file:///etc/passwd", "nothing is fetched"),
        ("/etc/passwd", "no data URL"),
        ("data:image/png;base64,../../../etc/passwd", "isn't valid base64"),
        ("data:../../etc/passwd;base64,AAAA", "no data URL"),
        ("data:image/svg+xml;base64,AAAA", "no data URL"),
        ("data:image/png,AAAA", "no data URL"),
        ("data:image/png;base64,AAAA", "can't be read as PNG"),
        ("data:image/png;base64,", "can't be read as PNG"),
        ("data:image/png;base64,AA\nAA", "isn't valid base64"),
        (encoded(bomb(60_000, 60_000)), "too many pixels"),
        (encoded(bomb(5000, 5000)), "25,000,000 pixels, more than 10,000"),
        (encoded(bomb(90, 90)), "image 0 of the request"),
        (other_format("TIFF"), "can't be read as PNG"),
        (other_format("EPS"), "can't be read as PNG"),
        (other_format("BMP"), "can't be read as PNG"),
        (encoded(b"A" * (11 * 2**20)), "more than 10,485,760"),
    ],
    ids=range(18),
)
def test_a_picture_that_cant_be_used_is_named(url, said):
    failure = refusal_of({"messages": user("What is this?", url)})
    assert failure.status == 400 and said in str(failure) and "image 0" in str(failure)


def test_pictures_share_their_limits():
    small = data_url(Image.new("RGB", (70, 70)))
    assert len(read({"messages": user("x", small, small)}).conversation.images) == 2
    assert "more than 2 images" in str(refusal_of({"messages": user("x", small, small, small)}))
    large = data_url(Image.new("RGB", (75, 75)))
    assert "11,250 pixels" in str(refusal_of({"messages": user("x", large, large)}))


def test_a_failure_without_a_status_of_its_own_says_nothing_of_the_inside():
    failure = failure_of(RuntimeError("secret path /home/me"))
    assert failure.status == 500 and "secret" not in str(failure)
    told = RequestFailure(429, "queue_full", "Full.", retry_after=0.2)
    assert told.headers == {"Retry-After": "1"} and told.body["error"]["type"] == "rate_limit_error"
