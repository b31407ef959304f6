"""ETA without its reward model, by hand: whose answers are begun."""

from __future__ import annotations

from care.data.example import Example
from care.defenses.rivals.eta_lite import PREFIX, EtaLite
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
