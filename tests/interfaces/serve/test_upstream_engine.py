"""Requests that are answered elsewhere, many at once: each goes its own way, and readings share
batches."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median

import httpx
import openai
import pytest

from care.data.conversation import Conversation
from care.data.example import Example
from care.defenses.base import Defense
from care.defenses.monitors.reading import Exchange
from care.interfaces.serve.reading_together import Reader
from care.interfaces.serve.upstream import Upstream, UpstreamEdits, UpstreamRepair, UpstreamVLM
from care.interfaces.serve.upstream_engine import UpstreamEngine
from care.models.responses import REFUSAL
from kit import tiny
from kit.serving import BARE_KEY, KEY, NAME, serving, until, user
from kit.watched import ALWAYS, repaired

USAGE = {"prompt_tokens": 5, "completion_tokens": 2}


class There:
    """A server that answers with the request's own words, bare or closed by the word; requests that
    hold "wait" wait for `go`, also between two pieces of a stream."""

    def __init__(self):
        self.go, self.guard = threading.Event(), threading.Lock()
        self.under_way = self.most = self.pieces = 0
        self.ended, self.seeds = [], []

    def __call__(self, request):
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        body = json.loads(request.content)
        with self.guard:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        self.seeds.append(body.get("seed"))
        asked = body["messages"][-1]["content"][-1]["text"]
        text = asked if "vllm_xargs" in body else f"closed {asked}"
        if body.get("stream"):
            return httpx.Response(200, stream=Stream(self._stream(text)))
        self._wait(text)
        self._end(text)
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice], "usage": USAGE})

    def _stream(self, text):
        try:
            for word in text.split():
                self.pieces += 1
                chunk = {"choices": [{"delta": {"content": f"{word} "}}]}
                yield f"data: {json.dumps(chunk)}\n\n".encode()
                self._wait(text)
                time.sleep(0.005)
            last = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": USAGE}
            yield f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode()
        finally:
            self._end(text)

    def _wait(self, text):
        if "wait" in text:
            assert self.go.wait(60)

    def _end(self, text):
        with self.guard:
            self.under_way -= 1
            self.ended.append(text)


class Stream(httpx.SyncByteStream):
    """Pieces that end when the connection is closed."""

    def __init__(self, pieces):
        self.pieces = pieces

    def __iter__(self):
        yield from self.pieces

    def close(self):
        self.pieces.close()


@pytest.fixture
def there():
    found = There()
    yield found
    found.go.set()


def engine(vlm, there, repair=None, parallel=16, size=8, **how):
    """An engine whose answers `there` makes."""
    transport = httpx.MockTransport(there)
    upstream = Upstream("http://there/v1", off="word", transport=transport, parallel=parallel)
    repair = repair or repaired()
    reader = Reader(vlm, size)
    defense = UpstreamRepair.of(repair, reader) if repair.monitors else UpstreamEdits(repair)
    return UpstreamEngine(UpstreamVLM(vlm, upstream), defense, parallel, **how)


def create(running, text, key="none", **asked):
    asked = {"model": NAME, "messages": user(text), "max_tokens": 8} | asked
    return running.client(key).chat.completions.create(**asked)


def text_of(answer):
    return answer.choices[0].message.content


def pieces_of(stream):
    return [c.choices[0].delta.content for c in stream if c.choices and c.choices[0].delta.content]


def test_nobody_waits_for_the_answer_to_another(vlm, there):
    with serving(engine(vlm, there)) as running, ThreadPoolExecutor(2) as pool:
        long = pool.submit(create, running, "wait for it")
        until(lambda: there.under_way == 1)
        assert text_of(create(running, "wash a car")) == "wash a car"
        assert not long.done()
        there.go.set()
        assert text_of(long.result()) == "wait for it"


def test_every_stream_comes_in_pieces_however_many_are_asked(vlm, there):
    with serving(engine(vlm, there, hold=0)) as running, ThreadPoolExecutor(4) as pool:
        long = [pool.submit(create, running, f"wait for {n}") for n in range(3)]
        until(lambda: there.under_way == 3)
        found = [pieces_of(create(running, f"wash car {n}", stream=True)) for n in range(2)]
        assert found == [["wash ", "car ", f"{n} "] for n in range(2)]
        there.go.set()
        for n, each in enumerate(long):
            assert text_of(each.result()) == f"wait for {n}"


def test_what_is_read_at_once_is_read_in_one_pass(vlm, there):
    """One pass is under way, and fifteen wait: they are the next one, or two."""
    sizes, held = [], threading.Event()

    def hold(module, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        assert held.wait(60)

    hook = vlm.model.register_forward_pre_hook(hold, with_kwargs=True)
    repair = repaired(request=ALWAYS)
    repair = replace(repair, monitors=[m for m in repair.monitors if m.reads == "request"])
    try:
        with (
            serving(engine(vlm, there, repair, size=16)) as running,
            ThreadPoolExecutor(16) as pool,
        ):
            asked = [pool.submit(create, running, "wash a car")]
            until(lambda: sizes == [1])
            asked += [pool.submit(create, running, f"build house {n}") for n in range(15)]
            service = running.server.service
            until(lambda: service.inside == 16)
            time.sleep(0.2)
            held.set()
            answers = [each.result() for each in asked]
    finally:
        hook.remove()
    assert sum(sizes) == 16 and len(sizes) <= 3
    assert [a.care["alarms"][0]["monitor"] for a in answers] == ["request"] * 16


@pytest.mark.slow
def test_alarms_of_many_are_those_of_each_alone(vlm, there):
    texts = [f"how do you wash car number {n} ?" for n in range(16)]
    alone = [
        UpstreamRepair.of(half(vlm, texts)).answer(
            engine(vlm, there)._there, [Conversation.of(user(text))], max_new_tokens=8
        )[0]
        for text in texts
    ]
    sources = [answer.source for answer in alone]
    assert len(set(sources)) > 1
    with serving(engine(vlm, there, half(vlm, texts))) as running, ThreadPoolExecutor(16) as pool:
        whole = list(pool.map(lambda text: create(running, text), texts))
        streams = list(pool.map(lambda text: list(create(running, text, stream=True)), texts))
    assert [text_of(each) for each in whole] == [answer.text for answer in alone]
    assert [each.care["source"] for each in whole] == sources
    assert [each[-1].care["source"] for each in streams] == sources


def half(vlm, texts):
    """A repair that raises an alarm at about half of these as answers."""
    monitor = repaired().monitors[1]
    said = [Exchange(Example("r", text), text) for text in texts]
    scores = [max(score for _, score in each) for each in monitor.scores(vlm, said, 4)]
    return repaired(**{monitor.reads: median(scores)})


@pytest.mark.slow
def test_closed_channels_are_those_of_one_request_alone(vlm, there):
    edits = engine(vlm, there, repaired().edits_only())
    with (
        serving(edits, keys=[KEY], bare=[BARE_KEY]) as running,
        ThreadPoolExecutor(16) as pool,
    ):
        bare = {"key": BARE_KEY, "extra_body": {"care": {"repair": False}}}
        ways = [bare if n % 3 == 0 else {"key": KEY, "stream": n % 2 == 0} for n in range(48)]

        def ask(way):
            found = create(running, "wash a car", **way)
            return "".join(pieces_of(found)) if way.get("stream") else text_of(found)

        found = list(pool.map(ask, ways))
    for way, text in zip(ways, found, strict=True):
        assert text.strip() == ("wash a car" if way is bare else "closed wash a car")


def test_draws_are_new_each_time_unless_they_have_a_seed(vlm, there):
    with serving(engine(vlm, there, repaired().edits_only())) as running:
        for more in ({}, {}, {"seed": 3}, {"seed": 3}, {"seed": 4}):
            create(running, "wash a car", temperature=1.0, **more)
        create(running, "wash a car")
    first, second, third, fourth, fifth, greedy = there.seeds
    assert len({first, second, third, fifth}) == 4 and third == fourth and greedy is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_ends_the_answer_there(vlm, there, stream):
    text = "wait and " + "wash " * 200
    there.go.set()
    with serving(engine(vlm, there)) as running:
        found = create(running, text, stop=["wash"], max_tokens=300, stream=stream)
        said = "".join(pieces_of(found)) if stream else text_of(found)
        assert said == "wait and " and there.pieces < 202
        if not stream:
            assert found.choices[0].finish_reason == "stop" and found.usage.completion_tokens < 20
        until(lambda: there.ended)


def test_no_more_are_under_way_than_may_be(vlm, there):
    with serving(engine(vlm, there, parallel=2)) as running, ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(create, running, f"wait {n}") for n in range(6)]
        until(lambda: there.under_way == 2)
        time.sleep(0.1)
        there.go.set()
        assert [text_of(each.result()) for each in asked] == [f"wait {n}" for n in range(6)]
    assert there.most == 2


def test_who_hangs_up_ends_the_stream_there(vlm, there):
    with serving(engine(vlm, there, hold=0)) as running:
        stream = create(running, "wait " + "and wash " * 150, stream=True)
        until(lambda: there.pieces == 1)
        stream.close()
        there.go.set()
        until(lambda: there.ended)
        assert there.pieces < 301
        assert text_of(create(running, "wash a car")) == "wash a car"


def test_who_hangs_up_while_it_is_read_disturbs_no_other(vlm, there):
    passes, held = [], threading.Event()

    def hold(*_):
        passes.append(1)
        assert held.wait(60)

    hook = vlm.model.register_forward_pre_hook(hold)
    try:
        with serving(engine(vlm, there)) as running, ThreadPoolExecutor(4) as pool:
            reading, waiting = (
                running.connection(user(text), max_tokens=8) for text in ("wash a car", "wash soap")
            )
            until(lambda: passes)
            others = [pool.submit(create, running, f"build house {n}") for n in range(4)]
            until(lambda: running.server.service.inside == 6)
            for each in (reading, waiting):
                each.close()
            time.sleep(0.2)
            held.set()
            assert [text_of(each.result()) for each in others] == [
                f"build house {n}" for n in range(4)
            ]
            until(lambda: len(statuses(running)) == 6)
            assert sorted(statuses(running)) == [200] * 4 + [499] * 2
            assert "internal_error" not in str(running.log)
    finally:
        hook.remove()


def test_who_hangs_up_while_it_is_answered_disturbs_no_other(vlm, there):
    with serving(engine(vlm, there), max_waiting=4) as running:
        clients = [running.connection(user(f"wait for {n}"), max_tokens=8) for n in range(2)]
        until(lambda: there.under_way == 2)
        for each in clients:
            each.close()
        time.sleep(0.2)
        there.go.set()
        until(lambda: running.server.service.inside == 0)
        assert text_of(create(running, "wash a car")) == "wash a car"
        assert statuses(running)[:2] == [499, 499]


def statuses(running):
    return [line["status"] for line in running.log if line["event"] == "request"]


def test_an_answer_that_is_too_long_to_read_disturbs_no_other(there):
    short = tiny.tiny_vlm()
    short.model.config.get_text_config().max_position_embeddings = short.context = 80
    with serving(engine(short, there, repaired())) as running, ThreadPoolExecutor(8) as pool:
        texts = [f"wash car {n}" if n else ("wash " * 40).strip() for n in range(8)]
        found = [pool.submit(create, running, text, max_tokens=4) for text in texts]
        with pytest.raises(openai.BadRequestError, match="ask for a shorter one"):
            found[0].result()
        assert [text_of(each.result()) for each in found[1:]] == texts[1:]


def test_a_server_that_ends_answers_nothing_more(vlm, there):
    ended = engine(vlm, there)
    with serving(ended) as running:
        assert text_of(create(running, "wash a car")) == "wash a car"
        ended.stop()
        with pytest.raises(openai.InternalServerError):
            create(running, "wash a car")
    assert not ended.alive and REFUSAL not in there.ended


@pytest.mark.parametrize("stream", [False, True])
def test_what_another_server_is_at_is_not_waited_for_at_the_end(vlm, stream):
    """Its answer comes never: the socket is shut, and who waits is told."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        upstream = Upstream(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", model="m")
        asked = UpstreamEngine(UpstreamVLM(vlm, upstream), Defense(), 4)
        with serving(asked) as running, ThreadPoolExecutor(1) as pool:
            silent.settimeout(30)
            body = {"model": NAME, "messages": user(), "stream": stream, "max_tokens": 8}
            url = f"{running.root}/v1/chat/completions"
            waiting = pool.submit(httpx.post, url, json=body, timeout=60)
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(100_000)
                for _ in range(2):
                    running.server.handle_exit(signal.SIGINT, None)
                told = waiting.result(5).text
    assert "shutting_down" in told


def test_what_the_other_server_refuses_is_told_as_it_says_it(vlm):
    """And not as an answer that is too long to be read again."""

    def refuses(request):
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        return httpx.Response(400, json={"error": {"message": "seed is odd"}})

    with serving(engine(vlm, refuses)) as running:
        with pytest.raises(openai.BadRequestError, match="answers says: seed is odd") as refused:
            create(running, "wash a car")
        assert refused.value.code == "upstream_refused"
