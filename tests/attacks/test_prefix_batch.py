"""Requests laid out for a pass: reading what they share once changes nothing but the time."""

from dataclasses import replace

import pytest
import torch

from care.attacks.loss import Objective
from care.attacks.preprocessing import PixelPath
from care.defenses.repair.repair import Repair
from care.models.gradients import differentiable
from care.models.hooks import edit
from care.models.sites import Role, Site
from kit import attacks
from kit.attacks import EXAMPLES, GOALS, START, vlm  # noqa: F401
from kit.repairs import a_gate, made

TARGETS = ["I", *attacks.TARGETS[1:]]


def objective(vlm, rows=None, prompts=None):
    path, levels = PixelPath.of(vlm, START)
    rows = range(len(GOALS)) if rows is None else rows
    examples = [replace(EXAMPLES[row], images=(START,)) for row in rows]
    if prompts is not None:
        examples = [replace(e, prompt=p) for e, p in zip(examples, prompts, strict=True)]
    return Objective(vlm, path, examples, [TARGETS[row] for row in rows], 4), levels / 255


def both_ways(loss_of, pixels, rows):
    found = []
    for loss_of.shares in (True, False):
        found.append(loss_of.gradient(pixels, rows))
    return found


@pytest.mark.parametrize("rows", [[0, 1], [4, 2, 0], [0, 1, 2, 3, 4], [3, 3]])
def test_loss_and_gradient_are_those_of_whole_rows(vlm, rows):
    loss_of, pixels = objective(vlm)
    (loss, gradient), (whole_loss, whole_gradient) = both_ways(loss_of, pixels, rows)
    assert loss == pytest.approx(whole_loss, abs=1e-5)
    torch.testing.assert_close(gradient, whole_gradient, atol=1e-6, rtol=1e-3)


def test_positions_are_read_once(vlm):
    loss_of, pixels = objective(vlm)
    seen = []
    layer = vlm.anatomy.layers[0]
    hook = layer.register_forward_hook(lambda m, args, output: seen.append(tuple(output.shape[:2])))
    loss_of.gradient(pixels, [0, 1, 2])
    hook.remove()
    shared = loss_of.rows.shared
    longest = int(loss_of.rows.lengths[:3].max())
    assert seen == [(1, shared), (3, longest - shared)]
    # The template's opening, the image, and the words that all requests begin with.
    words = vlm.tokenizer("How do you ", add_special_tokens=False)["input_ids"]
    assert shared >= 1 + 4 + len(words) - 1


def test_one_request_is_read_whole(vlm):
    loss_of, pixels = objective(vlm, rows=[0])
    seen = []
    layer = vlm.anatomy.layers[0]
    hook = layer.register_forward_hook(lambda m, args, output: seen.append(len(output)))
    loss_of.gradient(pixels, [0])
    hook.remove()
    assert seen == [1]


def test_equal_requests_leave_the_deciding_position_to_the_rest(vlm):
    loss_of, pixels = objective(vlm, rows=[1, 1], prompts=["Help?", "Help?"])
    rest = loss_of.rows.rest([0, 1])
    assert (rest.roles == Role.TEXT).any(dim=1).all()
    (loss, _), (whole, _) = both_ways(loss_of, pixels, [0, 1])
    assert loss == pytest.approx(whole, abs=1e-5)


def test_rows_that_differ_before_the_image_share_nothing(vlm):
    path, _ = PixelPath.of(vlm, START)
    examples = [
        replace(example, images=(START,), system=system)
        for example, system in zip(EXAMPLES[:2], ("Be kind.", "Say no."), strict=True)
    ]
    loss_of = Objective(vlm, path, examples, TARGETS[:2], 4)
    assert loss_of.rows.shared == 0 and not loss_of.shares


def test_a_way_of_reading_that_disagrees_is_given_up(vlm, monkeypatch):
    loss_of, pixels = objective(vlm)
    example = replace(EXAMPLES[0], images=(START,))
    loss_of.verify(example, pixels * 255)
    assert loss_of.shares
    monkeypatch.setattr(
        loss_of, "_continued", lambda rows, *_: torch.zeros(len(rows), 5, len(vlm.tokenizer))
    )
    loss_of.verify(example, pixels * 255)
    assert not loss_of.shares


def test_active_edits_of_unknown_reach_see_whole_rows(vlm):
    loss_of, pixels = objective(vlm)
    seen = []

    def look(h, roles):
        seen.append(tuple(roles.shape))
        return h

    with edit(vlm, {Site(1, "layer_out"): look}):
        loss_of.gradient(pixels, [0, 1, 2])
    assert seen == [(3, int(loss_of.rows.lengths[:3].max()))]


@pytest.mark.parametrize("gated", [False, True])
def test_a_late_repair_edits_the_same_positions_either_way(vlm, gated):
    gates = [a_gate(seed=k) if gated else None for k in range(2)]
    repair = Repair(
        tuple(
            made(
                scopes=("decision", "response"), seed=k, modality=modality, gate=gate, strength=1.3
            )
            for k, (modality, gate) in enumerate(zip(("image", "text"), gates, strict=True))
        )
    )
    assert repair.touches == "decision"
    loss_of, pixels = objective(vlm)
    undefended, _ = loss_of.gradient(pixels, [0, 1, 2])
    loss_of.decision_only = True
    with differentiable(vlm), repair.applied(vlm) as stats:
        loss, gradient = loss_of.gradient(pixels, [0, 1, 2])
        tokens = stats.tokens
        loss_of.decision_only = False  # whole rows again
        whole_loss, whole_gradient = loss_of.gradient(pixels, [0, 1, 2])
        assert stats.tokens == 2 * tokens > 0
    assert loss == pytest.approx(whole_loss, abs=1e-4)
    assert loss != pytest.approx(undefended, abs=1e-3)
    torch.testing.assert_close(gradient, whole_gradient, atol=1e-5, rtol=1e-2)


def test_an_opening_is_read_and_is_not_what_is_wished_for(vlm):
    """The loss is over the targets alone, after the opening, shared or not."""
    path, _ = PixelPath.of(vlm, START)
    begun = [replace(e, images=(START,), opening="Sure, here is") for e in EXAMPLES[:3]]
    loss_of = Objective(vlm, path, begun, TARGETS[:3], 4)
    loss_of.verify(begun[0], PixelPath.of(vlm, START)[1])
    with differentiable(vlm):
        (loss, _), (whole, _) = both_ways(loss_of, PixelPath.of(vlm, START)[1] / 255, [0, 1, 2])
    targets = [vlm.tokenizer.decode(vlm.response_ids(text)[:4]) for text in TARGETS[:3]]
    found = vlm.score(begun, targets)
    assert loss == pytest.approx(whole, abs=1e-5)
    assert loss == pytest.approx(-found.logprob.sum() / found.tokens.sum(), abs=1e-2)
