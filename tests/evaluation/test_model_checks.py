"""Checks of a model's own numbers: each passes a repair, and fails what it is there to find."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from care.defenses.base import Defense
from care.defenses.monitors.monitor import Monitor
from care.defenses.repair.channel import Channel
from care.defenses.repair.repair import Repair
from care.evaluation.model_checks import (
    acting,
    batch_isolation,
    cost_per_token,
    greatest_gap,
    off_is_off,
    prefill_and_decode,
)
from care.models.alarms import Alarm
from care.models.hooks import edit
from care.models.responses import Answer
from care.models.sites import Site
from kit import tiny
from kit.artefacts import made, subspace

EXAMPLES = tiny.mixed_examples(3)
HOW = {"batch_size": 4, "max_new_tokens": 3}


class Editing(Defense):
    """Edits one site by a function of its activations."""

    name = "editing"

    def __init__(self, change):
        self.change = change

    def applied(self, vlm):
        return edit(vlm, {Site(1, "ffn_out"): lambda h, roles: self.change(h)})


class Staying(Defense):
    """Leaves a hook behind."""

    name = "staying"

    def __init__(self, handles):
        self.handles = handles

    @contextmanager
    def applied(self, vlm):
        layer = vlm.anatomy.layers[0].mlp
        self.handles.append(layer.register_forward_hook(lambda module, given, out: out + 1))
        yield


class Contagious(Defense):
    """Raises an alarm of a request that isn't alone."""

    name = "contagious"

    def answer(self, vlm, examples, **how):
        alarms = (Alarm("request", 1.0, 0.0, 0),) if len(examples) > 1 else ()
        return [Answer("No.", 0, 1, True, alarms=alarms) for _ in examples]


def test_a_repair_passes(vlm):
    repair = made()
    assert off_is_off(vlm, repair, EXAMPLES).passed
    found = [f(vlm, repair, EXAMPLES) for f in (batch_isolation, prefill_and_decode)]
    assert all(check.passed and check.figure < 1e-3 for check in found)


def test_what_is_left_behind_is_found(vlm):
    handles = []
    try:
        check = off_is_off(vlm, Staying(handles), EXAMPLES)
    finally:
        for handle in handles:
            handle.remove()
    assert check.passed is False and check.figure > 0


def test_strength_0_has_to_be_off(vlm):
    class Stubborn(Editing):
        def with_strength(self, strength):
            return self

    assert off_is_off(vlm, Editing(lambda h: h + 1), EXAMPLES).passed
    assert off_is_off(vlm, Stubborn(lambda h: h + 1), EXAMPLES).passed is False


def test_what_mixes_requests_is_found(vlm):
    mixing = Editing(lambda h: h + h.mean(dim=0, keepdim=True))
    assert batch_isolation(vlm, mixing, EXAMPLES).passed is False
    check = batch_isolation(vlm, Contagious(), EXAMPLES)
    assert check.passed is False and "3 of 3 raise other alarms" in check.sentence


def test_what_acts_otherwise_in_decode_steps_is_found(vlm):
    stepping = Editing(lambda h: h + 1 if h.shape[1] == 1 else h)
    check = prefill_and_decode(vlm, stepping, EXAMPLES)
    assert check.passed is False and check.figure > 1e-2


def test_a_cost_is_held_to_a_limit_that_was_given(vlm):
    free = Defense()
    check = cost_per_token(vlm, free, EXAMPLES, None, **HOW)
    assert check.passed is None and check.figure is not None
    assert cost_per_token(vlm, free, EXAMPLES, 1000.0, **HOW).passed
    assert cost_per_token(vlm, free, EXAMPLES, -0.999, **HOW).passed is False


def test_with_monitors_channels_are_looked_at_wide_open():
    channel = Channel(Site(1, "ffn_out"), "text", ("all",), subspace())
    repair = Repair((channel,), monitors=(Monitor("answer", 0.0),))
    assert acting(repair).monitors == () and acting(repair).channels
    alone = repair.monitors_only()
    assert acting(alone) is alone
    assert acting(made()).channels[0].gate is not None


@pytest.mark.parametrize(("one", "other", "gap"), [(-1.0, -1.5, 0.5), (-30.0, -25.0, 0.0)])
def test_gaps_are_of_what_is_likely(one, other, gap):
    assert greatest_gap(torch.tensor([one]), torch.tensor([other])) == gap
