"""What steering defenses share: depths, scopes, devices, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from care.defenses.steering import (
    Steering,
    at_least,
    decisions_moved,
    layer_at,
    layers_between,
    unit,
)
from care.errors import ArtefactError, FitError, UsageError
from care.models.hooks import read
from care.models.sites import Scope, Site, scope_mask
from kit import fits, tiny


@dataclass(frozen=True, eq=False, kw_only=True)
class Added(Steering):
    """Adds a row to each layer."""

    scopes: ClassVar[tuple[Scope, ...]] = ("decision",)
    registered_as: ClassVar[str] = "added"

    rows: np.ndarray

    def moved(self, h, place):
        return h + self.strength * self.number("rows", h)[place]


@dataclass(frozen=True, eq=False, kw_only=True)
class AddedToAll(Added):
    """The same at every token."""

    scopes: ClassVar[tuple[Scope, ...]] = ("all",)


def added(layers=(1, 2), kind=Added, **options):
    return kind(layers=layers, rows=np.eye(len(layers), tiny.WIDTH), **options)


@pytest.mark.parametrize(("depth", "layer"), [(0.25, 0), (0.26, 1), (0.5, 1), (0.75, 2), (1, 3)])
def test_a_depth_is_the_output_after_that_share_of_the_layers(vlm, depth, layer):
    assert tiny.LAYERS == 4 and layer_at(vlm, depth) == layer


def test_depths_outside_a_model_are_refused(vlm):
    assert layer_at(vlm, 1e-6) == 0 and layers_between(vlm, (0.5, 1.0)) == (1, 2, 3)
    for depth in (0.0, 1.1, float("nan")):
        with pytest.raises(UsageError, match=r"depth must lie in \(0, 1\]"):
            layer_at(vlm, depth)
    with pytest.raises(UsageError, match="from a smaller to a greater"):
        layers_between(vlm, (0.9, 0.2))


@pytest.mark.parametrize("kind", [Added, AddedToAll])
def test_each_layer_is_edited_in_scope_alone(vlm, batch, kind):
    defense, site = added((2,), kind, strength=2.0), Site(2, "layer_out")
    with read(vlm, [site]) as before, defense.applied(vlm), read(vlm, [site]) as after:
        vlm.forward(batch)
    moved = (after[site][0] - before[site][0]).round(decimals=4)
    inside = scope_mask(batch.roles, kind.scopes)
    assert (moved[inside] == torch.tensor(2.0 * np.eye(1, tiny.WIDTH))).all()
    assert not moved[~inside].any()


@pytest.mark.parametrize("kind", [Added, AddedToAll])
def test_decode_steps_are_edited_where_answers_are_in_scope(vlm, kind):
    site, passes = Site(2, "layer_out"), {"before": [], "after": []}

    def sink(name):
        return lambda _, h, roles: passes[name].append(h[:, -1])

    defense = added((2,), kind, strength=2.0)
    plain = [example for example in tiny.mixed_examples(6) if not example.images]
    before, after = (read(vlm, [site], sink=sink(name)) for name in passes)
    with before, defense.applied(vlm), after:
        vlm.generate(plain, max_new_tokens=3)
    moved = [after - before for before, after in zip(*passes.values(), strict=True)]
    expected = torch.tensor(2.0 * np.eye(1, tiny.WIDTH)).float()
    assert len(moved) == 3
    torch.testing.assert_close(moved[0], expected.expand(3, -1), atol=1e-4, rtol=0)
    for step in moved[1:]:
        later = expected if kind is AddedToAll else 0 * expected
        torch.testing.assert_close(step, later.expand_as(step), atol=1e-4, rtol=0)


def test_gradients_go_through_it(vlm, batch):
    with added(strength=2.0).applied(vlm), read(vlm, [Site(3, "layer_out")]) as recorder:
        vlm.forward(batch, grad=True)
        recorder[Site(3, "layer_out")][0].sum().backward()
    vlm.model.zero_grad(set_to_none=True)


def test_what_it_touches_follows_from_its_scopes():
    assert added().touches == "decision" and added(kind=AddedToAll).touches == "prompt"
    assert added().with_strength(0.5).strength == 0.5 and added().width == tiny.WIDTH


def test_layers_and_strengths_that_make_no_sense_are_refused(vlm):
    for layers in ((), (1, 1), (-1,)):
        with pytest.raises(UsageError, match="one or more different layers"):
            Added(layers=layers, rows=np.zeros((1, 3)))
    with pytest.raises(UsageError, match="strength must be a finite number"):
        added(strength=float("inf"))
    for other in (added((9,)), replace(added(), rows=np.zeros((2, 3)))):
        with pytest.raises(ArtefactError, match="the defense added steers layer"):
            other.applied(vlm)


def test_directions_without_a_length_and_too_few_rows_are_refused():
    np.testing.assert_allclose(unit(np.array([[3.0, 4.0]])), [[0.6, 0.8]])
    with pytest.raises(FitError, match="a direction has no length"):
        unit(np.zeros((1, 2)))
    at_least(1, [1], "ones")
    with pytest.raises(FitError, match="ones number 1, and at least 2 are needed"):
        at_least(2, [1], "ones")


def test_each_request_is_moved_by_itself_at_its_last_token_alone(vlm):
    site, examples = Site(1, "layer_out"), fits.asked("a", 3, "malicious", True, 0)
    batch, rows = vlm.batch(examples, ["No."] * 3), torch.randn(3, tiny.WIDTH)
    with read(vlm, [site]) as before:
        vlm.forward(batch)
    with decisions_moved(vlm, {site: lambda h: h + rows}, 3):
        vlm.generate(examples, max_new_tokens=2, batch_size=3)  # decode steps have no last token
    with decisions_moved(vlm, {site: lambda h: h + rows}, 3), read(vlm, [site]) as after:
        vlm.forward(batch)
        with pytest.raises(UsageError, match="made for 3 requests can't be made in a pass over 1"):
            vlm.forward(vlm.batch(examples[0]))
    moved, inside = after[site][0] - before[site][0], scope_mask(batch.roles, ("decision",))
    torch.testing.assert_close(moved[inside], rows, atol=1e-4, rtol=0)
    assert not moved[~inside].any()
