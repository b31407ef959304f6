"""Defenses that act on some requests, and batches that something is made of."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from care.defenses.asking import Gated, answers_by_batch
from care.defenses.base import answers_under
from care.defenses.rivals.cmrm import Cmrm
from care.defenses.rivals.shiftdc import ShiftDC
from care.errors import NotFiniteError
from care.models.hooks import edit
from care.models.sites import Site
from kit import fits, tiny

EXAMPLES = tiny.mixed_examples(5)


class Pictured(Gated):
    """Answers requests with a picture by what they look like without their last layer."""

    name = "pictured"
    asked: list[int]

    def __init__(self):
        self.asked = []

    def applied(self, vlm):
        return edit(vlm, {Site(3, "layer_out"): lambda h, _: -h})

    def opened(self, vlm, examples, batch_size):
        self.asked.append(batch_size)
        return np.array([bool(example.images) for example in examples])


def texts(answers):
    return [answer.text for answer in answers]


def test_only_requests_that_it_opens_to_are_answered_under_it(vlm):
    defense, how = Pictured(), {"max_new_tokens": 4, "batch_size": 3}
    bare = vlm.answers(EXAMPLES, **how)
    with defense.applied(vlm):
        edited = vlm.answers(EXAMPLES, **how)
    expected = [e if x.images else b for x, b, e in zip(EXAMPLES, bare, edited, strict=True)]
    assert texts(edited) != texts(bare)
    assert answers_under(defense, vlm, EXAMPLES, **how) == expected
    marked = [replace(answer, text=f"{answer.text}!") for answer in bare]
    found = defense.revised(vlm, EXAMPLES, marked, **how)
    assert texts(found) == [
        a.text if x.images else f"{a.text}!" for x, a in zip(EXAMPLES, expected, strict=True)
    ]
    assert defense.asked == [3, 3] and defense.revises and defense.owns_answers
    assert defense.answer(vlm, []) == []


def test_each_batch_is_asked_under_what_was_made_of_it(vlm):
    seen = []

    @contextmanager
    def applied(examples):
        seen.append([example.id for example in examples])
        rows = []
        with edit(vlm, {Site(0, "layer_out"): lambda h, roles: rows.append(len(h)) or h}):
            yield
        assert rows[0] == len(examples)

    counted = []
    found = answers_by_batch(
        vlm, EXAMPLES, applied, batch_size=2, max_new_tokens=4, progress=counted.append
    )
    assert found == vlm.answers(EXAMPLES, batch_size=2, max_new_tokens=4)
    assert sorted(id for batch in seen for id in batch) == [e.id for e in EXAMPLES]
    assert max(map(len, seen)) == 2 and sum(counted) == len(EXAMPLES)


def test_answers_that_are_not_finite_are_told_by_place(vlm, monkeypatch):
    asking = vlm.answers

    def answers(examples, **how):
        found = asking(examples, **how)
        broken = [
            None if example.id == "e1" else a for example, a in zip(examples, found, strict=True)
        ]
        if None in broken:
            raise NotFiniteError("no numbers", broken)
        return found

    def nothing(examples):
        return edit(vlm, {Site(0, "layer_out"): lambda h, _: h})

    monkeypatch.setattr(vlm, "answers", answers)
    for ask in (
        lambda: answers_by_batch(vlm, EXAMPLES, nothing, batch_size=2, max_new_tokens=2),
        lambda: Pictured().answer(vlm, EXAMPLES, max_new_tokens=2),
    ):
        with pytest.raises(NotFiniteError) as told:
            ask()
        assert [a is None for a in told.value.answers] == [e.id == "e1" for e in EXAMPLES]

    def monitor(examples, **how):
        raise NotFiniteError("a monitor read no numbers")

    monkeypatch.setattr(vlm, "answers", monitor)
    with pytest.raises(NotFiniteError, match="a monitor"):
        Pictured().answer(vlm, EXAMPLES)


@pytest.mark.parametrize("most", [1, 2])
def test_a_batch_that_memory_does_not_hold_is_halved_with_what_was_made_of_it(monkeypatch, most):
    """Edits of the whole batch aren't made in a pass over half of it."""
    vlm = tiny.tiny_vlm()
    pictured = fits.asked("a", 5, "malicious", True, 0)
    how = {"max_new_tokens": 4}
    made = [
        Cmrm.fit(vlm, pictured, [], anchor="request"),
        ShiftDC(layers=(1, 2), direction=np.eye(tiny.WIDTH)[:2], caption_tokens=3),
    ]
    wanted = [defense.answer(vlm, pictured, batch_size=1, **how) for defense in made]
    sizes, forward = [], vlm.model.forward

    def limited(*arguments, **inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*arguments, **inputs)

    monkeypatch.setattr(vlm.model, "forward", limited)
    for defense, expected in zip(made, wanted, strict=True):
        assert texts(defense.answer(vlm, pictured, batch_size=4, **how)) == texts(expected)
        assert max(sizes) == 4 and sizes.count(most)
