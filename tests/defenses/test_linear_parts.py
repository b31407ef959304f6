"""What of a repair is affine: maps against the plain formula, and the sentence for the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from care.defenses.folded_weights import folds
from care.defenses.linear_parts import (
    affine_maps,
    everywhere,
    obstacles,
    refusal,
    without,
)
from care.defenses.monitors.monitor import Monitor
from care.defenses.repair.channel import Channel
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.presets import RepairConfig
from care.defenses.repair.repair import Repair
from care.errors import UsageError
from care.models.sites import Role, Site
from kit import tiny
from kit.artefacts import made, subspace
from kit.fits import material
from kit.repairs import plain

SITE = Site(1, "ffn_out")
ROLES = torch.full((2, 5), int(Role.TEXT))


def channel(seed, strength=1.2, write=None, scopes=("all",)):
    own = subspace(seed=seed)
    if write is not None:
        drawn = np.random.default_rng(write).standard_normal(own.basis.shape)
        own = replace(own, write=drawn.astype(np.float32))
    return Channel(SITE, "text", scopes, own, strength)


@pytest.mark.parametrize("fusion", ["sum", "constant", "none"])
def test_a_map_does_what_its_channels_do(fusion):
    channels = (channel(0), channel(1, 0.7, write=3), channel(2, 0.0), channel(3, 2.0))
    found = affine_maps(Repair(channels, fusion))
    h = torch.randn(2, 5, tiny.WIDTH, generator=torch.Generator().manual_seed(0)).double()
    expected = plain(channels, fusion, h, ROLES)
    given = found[SITE](h.flatten(0, 1).numpy()).reshape(h.shape)
    np.testing.assert_allclose(given, expected.numpy(), atol=1e-6)


def test_one_channel_is_affine_under_any_fusion():
    assert not obstacles(Repair((channel(0), channel(1, 0.0)), "adaptive"))
    assert [one.part for one in obstacles(Repair((channel(0), channel(1)), "adaptive"))] == [
        "fusion"
    ]


@pytest.mark.parametrize(
    ("scopes", "all_of_them"),
    [(("all",), True), (("image", "text", "response"), True), (("image", "text"), False),
     (("decision",), False)],
)  # fmt: skip
def test_scopes_that_are_all_tokens(scopes, all_of_them):
    assert everywhere(scopes) == all_of_them
    assert (not obstacles(Repair((channel(0, scopes=scopes),)))) == all_of_them


def test_everything_that_is_not_affine_is_named():
    repair = replace(made(), monitors=(Monitor("answer", 0.0), Monitor("request", 0.0)))
    found = obstacles(repair)
    assert [one.part for one in found] == ["monitors", "gates", "scopes"]
    said = refusal(found, ("fusion",))
    for part in ("(answer, request)", "the gates at 1.ffn_out", "image, response, text tokens",
                 "--drop fusion,monitors,gates,scopes,"):  # fmt: skip
        assert part in said, part
    with pytest.raises(UsageError, match="Weights can't hold all of this repair"):
        affine_maps(repair)
    kept = without(repair, ("monitors", "gates", "scopes"))
    assert not obstacles(kept) and set(affine_maps(kept)) == {SITE, Site(0, "layer_out")}


def test_what_is_left_out_is_gone():
    both = Repair((channel(0), channel(1)), "adaptive")
    assert without(both, ("fusion",)).fusion == "constant"
    assert without(replace(both, fusion="sum"), ("fusion",)).fusion == "sum"
    bare = affine_maps(without(Repair((channel(0),)), ("centres",)))[SITE]
    assert not bare.offset.any() and affine_maps(Repair((channel(0),)))[SITE].offset.any()


def test_a_repair_can_be_fitted_for_weights(vlm):
    config = RepairConfig(kind="ffn_out", scopes=("all",), gate=None, fusion="sum", monitors=None)
    fitter = Fitter(vlm, material(), config, batch_size=4)
    fitted = Repair.of(fitter.repair({"image": [SITE], "text": [SITE]}, "corrected"))
    assert len(fitted.channels) == 2 and not obstacles(fitted)
    assert [fold.name.split(".")[-1] for fold in folds(vlm, affine_maps(fitted))] == ["down_proj"]


def test_wrong_parts_and_repairs_without_an_effect():
    with pytest.raises(UsageError, match="is one of monitors, gates"):
        without(made(), ("gate",))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="no channel that acts"):
        without(Repair((), monitors=(Monitor("answer", 0.0),)), ("monitors",))
