"""Low-rank additions: against weights that are changed by hand, and against PEFT itself."""

from __future__ import annotations

import sys
from itertools import islice

import numpy as np
import pytest
import torch

from care.defenses.low_rank import LowRank, adapters, chunks, descend, linear_maps
from care.errors import ArtefactError, FitError, MissingDependencyError, UsageError
from kit import tiny
from kit.tiny import hooks_of

EXAMPLES = tiny.mixed_examples(3)


def drawn(vlm, layers=(1, 3), rank=2, **others):
    """Additions of random numbers to all linear maps of two layers."""
    rng, names = np.random.default_rng(0), linear_maps(vlm, layers)
    maps = [vlm.model.get_submodule(name) for name in names]
    widths = tuple((each.in_features, each.out_features) for each in maps)
    down, up = (
        0.3 * rng.standard_normal(rank * sum(each[side] for each in widths)) for side in (0, 1)
    )
    fields = {"modules": tuple(names), "widths": widths, "down": down, "up": up} | others
    return LowRank(name="drawn", rank=rank, scale=0.5, **fields)


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_it_is_the_model_with_other_weights(vlm, strength):
    defense, batch = drawn(vlm, strength=strength), vlm.batch(EXAMPLES)
    with defense.applied(vlm):
        found = vlm.forward(batch)
    other = tiny.tiny_vlm()
    with torch.no_grad():
        for place, name in enumerate(defense.modules):
            a, b = defense.matrices(place, vlm.device)
            other.model.get_submodule(name).weight += strength * 0.5 * b @ a
    torch.testing.assert_close(found, other.forward(batch), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, vlm.forward(batch), atol=1e-2)
    assert defense.touches == "weights"


def test_every_linear_map_of_the_layers_and_no_other(vlm):
    names = linear_maps(vlm, [1, 3])
    assert len(names) == 2 * 7 and {name.split(".")[3] for name in names} == {"1", "3"}
    assert all("language_model" in name for name in names)


def test_what_was_trained_does_what_peft_did():
    """And the model is what it was: its modules, what needs a gradient, its hooks."""
    vlm, batch_of = tiny.tiny_vlm(), EXAMPLES
    batch, modules = vlm.batch(batch_of), dict(vlm.model.named_modules())
    before, hooks = vlm.forward(batch), hooks_of(vlm)

    def last():
        """Padding aside, which eager attention, in which gradients are taken, leaves otherwise."""
        return vlm.forward(batch, logits_to_keep=1)

    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    with adapters(vlm, [0, 2], 3, 6.0, seed=1) as trained:
        torch.testing.assert_close(last(), before[:, -1:], atol=1e-4, rtol=1e-4)
        with torch.no_grad():
            for _, up in trained.pairs:
                up.normal_(0, 0.3)
        during = last()
        with trained.off():
            torch.testing.assert_close(last(), before[:, -1:], atol=1e-4, rtol=1e-4)
        assert torch.equal(last(), during)
        defense = LowRank(name="trained", **trained.fields())
    assert dict(vlm.model.named_modules()) == modules and hooks_of(vlm) == hooks
    assert all(weight.requires_grad for weight in vlm.model.parameters())
    assert not hasattr(vlm.model, "peft_config")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(vlm.forward(batch), before)
    assert not torch.allclose(during, before[:, -1:], atol=0.01)
    with defense.applied(vlm):
        torch.testing.assert_close(last(), during, atol=1e-4, rtol=1e-4)
    assert defense.scale == 2.0 and len(defense.modules) == 14


def test_a_loss_is_descended_and_one_that_is_no_number_told():
    vlm = tiny.tiny_vlm()
    with adapters(vlm, [3], 2, 2.0, seed=0) as trained:
        batch = vlm.batch(EXAMPLES)

        def loss(step):
            return vlm.forward(batch, logits_to_keep=1, grad=True)[:, 0, 50].mean()

        losses = descend(trained, 8, 1e-2, loss)
        assert losses[-1] < losses[0] - 0.1
        with pytest.raises(FitError, match="loss is nan after 0 steps"):
            descend(trained, 2, 1e-2, lambda step: loss(step) * float("nan"))
        with pytest.raises(UsageError, match="at least one step"):
            descend(trained, 0, 1e-2, loss)
    with pytest.raises(UsageError, match="rank of at least 1"), adapters(vlm, [3], 0, 2.0, seed=0):
        pass


def test_each_example_comes_once_before_any_comes_again():
    found = list(islice(chunks(5, 2, np.random.default_rng(0)), 5))
    assert all(len(part) == 2 for part in found)
    places = [place for part in found for place in part]
    assert sorted(places[:5]) == sorted(places[5:]) == list(range(5)) and places[:5] != places[5:]


def test_without_peft_there_is_one_sentence(vlm, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with (
        pytest.raises(MissingDependencyError, match="pip install 'care-vlm\\[peft\\]'"),
        adapters(vlm, [0], 2, 2.0, seed=0),
    ):
        pass


def test_what_does_not_fit_is_one_sentence(vlm):
    defense = drawn(vlm)
    for wrong in ({"modules": ("none", *defense.modules[1:])}, {"modules": defense.modules[::-1]}):
        with pytest.raises(ArtefactError, match="doesn't have, or not as wide"):
            drawn(vlm, **wrong).check(vlm)
    with pytest.raises(UsageError, match="needs 1 and 2 numbers"):
        LowRank(
            name="d", modules=("x",), widths=((1, 2),), rank=1, scale=1.0, down=[], up=[0.0, 0.0]
        )
    with pytest.raises(UsageError, match="linear maps, their widths and a rank"):
        LowRank(name="d", modules=(), widths=(), rank=1, scale=1.0, down=[], up=[])
    with pytest.raises(UsageError, match="strength must be a finite number"):
        defense.with_strength(float("inf"))
    with pytest.raises(FitError, match="no linear maps"):
        linear_maps(vlm, [])
