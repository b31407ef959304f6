"""Fitting: families and folds, the gated channels against their parts, presets, missing classes."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from care.data.contamination import goal_digests
from care.defenses.controls import means_control
from care.defenses.material import CLASSES, gather, load_decisions, save_decisions
from care.defenses.repair.edit import ChannelEdit
from care.defenses.repair.family_subspace import unsafe_subspace
from care.defenses.repair.fitting import Fitter, chosen_sites, depth_sites, fit_repair
from care.defenses.repair.fitting_data import activations
from care.defenses.repair.gate import GateConfig, fit_gate
from care.defenses.repair.presets import PRESETS, RepairConfig
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import SubspaceConfig
from care.errors import DataError, FitError, SiteError, UsageError
from care.evaluation.leak_check import stated_goals
from care.judges.base import Verdict
from care.models.sites import Role, Site
from kit import tiny
from kit.fits import material

SITE = Site(2, "layer_out")


@pytest.fixture(scope="module")
def fitter(vlm):
    return Fitter(vlm, material(), PRESETS["corrected"], batch_size=8)


def test_each_site_gets_a_channel_for_attacks_with_and_without_pictures(fitter):
    repair = fitter.repair([SITE, Site(3, "layer_out")])
    places = [(channel.site, channel.modality) for channel in repair.channels]
    assert places == [(site, m) for site in repair.sites for m in ("image", "text")]
    assert Repair.of(repair).touches == "decision"
    gates = {channel.modality: channel.gate.families for channel in repair.channels}
    assert gates == {"image": ("beside",), "text": ("template",)}
    assert repair.manifest["fitted_on"]["complied"] == 24
    digests, _ = stated_goals(repair.manifest)
    parts = (fitter.material.complied, fitter.material.refused, fitter.material.answered)
    assert digests == goal_digests(e for part in parts for e, _ in part).keys()


def test_a_channel_is_its_unsafe_subspace_and_its_gate(fitter):
    classes = fitter.classes(SITE, "text")
    channel = fitter.channel(SITE, "text")
    config = fitter.config.gate
    expected = fit_gate(classes, config)
    subspace = unsafe_subspace(classes, shrinkage=config.shrinkage, within=config.within)
    for name in ("filters", "mean", "low", "high"):
        np.testing.assert_allclose(getattr(channel.gate, name), getattr(expected, name))
    np.testing.assert_allclose(channel.subspace.basis, subspace.basis)
    assert channel.subspace.mean == pytest.approx(classes.refused.mean, abs=1e-4)


def test_activations_are_those_of_the_last_prompt_position(vlm, fitter):
    from care.models.hooks import read

    rows = fitter.classes(SITE, "image").attacks["beside"].x
    example = fitter.material.complied[3][0]
    with read(vlm, [SITE]) as recorder:
        vlm.forward(vlm.batch([example]), logits_to_keep=1)
        h, _ = recorder[SITE]
    np.testing.assert_allclose(rows[3], h[0, -1].float().numpy(), rtol=1e-3, atol=1e-4)


def test_another_quantile_shares_activations_and_moves_only_thresholds(fitter):
    first = fitter.channel(SITE, "image")
    config = replace(fitter.config, gate=GateConfig(quantile=0.9))
    second = fitter.with_config(config).channel(SITE, "image")
    assert (second.gate.low <= first.gate.low).all()
    np.testing.assert_array_equal(first.gate.filters, second.gate.filters)
    np.testing.assert_array_equal(first.subspace.basis, second.subspace.basis)
    assert second.gate.quantile == 0.9


def test_families_of_few_examples_are_taken_together(vlm):
    few = material(pictured=12, worded=12)
    renamed = tuple(
        (replace(e, suite=f"odd {i // 4}"), a) if not e.images else (e, a)
        for i, (e, a) in enumerate(few.complied)
    )
    fitter = Fitter(vlm, replace(few, complied=renamed), PRESETS["corrected"])
    assert list(fitter.classes(SITE, "text").attacks) == ["others"]


def test_goals_and_shared_pictures_are_kept_together(vlm):
    few = material()
    shared = tiny.picture(7)
    universal = tuple(
        (replace(e, images=(shared.copy(),)), a) if e.images and i % 2 else (e, a)
        for i, (e, a) in enumerate(few.complied)
    )
    fitter = Fitter(vlm, replace(few, complied=universal), PRESETS["corrected"])
    groups = fitter.classes(SITE, "image").attacks["beside"].groups
    assert len(set(groups[1::2])) == 1
    assert groups[0::2] == [e.goal for e, _ in universal[:12:2]]


@pytest.mark.parametrize(
    ("counts", "modalities"), [((12, 0), ["image"]), ((0, 12), ["text"]), ((12, 3), ["image"])]
)
def test_a_modality_without_enough_attacks_gets_no_channel(vlm, counts, modalities):
    fitter = Fitter(vlm, material(*counts), PRESETS["corrected"])
    assert [c.modality for c in fitter.repair([SITE]).channels] == modalities


def test_each_modality_may_have_sites_of_its_own(fitter):
    repair = fitter.repair({"image": [SITE], "text": [Site(3, "layer_out"), Site(1, "layer_out")]})
    places = [(channel.site.layer, channel.modality) for channel in repair.channels]
    assert places == [(1, "text"), (2, "image"), (3, "text")]
    only = fitter.repair({"text": [SITE]})
    assert [channel.modality for channel in only.channels] == ["text"]


def test_sites_of_a_modality_that_is_unknown_or_has_no_attacks_are_refused(vlm, fitter):
    with pytest.raises(UsageError, match="sites are given for 'audio'; the modalities are image"):
        fitter.repair({"audio": [SITE]})
    without = Fitter(vlm, material(12, 0), PRESETS["corrected"])
    with pytest.raises(FitError, match="sites are given for text alone"):
        without.repair({"text": [SITE]})


def test_without_sites_they_are_taken_by_the_depths_of_each_modality(vlm, fitter):
    last = vlm.anatomy.n_layers - 1
    config = RepairConfig(depth=(0.0,), text_depth=(1.0, 1.0))
    assert chosen_sites(vlm, config) == {
        "image": [Site(0, "layer_out")],
        "text": [Site(last, "layer_out")],
    }
    both = chosen_sites(vlm, replace(config, text_depth=None))
    assert both["text"] == both["image"] == [Site(0, "layer_out")]
    assert [c.modality for c in fitter.repair().channels] == ["image", "text"]


def test_too_few_attacks_that_worked_are_refused(vlm):
    with pytest.raises(FitError, match="only 4 attacks worked"):
        Fitter(vlm, material(2, 2), PRESETS["corrected"]).repair([SITE])


def test_unknown_sites_and_presets_are_refused(vlm, fitter):
    with pytest.raises(SiteError, match="does not exist"):
        fitter.repair([Site(99, "layer_out")])
    with pytest.raises(UsageError, match="unknown preset 'best'"):
        fit_repair(vlm, [], [], preset="best")


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_the_printed_and_the_released_form_project_everywhere_without_a_gate(vlm, preset):
    config = PRESETS[preset]
    small = replace(config, subspace=replace(config.subspace, rank=4, ridge=1e-2))
    repair = Fitter(vlm, material(), small, batch_size=8).repair(preset=preset)
    assert {channel.gate for channel in repair.channels} == {None}
    assert {channel.scopes for channel in repair.channels} == {("all",)}
    assert {channel.modality for channel in repair.channels} == {"image", "text"}
    assert {site.kind for site in repair.sites} == {"ffn_out"}
    assert Repair.of(repair).touches == "prompt"
    strength = {"paper": 1.0, "official": 4.0}[preset]
    assert {channel.strength for channel in repair.channels} == {strength}


def test_beta_scales_the_anchor_and_one_leaves_it(vlm, fitter):
    """h − a Q Qᵀ (h − β μ) is P h + β (1 − P) μ at a = 1, with the stored anchor β μ."""
    config = replace(PRESETS["paper"], subspace=SubspaceConfig(rank=2, shrinkage=0.5))
    plain = Fitter(vlm, material(), config, batch_size=8)
    half = plain.with_config(replace(config, beta=0.5)).channel(Site(2, "ffn_out"), "image")
    whole = plain.channel(Site(2, "ffn_out"), "image")
    np.testing.assert_array_equal(half.subspace.mean, np.float32(0.5) * whole.subspace.mean)
    np.testing.assert_array_equal(half.subspace.basis, whole.subspace.basis)
    h = torch.randn(1, 5, tiny.WIDTH)
    edited = ChannelEdit([half], "adaptive")(h, torch.full((1, 5), int(Role.TEXT)))
    q = half.subspace.basis.astype(np.float64)
    unsafe = q @ q.T
    expected = h[0].numpy() @ (np.eye(len(q)) - unsafe) + 0.5 * unsafe @ whole.subspace.mean
    np.testing.assert_allclose(edited[0].numpy(), expected, atol=1e-4)
    with pytest.raises(UsageError, match="beta must be a finite number, got nan"):
        replace(config, beta=float("nan"))


@pytest.mark.parametrize("directions", ["families", "activations"])
@pytest.mark.parametrize("gate", [None, GateConfig()])
@pytest.mark.parametrize("projection", ["orthogonal", "oblique"])
def test_directions_gate_and_projection_combine(vlm, fitter, directions, gate, projection):
    config = replace(
        PRESETS["corrected"],
        directions=directions,
        gate=gate,
        projection=projection,
        subspace=SubspaceConfig(rank=2),
    )
    own = fitter.with_config(config)
    channel = own.channel(SITE, "text")
    assert (channel.gate is None) == (gate is None)
    assert (channel.subspace.write is None) == (projection == "orthogonal")
    refusals = own.with_config(fitter.config).classes(SITE, "text").refused.mean
    about_refusals = bool(np.allclose(channel.subspace.mean, refusals, atol=1e-4))
    assert about_refusals == (directions == "families")
    if gate is not None:
        np.testing.assert_array_equal(
            channel.gate.filters, fitter.channel(SITE, "text").gate.filters
        )


def test_a_gate_of_features_is_beside_the_same_directions(vlm, fitter):
    config = replace(fitter.config, gate=GateConfig(features=16))
    channel, plain = (f.channel(SITE, "text") for f in (fitter.with_config(config), fitter))
    assert channel.gate.filters.shape == (16, 1)
    np.testing.assert_array_equal(channel.subspace.basis, plain.subspace.basis)
    stated = [
        f.repair([SITE]).manifest["config"]["gate"] for f in (fitter.with_config(config), fitter)
    ]
    assert (stated[0]["features"], "features" in stated[1]) == (16, False)


def test_a_manifest_states_what_differs_from_what_repairs_always_did(vlm, fitter):
    stated = fitter.repair([SITE]).manifest["config"]
    assert stated == {
        key: value
        for key, value in asdict(PRESETS["corrected"]).items()
        if key not in ("layers_by", "attribution", "directions", "projection", "beta")
    } | {"gate": {k: v for k, v in asdict(GateConfig()).items() if k != "features"}}
    changed = replace(PRESETS["corrected"], beta=0.5, projection="oblique").facts()
    assert changed == stated | {"beta": 0.5, "projection": "oblique"}
    paper = PRESETS["paper"].facts()
    assert paper["attribution"]["visual_share"] == 0.125
    assert (paper["layers_by"], paper["directions"]) == ("ablation", "activations")


@pytest.mark.parametrize("field", ["layers_by", "directions", "projection"])
def test_unknown_choices_are_refused(field):
    with pytest.raises(UsageError, match=f"{field} must be one of .*, got 'other'"):
        replace(PRESETS["corrected"], **{field: "other"})


def test_the_control_projects_one_direction_without_a_gate(fitter):
    repair = Repair.of(fitter.repair([SITE]))
    control = means_control(repair, fitter)
    for channel, other in zip(control.channels, repair.channels, strict=True):
        assert channel.subspace.rank == 1
        assert channel.gate is None
        assert (channel.site, channel.modality) == (other.site, other.modality)
        classes = fitter.classes(SITE, channel.modality)
        attacks = np.concatenate([rows.x for rows in classes.attacks.values()])
        rest = np.concatenate([classes.refused.x, *(r.x for r in classes.benign.values())])
        gap = attacks.mean(0) - rest.mean(0)
        cosine = abs(channel.subspace.basis[:, 0] @ gap) / np.linalg.norm(gap)
        assert cosine == pytest.approx(1.0, abs=1e-4)


def test_depth_sites_are_relative_and_unique(vlm):
    last = vlm.anatomy.n_layers - 1
    assert depth_sites(vlm, [0.0, 1.0, 1.0], "ffn_out") == [
        Site(0, "ffn_out"),
        Site(last, "ffn_out"),
    ]


class _ByName:
    """A judge that reads the outcome off the goal, so that every class occurs."""

    def __call__(self, goals, answers):
        return [Verdict(refused="direct" in goal, degenerate=False, on_goal=True) for goal in goals]


def test_gather_sorts_the_models_own_answers_by_outcome(vlm):
    found = material()
    attacks = [e for e, _ in (*found.complied, *found.refused)]
    benign = [e for e, _ in found.answered]
    sorted_ = gather(vlm, attacks, benign, judge=_ByName(), max_new_tokens=3)
    assert {e.id for e, _ in sorted_.complied} == {e.id for e, _ in found.complied}
    assert {e.id for e, _ in sorted_.refused} == {e.id for e, _ in found.refused}
    assert {e.id for e, _ in sorted_.answered} == {e.id for e, _ in found.answered}
    assert sorted_.decisions == {}


def test_gather_takes_the_activations_of_each_class_on_the_way(vlm):
    found = material()
    attacks = [e for e, _ in (*found.complied, *found.refused)]
    sites = [SITE, Site(1, "ffn_out")]
    benign = [e for e, _ in found.answered]
    taken = gather(
        vlm, attacks, benign, judge=_ByName(), max_new_tokens=2, sites=sites, batch_size=5
    )
    for site in sites:
        for rows, part in zip(
            taken.decisions[site], (taken.complied, taken.refused, taken.answered), strict=True
        ):
            expected = activations(vlm, part, [site], "decision")[site]
            np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-4)


def test_activations_taken_on_the_way_are_used_and_survive_their_file(vlm, fitter, tmp_path):
    found = fitter.material
    fitter.prefetch([SITE])
    rows = tuple(fitter._rows[name, "decision", SITE] for name in CLASSES)
    shifted = replace(found, decisions={SITE: tuple(part + 1.0 for part in rows)})
    save_decisions(tmp_path / "decisions.safetensors", shifted)
    again = load_decisions(tmp_path / "decisions.safetensors")
    other = Fitter(vlm, replace(found, decisions=again), PRESETS["corrected"])
    ours, theirs = fitter.classes(SITE, "text"), other.classes(SITE, "text")
    np.testing.assert_array_equal(theirs.refused.x, ours.refused.x + 1.0)
    assert load_decisions(tmp_path / "none.safetensors") == {}
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"torn.safetensors is damaged .* delete it and resume"):
        load_decisions(tmp_path / "torn.safetensors")


def test_repair_fit_gives_a_repair_that_runs(vlm):
    found = material()
    attacks = [e for e, _ in (*found.complied, *found.refused)]
    benign = [e for e, _ in found.answered]
    config = RepairConfig(gate=GateConfig(quantile=0.5))
    repair = Repair.fit(vlm, attacks, benign, sites=[SITE], config=config, judge=_ByName())
    with repair.applied(vlm) as stats:
        vlm.generate(attacks[:4], max_new_tokens=2)
    assert stats.tokens > 0
