"""Text first, by hand: a model that refuses words which it would answer beside a picture."""

from __future__ import annotations

import pytest

from care.data.example import WORDLESS, Example
from care.defenses.rivals.text_first import TextFirst
from care.errors import NotFiniteError
from kit.scripted import Scripted
from kit.tiny import picture

NO = "I'm sorry, but I can't help with that."
PICTURE = (picture(),)
EXAMPLES = [
    Example("bad", "bad", PICTURE),
    Example("good", "good", PICTURE),
    Example("plain", "bad"),
    Example("begun", "bad", opening="Sure, "),
    Example("shown", "", PICTURE),
]


def says(example):
    bare = not (example.images or example.opening)
    return NO if "bad" in example.prompt and bare else f"{example.opening}to {example.prompt}, do"


def test_what_is_refused_without_the_picture_stays_refused():
    vlm, told = Scripted(says), []
    found = TextFirst().answer(vlm, EXAMPLES, progress=told.append, max_new_tokens=7)
    assert [a.text for a in found] == [NO, "to good, do", NO, NO, "to , do"]
    alone, others = vlm.asked
    assert [e.prompt for e in alone] == ["bad", "good", "bad", WORDLESS]
    assert not any(e.images or e.opening for e in alone)
    assert [e.id for e in others] == ["good", "plain", "shown"]
    assert sum(told) == len(EXAMPLES) and all(how["max_new_tokens"] == 7 for how in vlm.how)


def test_known_answers_are_not_asked_for():
    bare = Scripted(says).answers(EXAMPLES)
    vlm, told = Scripted(says), []
    found = TextFirst().revised(vlm, EXAMPLES, bare, progress=told.append)
    assert [a.text for a in found] == [NO, "to good, do", NO, NO, "to , do"]
    assert len(vlm.asked) == 1 and sum(told) == len(EXAMPLES)
    assert TextFirst().answer(vlm, []) == []


def test_answers_that_are_not_there_are_told_by_place():
    vlm = Scripted(lambda e: None if e.id == "good" and e.images else says(e))
    with pytest.raises(NotFiniteError) as told:
        TextFirst().answer(vlm, EXAMPLES)
    assert [answer is None for answer in told.value.answers] == [False, True, False, False, False]
