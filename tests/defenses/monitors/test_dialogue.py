"""What follows an alarm, on a scripted model; and the certificate, on a tiny one."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from care.data.example import Example
from care.defenses.monitors.detector import Detector
from care.defenses.monitors.dialogue import REFUSAL, Dialogue
from care.defenses.monitors.monitor import Monitor
from care.models.alarms import Alarm
from care.models.responses import Answer
from care.models.sites import Site
from kit import tiny

SQUARE = Image.new("RGB", (28, 28), "red")
ASKED = Example("a", "ask", images=(SQUARE,))


class Scripted:
    """A model that says what it was asked for: "ask, seen" beside a picture, "…, closed" if so."""

    def __init__(self):
        self.closed = False
        self.asked = []

    def answers(self, examples, **how):
        self.asked += examples
        return [
            Answer(
                e.prompt + (", seen" if e.images else "") + (", closed" if self.closed else ""),
                prompt_tokens=1,
                tokens=3,
                ended=True,
            )
            for e in examples
        ]

    @contextmanager
    def closing(self):
        self.closed = True
        yield
        self.closed = False


class Watching:
    """A monitor that alarms at what it reads if that holds one of some words."""

    def __init__(self, reads, *words, tokens=0):
        self.reads, self.words, self.tokens = reads, words, tokens

    def alarms(self, vlm, exchanges, batch_size=32, suspected=None):
        self.suspected = suspected
        texts = [
            {
                "request": each.request.prompt,
                "answer": each.answer,
                "exchange": f"{each.request.prompt}: {each.answer}",
            }[self.reads]
            for each in exchanges
        ]
        return [
            Alarm(self.reads, 2.0, 1.0, self.tokens) if any(w in text for w in self.words) else None
            for text in texts
        ]


def answered(*monitors, example=ASKED, given=None, closing=True):
    vlm = Scripted()
    dialogue = Dialogue(vlm, monitors, vlm.closing if closing else None, {})
    [answer] = dialogue.answers([example], None if given is None else [given])
    assert not vlm.closed
    return answer, vlm


def told(answer):
    return answer.text, answer.source, [alarm.monitor for alarm in answer.alarms]


def test_without_an_alarm_the_answer_is_the_models_own():
    answer, vlm = answered(Watching("request", "x"), Watching("answer", "x"))
    assert told(answer) == ("ask, seen", "model", [])
    assert vlm.asked == [ASKED]


def test_a_request_that_alarms_loses_its_picture_and_its_text_is_answered():
    answer, vlm = answered(Watching("request", "ask"))
    assert told(answer) == ("ask", "text alone", ["request"])
    assert [e.images for e in vlm.asked] == [()]


def test_a_request_without_a_picture_has_none_to_lose():
    answer, _ = answered(Watching("request", "ask"), example=replace(ASKED, images=()))
    assert told(answer) == ("ask", "model", ["request"])


@pytest.mark.parametrize("reads", ["answer", "exchange"])
def test_an_answer_that_alarms_is_begun_again_with_the_channels_closed(reads):
    # The new answer, "ask, seen, closed", holds what the old one did, but not at its end.
    answer, vlm = answered(StopsAt(reads, "seen"))
    assert told(answer) == ("ask, seen, closed", "repaired", [reads])
    assert len(vlm.asked) == 2 and vlm.asked[1].images == ASKED.images


class StopsAt(Watching):
    """Alarms at a last word."""

    def alarms(self, vlm, exchanges, batch_size=32, suspected=None):
        found = super().alarms(vlm, exchanges)
        return [
            alarm if each.answer.endswith(self.words) else None
            for alarm, each in zip(found, exchanges, strict=True)
        ]


def test_a_new_answer_that_alarms_too_is_refused():
    answer, _ = answered(Watching("answer", "seen"))
    assert told(answer) == (REFUSAL, "refusal", ["answer", "answer"])


def test_without_channels_to_close_an_alarm_is_a_refusal():
    answer, vlm = answered(Watching("answer", "seen"), closing=False)
    assert told(answer) == (REFUSAL, "refusal", ["answer"]) and len(vlm.asked) == 1


def test_answers_to_requests_that_alarmed_are_suspected():
    watching = Watching("answer", "x")
    vlm = Scripted()
    examples = [Example(p, p, images=(SQUARE,)) for p in ("fine", "bad")]
    Dialogue(vlm, [Watching("request", "bad"), watching], None, {}).answers(examples)
    assert watching.suspected == [False, True]


def test_all_monitors_together():
    answer, vlm = answered(Watching("request", "ask"), Watching("answer", "ask"))
    assert told(answer) == (REFUSAL, "refusal", ["request", "answer", "answer"])
    assert all(not e.images for e in vlm.asked)  # the picture stays out to the end


def test_the_earliest_alarm_is_the_one_that_counts():
    answer, _ = answered(
        Watching("answer", "seen", tokens=32), Watching("exchange", "seen", tokens=16)
    )
    assert answer.alarms[0].monitor == "exchange"


def test_answers_that_are_known_are_not_asked_for_again():
    known = Answer("known, seen", 1, 2, True)
    answer, vlm = answered(Watching("request", "x"), Watching("answer", "x"), given=known)
    assert answer.text == "known, seen" and vlm.asked == []
    answer, vlm = answered(Watching("request", "ask"), given=known)
    assert answer.text == "ask" and len(vlm.asked) == 1


def test_examples_keep_their_places():
    vlm = Scripted()
    monitors = [Watching("request", "bad"), StopsAt("answer", "worse, seen")]
    prompts = ["fine", "bad", "worse", "bad worse", "fine too"]
    examples = [Example(p, p, images=(SQUARE,)) for p in prompts]
    found = Dialogue(vlm, monitors, vlm.closing, {}).answers(examples)
    assert [a.text for a in found] == [
        "fine, seen", "bad", "worse, seen, closed", "bad worse", "fine too, seen",
    ]  # fmt: skip
    assert [a.source for a in found] == ["model", "text alone", "repaired", "text alone", "model"]


# -- the certificate -------------------------------------------------------------------------------


def opened(vlm, answer_threshold):
    """A dialogue in which every request alarms, and answers above a threshold do."""
    rng = np.random.default_rng(0)
    detector = Detector(*(rng.standard_normal(tiny.WIDTH).astype(np.float32) for _ in range(2)))
    monitors = [
        Monitor("request", -1e9, Site(1, "ffn_out"), detector),
        Monitor("answer", answer_threshold, Site(2, "layer_out"), detector),
    ]
    return Dialogue(vlm, monitors, None, {"max_new_tokens": 8})


@pytest.fixture(scope="module")
def vlm():
    return tiny.tiny_vlm()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), threshold=st.sampled_from([-1e9, 0.0, 1e9]))
def test_the_answer_to_an_opened_request_is_the_same_beside_every_picture(vlm, seed, threshold):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    examples = [replace(ASKED, images=(Image.fromarray(each),)) for each in pixels]
    dialogue = opened(vlm, threshold)
    answers = [dialogue.answers([each])[0] for each in (*examples, replace(ASKED, images=()))]
    assert len({answer.text for answer in answers}) == 1
    assert len({tuple(a.score for a in answer.alarms) for answer in answers}) == 1
