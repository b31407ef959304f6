"""A server in front of a tiny model with its repair: batches, streams, and clients that hang up."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import httpx
import openai
import pytest

from care.data.conversation import Conversation
from care.defenses.monitors.reading import Exchange
from care.interfaces.serve.transformers_engine import TransformersEngine
from kit import tiny
from kit.serving import BARE_KEY, KEY, NAME, data_url, serving, until, user
from kit.watched import ALWAYS, repaired

pytestmark = pytest.mark.slow

WORDS = ("how do you wash a car?", "build a small house from wood", "picture soap and water",
         "describe the image and explain how to do what it shows")  # fmt: skip
LONG = 34


def messages(number):
    """The messages of a request: some with a picture, some of several turns."""
    asked = user(WORDS[number % 4], *([data_url(tiny.picture(number))] if number % 3 else []))
    if number % 5 == 1:
        asked = [*user("hello"), {"role": "assistant", "content": "Hello."}, *asked]
    return asked


def example(number):
    """The same as the library is asked."""
    turns = []
    for message in messages(number):
        content = message["content"]
        if not isinstance(content, str):
            shown = {"type": "image", "image": tiny.picture(number)}
            content = [shown if part["type"] == "image_url" else part for part in content]
        turns.append({"role": message["role"], "content": content})
    return Conversation.of(turns)


def create(running, number=0, key="none", **asked):
    asked = {"model": NAME, "messages": messages(number), "max_tokens": LONG} | asked
    return running.client(key).chat.completions.create(**asked)


class Counted(TransformersEngine):
    """An engine that tells the sizes of its batches."""

    def __init__(self, vlm, repair, size=16, hold=None):
        super().__init__(vlm, repair, size, hold)
        self.sizes = []

    def _work(self, settings, batch):
        self.sizes.append(len(batch))
        return super()._work(settings, batch)


@contextmanager
def slowed(vlm, seconds=0.03):
    """Every pass takes so long; yields what counts them."""
    passes = []

    def wait(*_):
        passes.append(1)
        time.sleep(seconds)

    hook = vlm.model.register_forward_pre_hook(wait)
    try:
        yield passes
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def watching(vlm):
    """A repair of which about half of the answers raise an alarm."""
    asked = [example(n) for n in range(16)]
    answers = vlm.answers(asked, max_new_tokens=LONG)
    monitor = repaired().monitors[1]
    scores = monitor.scores(
        vlm, [Exchange(e, a.text) for e, a in zip(asked, answers, strict=True)], 4
    )
    # In the widest gap about the middle: some answers are equal, and batches round otherwise.
    middle = sorted(max(score for _, score in each) for each in scores)[4:13]
    low, high = max(pairwise(middle), key=lambda pair: pair[1] - pair[0])
    assert high - low > 0.5
    return repaired(answer=(low + high) / 2)


def content(chunks):
    """(what stands in the end, the last care object, number of chunks with content)."""
    text, care, pieces = "", None, 0
    for chunk in chunks:
        care = getattr(chunk, "care", None) or care
        if care and "withdrawn" in care:
            text, care = "", None
        if more := chunk.choices and chunk.choices[0].delta.content:
            text, pieces = text + more, pieces + 1
    return text, care, pieces


# -- the same answers ------------------------------------------------------------------------------


def test_sixteen_clients_at_once_get_what_the_library_answers_one_by_one(vlm, watching):
    alone = [watching.answer(vlm, [example(n)], max_new_tokens=LONG)[0] for n in range(16)]
    assert {answer.source for answer in alone} > {"model"}
    engine = Counted(vlm, watching)
    with serving(engine) as running, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: create(running, n), range(16)))
        assert len(engine.sizes) < 16 and sum(engine.sizes) == 16
        for answer, got in zip(alone, found, strict=True):
            assert got.choices[0].message.content == answer.text
            assert got.care["source"] == answer.source
            assert got.care["repair"] == watching.digest()
            raised = [(a.monitor, a.tokens) for a in answer.alarms]
            assert [(a["monitor"], a["tokens"]) for a in got.care["alarms"]] == raised
            assert got.usage.completion_tokens == answer.tokens
        streamed = [content(create(running, n, stream=True)) for n in range(16)]
        assert [text for text, _, _ in streamed] == [answer.text for answer in alone]
        assert [care["source"] for _, care, _ in streamed] == [answer.source for answer in alone]


def test_words_that_an_answer_is_begun_with_count_as_prompt(vlm):
    edits, opening = repaired().edits_only(), "To wash a car"
    begun = replace(example(0), opening=opening)
    [there] = edits.answer(vlm, [begun], max_new_tokens=8)
    longer = [*messages(0), {"role": "assistant", "content": opening}]
    with serving(Counted(vlm, edits)) as running:
        got = create(running, messages=longer, max_tokens=8)
    assert got.choices[0].message.content == there.text
    assert there.text.startswith(opening) and there.tokens > 8
    assert got.usage.completion_tokens == 8
    assert got.usage.total_tokens == there.prompt_tokens + there.tokens


def test_a_stream_that_is_alone_comes_in_pieces_and_others_whole(vlm):
    repair = repaired()
    alone = [repair.answer(vlm, [example(n)], max_new_tokens=LONG)[0].text for n in range(6)]
    engine = Counted(vlm, repair, hold=0)
    with serving(engine) as running, ThreadPoolExecutor(6) as pool:
        text, _, pieces = content(create(running, 0, stream=True))
        assert text == alone[0] and pieces > 5 and engine.sizes == [1]
        with slowed(vlm):
            first = pool.submit(create, running, 0)  # which the others wait for
            until(lambda: len(engine.sizes) == 2)
            rest = [
                pool.submit(lambda n: content(create(running, n, stream=True)), n)
                for n in range(1, 6)
            ]
            first.result()
            found = [each.result() for each in rest]
        assert engine.sizes[2:] == [5]
        assert [text for text, _, _ in found] == alone[1:]
        assert [pieces for _, _, pieces in found] == [1] * 5


def test_what_was_shown_and_withdrawn_is_told_in_the_stream(vlm):
    repair = repaired(exchange=ALWAYS)
    [answer] = repair.answer(vlm, [example(0)], max_new_tokens=LONG)
    with serving(TransformersEngine(vlm, repair, 16, hold=0)) as running:
        chunks = list(create(running, 0, stream=True))
        [told] = [c.care for c in chunks if "withdrawn" in (getattr(c, "care", None) or {})]
        assert told["withdrawn"]["content"] and told["withdrawn"]["alarm"]["monitor"] == "exchange"
        text, care, _ = content(chunks)
        assert text == answer.text and care["source"] == answer.source != "model"
        assert running.logged()["withdrawn"] is True


def test_the_bare_model_is_the_bare_model(vlm):
    repair = repaired(exchange=ALWAYS)
    [bare] = vlm.answers([example(0)], max_new_tokens=LONG)
    with serving(TransformersEngine(vlm, repair, 16), keys=[KEY], bare=[BARE_KEY]) as running:
        found = create(running, 0, BARE_KEY, extra_body={"care": {"repair": False}})
        assert found.choices[0].message.content == bare.text and found.care["repair"] is None
        assert create(running, 0, KEY).choices[0].message.content != bare.text


def test_equal_draws_of_one_seed_are_equal_whoever_else_asks(vlm):
    repair = repaired()
    drawn = {"temperature": 1.0, "max_tokens": 12}
    [alone] = repair.answer(vlm, [example(0)], max_new_tokens=12, temperature=1.0, seed=5)
    with serving(Counted(vlm, repair)) as running, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: create(running, 0, seed=5, **drawn), range(4)))
        assert {each.choices[0].message.content for each in found} == {alone.text}
        assert max(running.server.service.engine.sizes) > 1
        unseeded = list(pool.map(lambda _: create(running, 0, **drawn), range(4)))
        assert len({each.choices[0].message.content for each in unseeded}) > 1


# -- what can't be answered disturbs nobody --------------------------------------------------------


def test_prompts_that_the_model_cant_read_reach_no_batch(vlm):
    engine = Counted(vlm, repaired())
    with serving(engine) as running:
        with pytest.raises(openai.BadRequestError, match="image placeholder <image> as text"):
            create(running, messages=user("an <image> of mine"))
        for asked in ({"messages": user("wash " * 600)}, {"max_tokens": 510}):
            with pytest.raises(openai.BadRequestError, match="more than the 512 that"):
                create(running, **asked)
        assert engine.sizes == []


def test_an_answer_that_no_monitor_can_read_isnt_given(vlm):
    # Random bytes up to the end of the context: written as text they are more tokens than that.
    with serving(Counted(vlm, repaired()), max_answer_tokens=600) as running:
        with pytest.raises(openai.BadRequestError, match="ask for a shorter one"):
            create(running, max_tokens=450)
        assert create(running, max_tokens=5).choices


# -- clients that hang up --------------------------------------------------------------------------


def hung_up(running, engine, passes, stream):
    """A client that is gone after a few passes."""
    with running.connection(messages(0), max_tokens=300, stream=stream):
        until(lambda: len(passes) > 3)


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_frees_the_model_after_the_token_it_is_at(vlm, stream):
    repair = repaired()
    [alone] = repair.answer(vlm, [example(1)], max_new_tokens=8)
    engine, hooks = Counted(vlm, repair, hold=0), tiny.hooks_of(vlm)
    with serving(engine) as running:
        with slowed(vlm) as passes:
            hung_up(running, engine, passes, stream)
            assert running.logged()["status"] == 499
            until(lambda: tiny.hooks_of(vlm) == hooks + 1)
            assert len(passes) < 100
        found = create(running, 1, max_tokens=8)
        assert found.choices[0].message.content == alone.text
    assert tiny.hooks_of(vlm) == hooks


def test_who_hangs_up_loses_nothing_of_others(vlm):
    repair = repaired()
    alone = [repair.answer(vlm, [example(n)], max_new_tokens=LONG)[0].text for n in range(4)]
    engine = Counted(vlm, repair)
    with serving(engine) as running, ThreadPoolExecutor(4) as pool, slowed(vlm) as passes:
        first = pool.submit(create, running, 0, max_tokens=20)
        until(lambda: engine.sizes)
        others = [pool.submit(create, running, n) for n in range(1, 4)]
        with running.connection(messages(3), max_tokens=LONG):
            until(lambda: 4 in engine.sizes)
            seen = len(passes)
            until(lambda: len(passes) > seen + 3)
        assert first.result().choices
        assert [each.result().choices[0].message.content for each in others] == alone[1:]
        until(lambda: 499 in [line.get("status") for line in running.log])


def test_a_stopped_engine_ends_what_it_is_at_and_answers_nothing_more(vlm):
    engine = Counted(vlm, repaired())
    with serving(engine) as running, ThreadPoolExecutor(1) as pool, slowed(vlm) as passes:
        waiting = pool.submit(create, running, 0, max_tokens=300)
        until(lambda: len(passes) > 3)
        engine.stop()
        with pytest.raises(openai.InternalServerError, match="before the answer was there"):
            waiting.result()
        assert len(passes) < 100 and not engine.alive
        with pytest.raises(openai.InternalServerError):
            create(running, 0)


@pytest.mark.parametrize(
    ("said", "alive"),
    [("CUDA error: device-side assert triggered", False), ("a mistake of ours", True),
     ("CUDA error: out of memory", True)],
)  # fmt: skip
def test_only_a_device_that_failed_ends_the_engine(vlm, monkeypatch, said, alive):
    engine = Counted(vlm, repaired())

    def fail(*_):
        raise RuntimeError(said)

    monkeypatch.setattr(engine, "_answers", fail)
    with serving(engine) as running:
        with pytest.raises(openai.InternalServerError, match="its log says more"):
            create(running)
        assert engine.alive is alive and said in running.logged()["unforeseen"]
        ready = httpx.get(f"{running.root}/ready")
        assert ready.status_code == (200 if alive else 503)
