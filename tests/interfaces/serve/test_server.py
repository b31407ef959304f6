"""A server on a real port, asked by OpenAI's own client and by hostile ones.

Its engine is scripted, so that torch isn't needed; with a model: `test_model`.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from care.interfaces.serve import events, heads, service
from care.interfaces.serve.failures import ModelStopped
from care.models.alarms import Alarm, Withdrawn
from kit.serving import (
    BARE_KEY,
    DIGEST,
    KEY,
    NAME,
    Scripted,
    data_url,
    said,
    serving,
    until,
    user,
)

ALARM = Alarm("answer", 1.2, 0.7, 16)


def post(running, body=None, key=None, **options):
    """A request by hand."""
    headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {key}"} if key else {})
    sent = {"model": NAME, "messages": user()} if body is None else body
    with httpx.Client(timeout=60) as client:
        url = f"{running.root}/v1/chat/completions"
        if isinstance(sent, bytes):
            headers = {"Content-Type": "application/json"} | headers
            return client.post(url, content=sent, headers=headers, **options)
        return client.post(url, json=sent, headers=headers, **options)


def get(running, path, **headers):
    return httpx.get(running.root + path, headers=headers)


def create(running, key="none", **asked):
    asked = {"model": NAME, "messages": user()} | asked
    return running.client(key).chat.completions.create(**asked)


# -- what there is ---------------------------------------------------------------------------------


def test_a_client_of_openai_is_answered():
    engine = Scripted()
    with serving(engine) as running:
        found = create(running, messages=user("What is this?", data_url()), max_tokens=5, stop="x")
        assert found.choices[0].message.content == "To wash a car"
        assert found.choices[0].finish_reason == "stop" and found.object == "chat.completion"
        assert found.care == {"source": "model", "alarms": [], "repair": DIGEST}
        assert found.usage.total_tokens == 8
        [asked] = engine.asked
        assert asked.repaired and len(asked.conversation.images) == 1
        assert asked.decoding.max_new_tokens == 5 and asked.decoding.until == ("x",)
        line = running.logged()
        assert line["status"] == 200 and line["id"] == found.id and line["source"] == "model"
        assert line["prompt_tokens"] == 3 and line["tokens"] == 3 and line["caller"] == 0
        assert "wash" not in json.dumps(line) and "asked" not in line and "answer" not in line


def test_models_health_and_counts():
    with serving(Scripted(said("I'm sorry.", "refusal", [ALARM]))) as running:
        [model] = running.client().models.list().data
        assert model.id == NAME and model.owned_by == "care"
        assert running.client().models.retrieve(NAME) == model
        with pytest.raises(openai.NotFoundError, match="no model 'a/b' here"):
            running.client().models.retrieve("a/b")
        assert get(running, "/health").json() == {"status": "ok"}
        assert get(running, "/ready").json() == {"status": "ready"}
        assert create(running).choices[0].finish_reason == "content_filter"
        with pytest.raises(openai.BadRequestError):
            create(running, n=2)
        list(create(running, stream=True))
        running.logged(3)
        counts = get(running, "/metrics").text
        for line in (
            'care_requests_total{status="200"} 2.0',
            'care_requests_total{status="400"} 1.0',
            'care_answers_total{source="refusal"} 2.0',
            'care_alarms_total{monitor="answer"} 2.0',
            "care_request_seconds_count 2.0",
            "care_first_token_seconds_count 1.0",
            "care_queue_length 0.0",
        ):
            assert f"\n{line}\n" in counts


def test_a_stream_comes_in_pieces_while_it_is_made():
    go = threading.Event()
    engine = Scripted(said("To wash a car"), pieces=["To wash", " a"], go=go)
    with serving(engine) as running:
        stream = iter(create(running, stream=True, stream_options={"include_usage": True}))
        assert next(stream).choices[0].delta.role == "assistant"
        assert [next(stream).choices[0].delta.content for _ in range(2)] == ["To wash", " a"]
        go.set()
        *rest, numbers = stream
        assert rest[0].choices[0].delta.content == " car"
        assert rest[-1].choices[0].finish_reason == "stop"
        assert rest[-1].care["repair"] == numbers.care["repair"] == DIGEST
        assert numbers.usage.total_tokens == 8 and numbers.choices == []
        assert running.logged()["stream"] is True
        assert "care_first_token_seconds_count 1.0" in get(running, "/metrics").text


def test_what_a_stream_withdrew_is_told_logged_and_counted():
    pieces = ["Mix two", Withdrawn("Mix two", ALARM), "I'm sorry."]
    with serving(Scripted(said("I'm sorry.", "refusal", [ALARM]), pieces=pieces)) as running:
        chunks = list(create(running, stream=True))
        told = [n for n, c in enumerate(chunks) if "withdrawn" in (getattr(c, "care", None) or {})]
        assert len(told) == 1 and chunks[told[0]].care["withdrawn"]["content"] == "Mix two"
        after = "".join(c.choices[0].delta.content or "" for c in chunks[told[0] :])
        assert after == "I'm sorry." and chunks[-1].care["alarms"][0]["monitor"] == "answer"
        line = running.logged()
        assert line["withdrawn"] is True and line["alarms"] == [["answer", 1.2]]
        assert "care_withdrawn_total 1.0" in get(running, "/metrics").text


@pytest.mark.parametrize("gone", [False, True])
def test_an_alarm_is_logged_and_counted_once_whatever_the_end(gone):
    go = threading.Event()
    engine = Scripted(pieces=[Withdrawn("", ALARM)], go=go, error=RuntimeError("out of order"))
    with serving(engine) as running:
        with running.connection(user(), stream=True):
            until(lambda: engine.asked)
            if not gone:
                go.set()
                running.logged()
        line = running.logged()
        assert line["status"] == (499 if gone else 500) and line["alarms"] == [["answer", 1.2]]
        assert 'care_alarms_total{monitor="answer"} 1.0' in get(running, "/metrics").text
        go.set()


def test_a_stream_that_waits_says_that_it_lives(monkeypatch):
    monkeypatch.setattr(events, "LIFE_SIGN", 0.05)
    go = threading.Event()
    with serving(Scripted(go=go)) as running:
        body = {"model": NAME, "messages": user(), "stream": True}
        url = f"{running.root}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = []
            for line in response.iter_lines():
                lines.append(line)
                if line == ": waiting":
                    go.set()
        assert ": waiting" in lines and lines[-2] == "data: [DONE]"


def test_a_client_that_doesnt_read_loses_its_place(monkeypatch):
    monkeypatch.setattr(events, "READ_SECONDS", 0.3)
    pieces = ["many words " * 10**6]
    with serving(Scripted(said("".join(pieces)), pieces=pieces)) as running:
        body = json.dumps({"messages": user(), "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            assert running.logged()["status"] == 499
            assert "care_queue_length 0.0" in get(running, "/metrics").text


def test_words_of_a_request_are_in_no_line_of_an_error():
    with serving(Scripted()) as running:
        with pytest.raises(openai.BadRequestError, match="secret words"):
            create(running, messages=[{"role": "user", "content": ["secret words"]}])
        line = running.logged()
        assert line["error"] == "invalid_value" and "secret" not in json.dumps(line)


def test_contents_are_logged_where_that_is_asked_for():
    with serving(Scripted(), contents=True) as running:
        create(running)
        line = running.logged()
        assert line["asked"] == "how do you wash a car?" and line["answer"] == "To wash a car"


# -- who may ask -----------------------------------------------------------------------------------


def test_keys_are_asked_for_and_never_written():
    with serving(Scripted(), keys=[KEY], contents=True) as running:
        assert create(running, KEY).choices
        with pytest.raises(openai.AuthenticationError, match="isn't one of this server's"):
            create(running, "another-key-than-that")
        assert post(running).json()["error"]["code"] == "invalid_api_key"
        assert get(running, "/v1/models").status_code == 401
        assert get(running, "/metrics").status_code == 401
        assert get(running, "/metrics", Authorization=f"Bearer {KEY}").status_code == 200
        assert get(running, "/health").status_code == get(running, "/ready").status_code == 200
        running.logged(3)
        written = json.dumps(running.log)
        assert KEY not in written and "another-key" not in written
        assert [line["caller"] for line in running.log if "caller" in line] == [1]


def test_the_bare_model_is_asked_only_by_keys_that_may():
    engine = Scripted()
    bare = {"care": {"repair": False}}
    with serving(engine, keys=[KEY], bare=[BARE_KEY]) as running:
        with pytest.raises(openai.PermissionDeniedError, match="may not ask for the bare model"):
            create(running, KEY, extra_body=bare)
        assert not engine.asked
        assert create(running, BARE_KEY, extra_body=bare).care["repair"] is None
        assert create(running, BARE_KEY).care["repair"] == DIGEST
        assert [asked.repaired for asked in engine.asked] == [False, True]
    with serving(Scripted()) as running, pytest.raises(openai.PermissionDeniedError):
        create(running, extra_body=bare)


def test_without_keys_a_page_of_another_name_is_turned_away():
    with serving(Scripted()) as running:
        refused = post(running, headers={"Host": "evil.example"})
        assert refused.status_code == 403 and "evil.example" in refused.json()["error"]["message"]
        assert post(running, headers={"Host": f"localhost:{running.port}"}).status_code == 200
        assert post(running, headers={"Host": "[nonsense"}).status_code == 403
        # What a page may send without being asked whether it may.
        plain = post(running, b"{}", headers={"Content-Type": "text/plain"})
        assert plain.status_code == 415 and "application/json" in plain.json()["error"]["message"]


# -- limits ----------------------------------------------------------------------------------------


def test_a_full_house_says_when_to_come_again():
    go = threading.Event()
    engine = Scripted(go=go)
    with serving(engine, max_waiting=2) as running, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(create, running) for _ in range(2)]
        until(lambda: len(engine.asked) == 2)
        with pytest.raises(openai.RateLimitError, match="2 requests already") as caught:
            create(running)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert "care_queue_length 2.0" in get(running, "/metrics").text
        go.set()
        assert [each.result().choices[0].message.content for each in waiting]
        assert create(running).choices


def test_a_key_that_asks_too_often_is_told_and_others_are_not():
    with serving(Scripted(), keys=[KEY], bare=[BARE_KEY], requests_per_minute=3) as running:
        for _ in range(3):
            create(running, KEY)
        with pytest.raises(openai.RateLimitError, match="more than 3 requests in a minute"):
            create(running, KEY)
        assert create(running, BARE_KEY).choices


def test_a_body_that_is_too_large_is_told_so_to_who_still_sends():
    with serving(Scripted(), max_body_bytes=1000) as running:
        refused = post(running, b"x" * 1_500_000)
        assert refused.status_code == 413 and "1,000 bytes" in refused.json()["error"]["message"]

        def chunks():
            for _ in range(100):
                yield b"y" * 1000

        assert post(running, body=None, headers={}).status_code == 200
        url = f"{running.root}/v1/chat/completions"
        sent = httpx.post(url, content=chunks(), headers={"Content-Type": "application/json"})
        assert sent.status_code == 413


def test_a_body_that_never_comes_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(service, "BODY_SECONDS", 0.1)
    with serving(Scripted()) as running:
        with socket.create_connection(("127.0.0.1", running.port)) as slow:
            slow.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
                b"Content-Type: application/json\r\n\r\n{"
            )
            assert b" 408 " in slow.recv(1000)
        assert create(running).choices


def test_who_asks_for_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(heads, "HEAD_SECONDS", 0.2)
    go = threading.Event()
    engine = Scripted(go=go)
    begun = b"GET /health HTTP/1.1\r\nHost:"
    whole = begun + b" localhost\r\n\r\n"
    with serving(engine) as running, running.connection(user(), first=whole) as asking:
        until(lambda: engine.asked)
        for said in (b"", begun, whole + begun):
            with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
                client.sendall(said)
                while client.recv(4096):  # until it is closed
                    pass
        assert not engine.asked[0].gone  # one that waits for its answer isn't
        go.set()
        found = b""
        while b"To wash a car" not in found:
            more = asking.recv(4096)
            assert more
            found += more


def test_prompts_and_answers_have_their_lengths():
    with serving(Scripted(), max_prompt_tokens=6, max_answer_tokens=9) as running:
        assert create(running).choices
        with pytest.raises(openai.BadRequestError, match="7 tokens, more than its 6"):
            create(running, messages=user("one two three four five six seven"))
        with pytest.raises(openai.BadRequestError, match="from 1 to 9, got 10"):
            create(running, max_tokens=10)
        assert running.server.service.engine.asked[0].decoding.max_new_tokens == 9


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[" * 100_000, b"null", b"[]", b"\xff", b'{"messages": {"role": "user"}}',
        b'{"messages": [[]]}', b'{"messages": [{"role": "user", "content": [[]]}]}',
        b'{"messages": [{"role": "user", "content": 1e999}]}', b'{"model": {"a": 1}}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [], "\\ud800": 1}',
        b'{"messages": [], "a\\nb": 1}', b'{"model": "\\ud800", "messages": []}',
        b'{"messages": [], "tools": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
    ids=range(16),
)  # fmt: skip
def test_a_hostile_body_is_a_400_in_one_sentence(hostile, body):
    refused = post(hostile, body)
    error = refused.json()["error"]
    assert 400 <= refused.status_code < 500 and set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith((".", ".)")) and "\n" not in error["message"]


@pytest.fixture(scope="module")
def hostile():
    with serving(Scripted()) as running:
        yield running
        assert create(running).choices
        assert not [line for line in running.log if "unforeseen" in line]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/v1/chat/completions", 405), ("POST", "/v1/completions", 404),
     ("GET", "/../../etc/passwd", 404), ("DELETE", "/v1/models", 405)],
)  # fmt: skip
def test_what_there_isnt_is_told_as_openai_does(hostile, method, path, status):
    refused = httpx.request(method, hostile.root + path)
    assert refused.status_code == status and "there is" in refused.json()["error"]["message"]
    code = refused.json()["error"]["code"]
    assert code == ("method_not_allowed" if status == 405 else "not_found")
    assert ("Allow" in refused.headers) == (status == 405)


def test_nonsense_on_the_wire_is_no_traceback(hostile):
    with socket.create_connection(("127.0.0.1", hostile.port)) as wire:
        wire.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b"400" in wire.recv(1000)
    assert create(hostile).choices


# -- what goes wrong -------------------------------------------------------------------------------


def test_an_unforeseen_error_is_told_without_its_inside():
    with serving(Scripted(error=RuntimeError("the secret inside"))) as running:
        with pytest.raises(openai.InternalServerError, match="its log says more"):
            create(running)
        with pytest.raises(openai.APIError, match="its log says more"):
            list(create(running, stream=True))
        running.logged(2)
        assert all("the secret inside" in line["unforeseen"] for line in running.log[2:4])
        assert [line["status"] for line in running.log if line["event"] == "request"] == [500, 500]


def test_nothing_is_answered_before_the_model_is_there():
    go = threading.Event()

    def load():
        go.wait(60)
        return Scripted()

    with serving(load, loaded=False) as running:
        assert get(running, "/health").status_code == 200
        refused = get(running, "/ready")
        assert refused.status_code == 503 and "still being loaded" in refused.text
        with pytest.raises(openai.InternalServerError, match="still being loaded"):
            create(running)
        go.set()
        until(lambda: get(running, "/ready").status_code == 200)


def test_a_failed_device_is_not_ready():
    engine = Scripted()
    with serving(engine) as running:
        engine.alive = False
        assert "start the server again" in get(running, "/ready").text
        with pytest.raises(openai.InternalServerError, match="start the server again"):
            create(running)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_marks_its_request_at_once(stream):
    go = threading.Event()
    engine = Scripted(pieces=["To wash"], go=go)
    with serving(engine) as running:
        with running.connection(user(), stream=stream):
            until(lambda: engine.asked)
            assert not engine.asked[0].gone
        until(lambda: engine.asked[0].gone)
        assert running.logged()["status"] == 499
        assert "care_queue_length 0.0" in get(running, "/metrics").text
        go.set()
        assert create(running).choices


# -- the end ---------------------------------------------------------------------------------------


def test_what_is_being_answered_is_finished_and_who_asks_meanwhile_is_told():
    go = threading.Event()
    engine = Scripted(go=go)
    with serving(engine) as running, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(create, running)
        until(lambda: engine.asked)
        running.server.should_exit = True
        until(lambda: any(line["event"] == "ending" for line in running.log))
        for refused in (post(running), get(running, "/ready")):
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
        assert get(running, "/health").status_code == 200
        assert len(engine.asked) == 1 and not engine.stopped
        go.set()
        assert waiting.result().choices[0].message.content == "To wash a car"
    assert engine.stopped
    with pytest.raises(httpx.ConnectError):
        post(running)


@pytest.mark.parametrize("way", ["grace", "second Ctrl-C"])
def test_after_its_grace_or_a_second_signal_the_model_is_stopped(way):
    engine = Scripted(go=threading.Event())
    engine.stop = lambda: setattr(engine, "error", ModelStopped()) or engine.go.set()
    grace = 0.2 if way == "grace" else 60
    with serving(engine, grace=grace) as running, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, running)
        until(lambda: engine.asked)
        for _ in range(1 if way == "grace" else 2):
            running.server.handle_exit(signal.SIGINT, None)
        refused = waiting.result(30)
    assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
    assert "before the answer was there" in refused.json()["error"]["message"]
    assert running.logged()["status"] == 503


def test_a_third_signal_waits_for_nothing_and_tells_who_does():
    engine = Scripted(go=threading.Event())  # goes on for ever, and heeds no stop
    with serving(engine) as running, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, running)
        until(lambda: engine.asked)
        for _ in range(3):
            running.server.handle_exit(signal.SIGINT, None)
        refused = waiting.result(5)
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
    assert running.logged()["status"] == 503


def test_every_line_is_json_with_a_time(hostile):
    assert all(re.match(r"\d{4}-\d\d-\d\dT", line["time"]) for line in hostile.log)
