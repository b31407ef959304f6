"""What follows an alarm, on a scripted model."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
from PIL import Image

from care.data.example import Example
from care.defenses.monitors.dialogue import Dialogue
from care.errors import NotFiniteError
from care.models.alarms import Alarm
from care.models.responses import REFUSAL, Answer

SQUARE = Image.new("RGB", (28, 28), "red")
ASKED = Example("a", "ask", images=(SQUARE,))


class Scripted:
    """A model that says what it was asked for: "ask, seen" beside a picture, "…, closed" if so."""

    name, dtype = "scripted", "float16"

    def __init__(self, broken=()):
        self.closed = False
        self.asked = []
        self.batches = []
        self.broken = broken

    def answers(self, examples, **how):
        self.asked += examples
        self.batches.append([e.id for e in examples])
        found = self.said(examples)
        if any(e.id in self.broken for e in examples):
            pairs = zip(examples, found, strict=True)
            whole = [None if e.id in self.broken else answer for e, answer in pairs]
            raise NotFiniteError("NaN", whole)
        return found

    def said(self, examples):
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

    with_picture = False

    def __init__(self, reads, *words, tokens=0):
        self.reads, self.words, self.tokens = reads, words, tokens
        self.suspected = {}

    def alarms(self, vlm, exchanges, batch_size=32, suspected=None):
        pairs = zip(exchanges, suspected or [None] * len(exchanges), strict=True)
        self.suspected |= {each.request.id: told for each, told in pairs}
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


@pytest.mark.parametrize("images", [(), (SQUARE,)])
def test_a_request_that_alarms_loses_words_that_begin_its_answer(images):
    begun = replace(ASKED, images=images, opening="Sure, here is")
    answer, vlm = answered(Watching("request", "ask"), example=begun)
    assert answer.source == "text alone"
    assert [(e.images, e.opening) for e in vlm.asked] == [((), "")]


def unopening(answer: str, *monitors, closing=True, opening="Sure, here is"):
    """What is answered where an answer was begun, of a model that says `answer` without that."""
    told: list[int] = []
    vlm = Opened(answer)
    begun = replace(ASKED, opening=opening)
    how = {"progress": told.append}
    dialogue = Dialogue(vlm, monitors, vlm.closing if closing else None, how)
    [found] = dialogue.answers([begun])
    *shown, streamed = Dialogue(vlm, monitors, vlm.closing if closing else None, {}).stream(begun)
    assert replace(streamed, tokens=0) == replace(found, tokens=0) and shown
    assert sum(told) == (found.source != "model")  # that one is counted by a real model
    return found, vlm


class Opened(Scripted):
    """Says one thing by itself, and goes on from words that it is given."""

    thought_tags = ()

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def said(self, examples):
        texts = [f"{e.opening}: how" if e.opening else self.answer for e in examples]
        texts = [text + (", closed" if self.closed else "") for text in texts]
        return [Answer(text, prompt_tokens=1, tokens=3, ended=True) for text in texts]


def test_an_opening_draws_nothing_from_a_model_that_refuses_without_it():
    found, vlm = unopening("I'm sorry, but I can't help with that.")
    assert told(found) == ("I'm sorry, but I can't help with that.", "plain", [])
    assert all(not e.opening for e in vlm.asked) and vlm.asked[0].images == ASKED.images


def test_an_opening_stays_where_the_model_answers_without_it():
    found, vlm = unopening("Gladly.")
    assert told(found) == ("Sure, here is: how", "model", [])
    assert [bool(e.opening) for e in vlm.asked[:2]] == [False, True]
    assert unopening("Gladly.", Watching("answer", "Gladly", "Sure"), closing=False)[0].alarms


def test_an_answer_that_alarms_without_its_opening_is_begun_again_without_it():
    found, vlm = unopening("To do it, first", StopsAt("answer", "first"))
    assert told(found) == ("To do it, first, closed", "repaired", ["answer"])
    assert all(not e.opening for e in vlm.asked)
    found, _ = unopening("To do it, first", StopsAt("answer", "first"), closing=False)
    assert told(found) == (REFUSAL, "refusal", ["answer"])


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
    assert watching.suspected == {"fine": False, "bad": True}


class Drawing(Opened):
    """Draws "how" where it is asked to draw; else it says one thing, cut where it is to be."""

    def answers(self, examples, **how):
        self.drawn = how.get("temperature", 0) > 0
        self.most = how.get("max_new_tokens", 99)
        return super().answers(examples, **how)

    def said(self, examples):
        words = "how" if self.drawn else self.answer
        whole = self.most >= len(words.split())
        words = " ".join(words.split()[: self.most]) + (", closed" if self.closed else "")
        return [Answer(words, prompt_tokens=1, tokens=3, ended=whole) for _ in examples]


REFUSES = "I'm sorry, but I can't help with that." + " Please ask me about something else." * 8


@pytest.mark.parametrize(
    ("says", "most", "monitors", "wanted"),
    [
        ("Gladly.", 99, (), ("how", "model", [])),
        (REFUSES, 99, (), (REFUSES, "plain", [])),
        (REFUSES, 12, (), (" ".join(REFUSES.split()[:12]), "plain", [])),
        (REFUSES, 99, (Watching("request", "ask"),), (REFUSES, "text alone", ["request"])),
        ("Do it", 99, (Watching("request", "x"),), ("how", "model", [])),
    ],
)
def test_no_draw_replaces_what_the_model_refuses_greedily(says, most, monitors, wanted):
    vlm = Drawing(says)
    dialogue = Dialogue(vlm, monitors, vlm.closing, {"temperature": 1.0, "max_new_tokens": most})
    [found] = dialogue.answers([ASKED])
    assert told(found) == wanted
    *shown, streamed = dialogue.stream(ASKED)
    assert told(streamed) == wanted and "".join(map(str, shown)) == wanted[0]


def test_what_is_begun_again_for_a_greedy_answer_is_greedy_too():
    vlm = Drawing("Do it")
    how = {"temperature": 1.0, "max_new_tokens": 99}
    [found] = Dialogue(vlm, [StopsAt("answer", "it")], vlm.closing, how).answers([ASKED])
    assert told(found) == ("Do it, closed", "repaired", ["answer"]) and not vlm.drawn


def test_what_is_not_finite_in_place_of_a_plain_answer_is_never_drawn():
    class Broken(Drawing):
        def answers(self, examples, **how):
            if self.closed:
                raise NotFiniteError("NaN", [None] * len(examples))
            return super().answers(examples, **how)

    vlm = Broken("Do it")
    how = {"temperature": 1.0, "max_new_tokens": 99}
    dialogue = Dialogue(vlm, [StopsAt("answer", "it")], vlm.closing, how)
    with pytest.raises(NotFiniteError) as raised:
        dialogue.answers([ASKED])
    assert raised.value.answers == [None] and not vlm.drawn
    vlm.closed = False
    with pytest.raises(NotFiniteError):
        list(dialogue.stream(ASKED))


def test_answers_that_others_began_are_suspected():
    watching, vlm = Watching("answer", "x"), Opened("Gladly.")
    begun = [
        replace(ASKED, id=opening, prompt=opening, opening=opening) for opening in ("{", "Sure")
    ]
    Dialogue(vlm, [watching], None, {}).answers([*begun, ASKED])
    assert watching.suspected == {"{": True, "Sure": True, ASKED.id: False}


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


def test_with_and_without_a_picture_nothing_shares_a_batch():
    vlm = Scripted()
    requests = [Example(p, p, images=(SQUARE,)) for p in ("bad", "fine", "so bad", "worse")]
    requests.append(Example("bare", "bare"))
    watching = [Watching("request", "bad"), Watching("answer", "worse, seen", "so")]
    Dialogue(vlm, watching, vlm.closing, {}).answers(requests)
    assert vlm.batches == [["bad", "so bad", "bare"], ["so bad"], ["fine", "worse"], ["worse"]]


def test_answers_that_are_not_finite_are_told_and_the_others_are_watched():
    vlm = Scripted(broken=("broken", "bare"))
    requests = [Example(p, p, images=(SQUARE,)) for p in ("fine", "broken", "worse")]
    requests.append(Example("bare", "bare"))
    with pytest.raises(NotFiniteError, match="scripted") as raised:
        Dialogue(vlm, [StopsAt("answer", "worse, seen")], None, {}).answers(requests)
    fine, broken, worse, bare = raised.value.answers
    assert (fine.text, worse.text) == ("fine, seen", REFUSAL) and broken is bare is None


def test_an_answer_begun_again_that_is_not_finite_is_told():
    vlm = Scripted()
    vlm.broken = ("a",)
    given = [Answer("ask, seen", 1, 2, True)]
    with pytest.raises(NotFiniteError) as raised:
        Dialogue(vlm, [Watching("answer", "seen")], vlm.closing, {}).answers([ASKED], given)
    assert raised.value.answers == [None]
