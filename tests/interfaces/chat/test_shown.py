"""A conversation as HTML: nothing of it is code, and every decision is in it."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

from PIL import Image

from care.defenses.base import Defense
from care.interfaces.chat.answers import ChatTurn, Picture, Reply, SiteEdits
from care.interfaces.chat.shown import bare_html, failure_html, repaired_html
from care.models.alarms import Alarm, Withdrawn
from care.models.sites import Site
from kit.repairs import repair
from kit.watched import repaired

ALARM = Alarm("answer", 1.25, 0.5, 16)
EVIL = "<img src=x onerror=alert(1)> & ${1+1} {{value}} ![](http://evil.example/a.png)"


class Seen(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.words, self.tags = "", []
        self.feed(html)

    def handle_data(self, data):
        self.words += data

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def answered(source="model", alarms=(), text="To wash it", **more):
    answer = SimpleNamespace(text=text, source=source, alarms=tuple(alarms))
    return Reply(text, answer=answer, **more)


def seen(told, defense=None, text="how?", pictures=()):
    thread = (ChatTurn(text, pictures, told),)
    return Seen(bare_html(thread) if defense is None else repaired_html(thread, defense))


def test_words_of_anybody_are_shown_as_they_are():
    told = answered(text=EVIL)
    for found in (seen(told, text=EVIL), seen(told, repaired(), text=EVIL)):
        assert found.words.count(EVIL) == 2
        assert not [tag for tag, _ in found.tags if tag in ("img", "script", "a")]
    assert "<b>" not in failure_html("a <b>file</b>")


def test_a_decision_is_told_with_score_and_threshold():
    found = seen(answered("refusal", [ALARM]), repaired())
    assert "answer 1.25 > 0.50 after 16 tokens" in found.words
    assert "a refusal was given" in found.words
    assert (
        "answer 1.25" not in seen(answered("refusal", [ALARM])).words
    )  # of the bare model nothing
    assert "The model's own answer; no monitor decided it." in seen(answered(), repaired()).words
    assert "The model's own answer; not monitored." in seen(answered(), repair()).words


def test_what_was_edited_is_a_row_for_each_site():
    edits = (
        SiteEdits(Site(3, "ffn_out"), ("decision",), 1, 0.345),
        SiteEdits(Site(5, "layer_out"), (), 12, 1.5),
    )
    found = seen(answered("repaired", [ALARM], edits=edits), repaired())
    assert [tag for tag, _ in found.tags].count("tr") == 3
    for word in ("3.ffn_out", "last before the answer", "34 %", "5.layer_out", "150 %"):
        assert word in found.words
    assert "No activation was edited." in seen(answered(), repaired()).words
    weights = type("Weights", (Defense,), {"touches": "weights"})()
    assert "Its weights are changed." in seen(answered(), weights).words


def test_what_was_withdrawn_is_said_and_not_shown():
    told = Reply("", withdrawn=(Withdrawn("To smash it", ALARM),))
    found = seen(told, repaired())
    assert "withdrawn (answer 1.25 > 0.50 after 16 tokens)" in found.words
    assert "smash" not in found.words and "is taken back" in found.words
    hidden = replace(told, withdrawn=(Withdrawn("", ALARM),))
    assert "nothing of it was shown" in seen(hidden, repaired()).words


def test_a_picture_stands_beside_its_request_and_a_failure_in_the_answers_place():
    picture = Picture(Image.new("RGB", (4, 4)))
    found = seen(Reply("lost", failure="The model computed NaN."), repaired(), "", (picture,))
    assert [attrs["src"] for tag, attrs in found.tags if tag == "img"] == [picture.thumbnail]
    assert "The model computed NaN." in found.words and "lost" not in found.words


def test_an_empty_answer_and_an_empty_page_say_so():
    assert "(an empty answer)" in seen(answered(text="")).words
    assert "Nothing was asked yet." in bare_html(())
    assert "…" in seen(Reply()).words
