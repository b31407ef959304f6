"""ETA without its reward model, by hand: whose answers are begun."""

from __future__ import annotations

import pytest

from care.data.example import Example
from care.defenses.rivals.eta_lite import PREFIX, EtaLite
from care.errors import NotFiniteError
from kit.scripted import Scripted
from kit.tiny import picture

EXAMPLES = [
    Example("bad", "do it", (picture(1),), opening="Sure"),
    Example("good", "do it", (picture(2),)),
    Example("plain", "do it"),
]


def test_an_answer_beside_an_unsafe_picture_is_begun_with_the_prefix():
    vlm = Scripted(
        lambda example: f"{example.opening}…",
        lambda example, word: float(example.id == "bad" and word == "Yes"),
    )
    found = EtaLite().answer(vlm, EXAMPLES)
    assert [answer.text for answer in found] == [f"{PREFIX}Sure…", "…", "…"]
    found = EtaLite(threshold=-1.0).answer(vlm, EXAMPLES)
    assert [answer.text for answer in found] == [f"{PREFIX}Sure…", f"{PREFIX}…", "…"]
    assert [answer.text for answer in EtaLite(threshold=1.0).answer(vlm, EXAMPLES)] == [
        "Sure…",
        "…",
        "…",
    ]


def test_without_pictures_nothing_is_asked_beyond_the_answers():
    vlm = Scripted(lambda example: "yes")
    assert [answer.text for answer in EtaLite().answer(vlm, EXAMPLES[2:])] == ["yes"]
    assert len(vlm.asked) == 1


def test_a_request_whose_picture_the_model_cannot_judge_is_lost_alone():
    vlm = Scripted(
        lambda example: f"{example.opening}…",
        lambda example, word: {"bad": float(word == "Yes"), "good": float("nan")}[example.id],
    )
    with pytest.raises(NotFiniteError) as told:
        EtaLite().answer(vlm, EXAMPLES)
    texts = [answer and answer.text for answer in told.value.answers]
    assert texts == [f"{PREFIX}Sure…", None, "…"]
