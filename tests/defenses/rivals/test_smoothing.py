"""Randomised smoothing: majorities by hand, and copies that differ as they should."""

from __future__ import annotations

import numpy as np
import pytest

from care.data.example import Example
from care.defenses.rivals.smoothing import Smoothing, majority
from care.errors import NotFiniteError, UsageError
from care.models.responses import Answer
from kit.scripted import Scripted
from kit.tiny import picture

NO = "I'm sorry, but I can't help with that."


def answer(text):
    return Answer(text, 1, 1, True)


@pytest.mark.parametrize(
    ("said", "refused", "expected"),
    [
        ("abc", [False, True, True], "b"),
        ("abc", [True, False, False], "b"),
        ("ab", [False, True], "b"),
        ("-bc", [False, True, False], "b"),
        ("--", [False, False], None),
    ],
)
def test_the_first_of_the_majority_answers_and_a_tie_refuses(said, refused, expected):
    answers = [None if text == "-" else answer(text) for text in said]
    found = majority(answers, np.array(refused))
    assert found == (None if expected is None else answer(expected))


def test_copies_decide_for_requests_with_a_picture():
    """Of five copies of the one picture three are refused, of the other two."""
    limits = {"bad": 3, "good": 2}

    def says(example):
        name, _, copy = example.id.partition("-copy-")
        return NO if copy and int(copy) < limits[name] else f"to {example.id}"

    pictured = [Example(name, "Do it.", (picture(k),)) for k, name in enumerate(limits)]
    vlm, told = Scripted(says), []
    found = Smoothing(copies=5).answer(
        vlm, [pictured[0], Example("plain", "Do it."), pictured[1]], progress=told.append
    )
    assert [each.text for each in found] == [NO, "to plain", "to good-copy-2"]
    assert [len(asked) for asked in vlm.asked] == [10, 1] and sum(told) == 3
    shown = [np.asarray(e.images[0], dtype=float) for e in vlm.asked[0][:5]]
    clean = np.asarray(pictured[0].load_images()[0], dtype=float)
    apart = [np.abs(a - b).mean() for k, a in enumerate(shown) for b in [*shown[:k], clean]]
    assert min(apart) > 10


def test_a_request_without_any_answer_is_told_by_place():
    vlm = Scripted(lambda example: None if example.id.startswith("bad") else "to")
    examples = [Example("good", "Do it.", (picture(),)), Example("bad", "Do it.", (picture(),))]
    with pytest.raises(NotFiniteError) as told:
        Smoothing(copies=2).answer(vlm, examples)
    assert [each is None for each in told.value.answers] == [False, True]


def test_settings_that_mean_nothing_are_one_sentence():
    for wrong in ({"copies": 0}, {"sigma": float("nan")}):
        with pytest.raises(UsageError, match="at least one copy"):
            Smoothing(**wrong)
