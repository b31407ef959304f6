"""ECSO, by hand: which questions follow which answers, and when the picture is left out."""

from __future__ import annotations

import numpy as np
import pytest

from care.data.example import Example
from care.defenses.rivals.ecso import CAPTION_TOKENS, Ecso
from care.errors import NotFiniteError
from kit.scripted import Scripted
from kit.tiny import picture

NO = "I'm sorry, but I can't help with that."
PICTURE = (picture(),)
EXAMPLES = [
    Example("bad", "{do} it", PICTURE, opening="Sure: "),
    Example("good", "do", PICTURE),
    Example("plain", "bad"),
]


def says(example):
    if "Describe what" in example.prompt:
        return "a bomb"
    if "What the picture shows: a bomb" in example.prompt:
        return f"{example.opening}{NO}" if "{do} it" in example.prompt else "wrong"
    return f"answer {example.id}"


def likely(example, word):
    harmful = "Answer: answer bad" in example.prompt
    return {"Yes": -1.0, "No": -3.0 if harmful else -0.5}[word]


def test_a_harmful_answer_is_given_again_to_a_caption():
    vlm = Scripted(says, likely)
    found = Ecso().answer(vlm, EXAMPLES, max_new_tokens=9)
    assert [answer.text for answer in found] == [f"Sure: {NO}", "answer good", "answer plain"]
    first, captions, again = vlm.asked
    assert len(first) == 3 and [e.id for e in captions] == [e.id for e in again] == ["bad"]
    assert captions[0].images and not captions[0].opening
    assert not again[0].images and again[0].opening == "Sure: "
    assert [how["max_new_tokens"] for how in vlm.how] == [9, CAPTION_TOKENS, 9]


@pytest.mark.parametrize(("threshold", "again"), [(-0.6, 2), (-0.4, 1), (2.0, 0)])
def test_the_threshold_is_on_the_odds_of_yes(threshold, again):
    """The odds are 2 for the one picture's answer and −0.5 for the other's."""
    vlm = Scripted(says, likely)
    Ecso(threshold=threshold).answer(vlm, EXAMPLES)
    assert sum(len(asked) for asked in vlm.asked[1:]) == 2 * again


def test_what_is_not_there_is_told_by_place():
    for broken in ("answer bad", "a bomb"):
        vlm = Scripted(lambda e, broken=broken: None if says(e) == broken else says(e), likely)
        with pytest.raises(NotFiniteError) as told:
            Ecso().answer(vlm, EXAMPLES)
        assert np.flatnonzero([answer is None for answer in told.value.answers]).tolist() == [0]


def test_an_answer_that_the_model_cannot_judge_is_lost_alone():
    vlm = Scripted(says, lambda e, word: np.nan if e.id == "good" else likely(e, word))
    with pytest.raises(NotFiniteError) as told:
        Ecso().answer(vlm, EXAMPLES)
    texts = [answer and answer.text for answer in told.value.answers]
    assert texts == [f"Sure: {NO}", None, "answer plain"]
