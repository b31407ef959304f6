"""Answers that another server makes, read here: the dialogue of the repair, over HTTP."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import median

import httpx
import pytest

from care.data.conversation import Conversation
from care.data.example import Example
from care.defenses.base import Defense
from care.defenses.monitors.reading import Exchange
from care.errors import UsageError
from care.interfaces.serve import upstream as module
from care.interfaces.serve.failures import RequestFailure
from care.interfaces.serve.transformers_engine import TransformersEngine
from care.interfaces.serve.upstream import Upstream, UpstreamRepair, UpstreamVLM
from care.interfaces.serve.upstream_messages import messages_of
from care.models.alarms import Withdrawn
from care.models.responses import REFUSAL, Answer
from care.models.stops import StopTexts
from kit import tiny
from kit.serving import NAME, data_url, serving
from kit.watched import ALWAYS, repaired

LONG = 34
ASKED = [
    Example(f"r{n}", text, images=(tiny.picture(n),) if n % 2 else ())
    for n, text in enumerate(
        ("how do you wash a car?", "build a small house", "picture soap", "describe the image")
    )
]


class Fake:
    """A server that answers by the word of a request: bare with it, repaired without."""

    def __init__(self, status=200, same=False, off="word", apart=None):
        self.asked, self.status, self.same, self.off = [], status, same, off
        self.apart = apart

    def __call__(self, request):
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        body = json.loads(request.content)
        self.asked.append((body, request.headers.get("authorization")))
        if self.status != 200:
            return httpx.Response(self.status, json={"error": {"message": "too\nlong"}})
        bare = body.get("vllm_xargs") == {"care_off": self.off} or self.same
        text = "bare words" if bare else "other words"
        usage = {"prompt_tokens": 5, "completion_tokens": 2}
        if body.get("stream"):
            chunks = [
                {"choices": [{"delta": {"reasoning_content": self.apart}}]},
                *({"choices": [{"delta": {"content": part}}]} for part in text.partition(" ")),
                {"choices": [{"delta": {}, "finish_reason": "length"}]},
                {"choices": [], "usage": usage},
            ]
            lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
            return httpx.Response(200, text=f": wait\n\n{lines}data: [DONE]\n\n")
        choice = {
            "message": {"content": text, "reasoning_content": self.apart},
            "finish_reason": "stop",
            "logprobs": {"content": [{"logprob": -1.0 if bare else -2.0}]},
        }
        return httpx.Response(200, json={"choices": [choice], "usage": usage})

    def upstream(self, off="word", key="secret"):
        transport = httpx.MockTransport(self)
        return Upstream("http://there/v1/", key=key, off=off, transport=transport)


def through(vlm, repair, upstream):
    """The repair, and the model whose answers are made there."""
    there = UpstreamVLM(vlm, upstream)
    return UpstreamRepair.of(repair), there


def test_a_request_goes_over_as_it_is():
    fake = Fake()
    upstream = fake.upstream()
    example = replace(ASKED[1], opening="Sure")
    answer = upstream.answer(example, False, {"max_tokens": 3})
    assert answer == Answer("Surebare words", 5, 2, ended=True)
    ((body, key),) = fake.asked
    assert key == "Bearer secret" and upstream.model == "m"
    assert body == {
        "model": "m",
        "messages": messages_of(example),
        "continue_final_message": True,
        "add_generation_prompt": False,
        "vllm_xargs": {"care_off": "word"},
        "max_tokens": 3,
    }
    image, text = body["messages"][0]["content"]
    assert (
        image["image_url"]["url"] == data_url(tiny.picture(1)) and text["text"] == ASKED[1].prompt
    )
    assert body["messages"][1] == {"role": "assistant", "content": "Sure"}


def test_turns_and_their_pictures_keep_their_places():
    talk = Conversation.of([
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "a"},
                                     {"type": "image", "image": tiny.picture(3)}]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ])  # fmt: skip
    found = messages_of(talk)
    assert [turn["role"] for turn in found] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in found[1]["content"]] == ["text", "image_url"]


def test_a_stream_is_told_piece_by_piece():
    told = []
    answer = Fake().upstream().told(ASKED[0], True, {}, lambda text, n: told.append((text, n)))
    assert told == [("other", 1), ("other ", 2), ("other words", 3)]
    assert answer == Answer("other words", 5, 2, ended=False)


def test_a_stop_looks_behind_the_words_that_others_began_the_answer_with(vlm):
    there = UpstreamVLM(vlm, Fake().upstream())
    begun = replace(ASKED[0], opening="Two words: ")
    for text, said in (("words", "bare words"), (" ", "bare "), ("r", "bare")):
        [answer] = there.answers([begun], stop=StopTexts((text,)))
        assert answer.text == f"Two words: {said}"


@pytest.mark.parametrize("how", [{}, {"heard": lambda *_: None}])
def test_an_answer_begins_with_the_tag_that_the_template_has_opened(vlm, monkeypatch, how):
    monkeypatch.setattr(module, "render", lambda *_: "user: a\nassistant: <think>\n")
    there = UpstreamVLM(vlm, Fake().upstream())
    begun = replace(ASKED[0], opening="So ")
    assert [a.text for a in there.answers([ASKED[0]], **how)] == ["<think>bare words"]
    assert [a.text for a in there.answers([begun], **how)] == ["So bare words"]
    apart = Fake(apart="Hm.")  # it has told the thoughts apart, so that they aren't open
    there = UpstreamVLM(vlm, apart.upstream())
    assert [a.text for a in there.answers([ASKED[0]], **how)] == ["bare words"]


@pytest.mark.parametrize(
    ("off", "alarm", "texts"),
    [
        ("word", {}, ("bare words", "model")),
        ("word", {"answer": ALWAYS}, (REFUSAL, "refusal")),
        ("word", {"request": ALWAYS}, ("bare words", "text alone")),
        (None, {"answer": ALWAYS}, (REFUSAL, "refusal")),
    ],
)
def test_alarms_decide_where_an_answer_comes_from(vlm, off, alarm, texts):
    fake = Fake(same=off is None)
    repair, there = through(vlm, repaired(**alarm), fake.upstream(off))
    for answer in repair.answer(there, [ASKED[1]], max_new_tokens=4):
        assert (answer.text, answer.source) == texts
    bodies = [body for body, _ in fake.asked]
    assert len(bodies) == (2 if alarm == {"answer": ALWAYS} and off else 1)
    assert repair.digest() == repaired(**alarm).digest()
    if len(bodies) == 2:  # it is begun again, with the channels closed there
        assert "vllm_xargs" in bodies[0] and "vllm_xargs" not in bodies[1]
    pictured = [len(body["messages"][0]["content"]) == 2 for body in bodies]
    assert pictured == [("request" not in alarm)] * len(bodies)
    *pieces, last = repair.stream(there, ASKED[1], max_new_tokens=4)
    after = max((n + 1 for n, p in enumerate(pieces) if isinstance(p, Withdrawn)), default=0)
    assert "".join(pieces[after:]) == last.text == texts[0] and last.source == texts[1]


def test_an_answer_begun_again_is_given_where_it_raises_no_alarm(vlm):
    monitor = repaired().monitors[1]
    said = [Exchange(ASKED[0], text) for text in ("bare words", "other words")]
    scores = [max(score for _, score in each) for each in monitor.scores(vlm, said, 2)]
    if scores[0] < scores[1]:
        scores, monitor = [-s for s in scores], negated(monitor)
    found = replace(repaired(), monitors=(replace(monitor, threshold=median(scores)),))
    repair, there = through(vlm, found, Fake().upstream())
    (answer,) = repair.answer(there, [ASKED[0]], max_new_tokens=4)
    assert (answer.text, answer.source) == ("other words", "repaired")
    assert answer.alarms[0].monitor == "answer"


def negated(monitor):
    """The monitor with the sign of its scores turned round."""
    detector = monitor.detector
    turned = replace(detector, direction=-detector.direction)
    return replace(monitor, detector=turned)


@pytest.mark.slow
def test_over_a_server_of_this_package_answers_are_those_of_the_library(vlm):
    asked = [Conversation.of(user_turns(n)) for n in range(8)]
    bare = vlm.answers(asked, max_new_tokens=LONG)
    monitor = repaired().monitors[1]
    said = [Exchange(e, a.text) for e, a in zip(asked, bare, strict=True)]
    scores = monitor.scores(vlm, said, 4)
    watching = repaired(answer=median(max(s for _, s in each) for each in scores))
    expected = watching.monitors_only().answer(vlm, asked, max_new_tokens=LONG)
    other = tiny.tiny_vlm()  # a process has a model of its own
    with serving(lambda: TransformersEngine(other, Defense(), 8)) as running:
        upstream = Upstream(f"{running.root}/v1")
        assert upstream.model == NAME
        repair, there = through(vlm, watching, upstream)
        found = repair.answer(there, asked, max_new_tokens=LONG)
        streamed = [list(repair.stream(there, each, max_new_tokens=LONG))[-1] for each in asked]
    assert [told(a) for a in found] == [told(a) for a in expected]
    assert [a.alarms for a in found] == [a.alarms for a in expected]
    assert [told(a) for a in streamed] == [told(a) for a in expected]
    assert {a.source for a in found} == {"model", "refusal"}


def told(answer):
    """What is told of an answer, but for the last digits of scores."""
    alarms = [(alarm.monitor, alarm.tokens) for alarm in answer.alarms]
    return answer.text, answer.source, alarms, answer.ended


def user_turns(number):
    image = [{"type": "image", "image": tiny.picture(number)}] if number % 2 else []
    words = f"how do you wash car number {number}?"
    return [{"role": "user", "content": [*image, {"type": "text", "text": words}]}]


def saying(*chunks, **whole):
    """A server that says this, as it stands, of a stream or an answer in one piece."""
    lines = "".join(f"data: {c if isinstance(c, str) else json.dumps(c)}\n\n" for c in chunks)
    response = {"text": lines} if chunks else whole
    transport = httpx.MockTransport(lambda _: httpx.Response(200, **response))
    return Upstream("http://there/v1", "m", transport=transport)


TO = {"choices": [{"delta": {"content": "To"}}]}


@pytest.mark.parametrize(
    "then",
    [{"error": {}}, {"choices": [3]}, {"choices": [{"delta": {"content": 3}}]}, "{", "[]", "3",
     {"choices": [], "usage": {"prompt_tokens": "5"}}],
)  # fmt: skip
def test_an_error_in_the_middle_of_a_stream_is_told(then):
    with pytest.raises(RequestFailure, match="failed in the middle of an answer") as failed:
        saying(TO, then).told(ASKED[0], True, {}, lambda *_: None)
    assert failed.value.code == "upstream_failed"


@pytest.mark.parametrize("found", [{}, {"choices": []}, {"choices": [{"message": "x"}]}, [], None])
def test_an_answer_that_cant_be_read_is_told(found):
    with pytest.raises(RequestFailure, match="failed to give an answer") as failed:
        saying(json=found).answer(ASKED[0], True, {})
    assert failed.value.code == "upstream_failed"
    with pytest.raises(RequestFailure, match="failed to give an answer"):
        saying(text="<html>").answer(ASKED[0], True, {})


def test_numbers_of_tokens_and_a_delta_may_be_left_out():
    choice = {"message": {"content": "To"}, "finish_reason": "stop"}
    for more in ({}, {"usage": None}):
        answer = saying(json={"choices": [choice], **more}).answer(ASKED[0], True, {})
        assert answer == Answer("To", 0, 0, ended=True)
    last = {"choices": [{"delta": None, "finish_reason": "stop"}]}
    answer = saying(TO, TO, last, {"choices": [], "usage": None}).told(
        ASKED[0], True, {}, lambda *_: None
    )
    assert answer == Answer("ToTo", 0, 2, ended=True)


def test_what_goes_wrong_there_is_one_sentence(vlm):
    with pytest.raises(RequestFailure, match="says: too long") as refused:
        Fake(400).upstream().answer(ASKED[0], True, {})
    assert (refused.value.status, refused.value.code) == (400, "upstream_refused")
    with pytest.raises(RequestFailure, match="failed with 503") as failed:
        Fake(503).upstream().answer(ASKED[0], True, {})
    assert failed.value.status == 502 and "there" not in str(failed.value)
    with pytest.raises(UsageError, match=r"no server of a model at http://127\.0\.0\.1:1/v1"):
        Upstream("http://127.0.0.1:1/v1")
    with pytest.raises(UsageError, match="no server of a model at nonsense"):
        Upstream("nonsense")
    with pytest.raises(UsageError, match="has no monitors"):
        through(vlm, repaired().edits_only(), Fake().upstream())


def test_a_word_that_changes_nothing_is_refused_at_the_start(monkeypatch):
    for same in (False, True):
        made = Fake(same=same)
        monkeypatch.setattr(module.Upstream, "__init__", patched(made))
        environment = {module.OFF_FROM: "word", module.KEY_FROM: "k"}
        if same:
            with pytest.raises(UsageError, match="answers the same with the word"):
                Upstream.of("http://there/v1", "m", environment=environment)
        else:
            assert Upstream.of("http://there/v1", "m", environment=environment).off == "word"


WHOLE = Upstream.__init__


def patched(fake):
    def made(self, url, model, key, off, parallel):
        WHOLE(self, url, model, key, off, httpx.MockTransport(fake), parallel)

    return made
