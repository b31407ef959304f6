"""Scans: replays equal full passes whatever is removed, memory is bounded, rows can be resumed."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from care.diagnosis.ablation import ablate
from care.diagnosis.activation_means import collect
from care.diagnosis.measures import refusal_contrast
from care.diagnosis.scan import Removal, ScanRow, name_of, scan, windows
from care.errors import FitError, UsageError
from care.models.hooks import edit, read
from care.models.replay import Replay, cache_bytes, kept_layers
from care.models.sites import Site
from care.models.vlm import VLM
from kit import planted, tiny

EXAMPLES = tiny.mixed_examples(5)
KINDS = ("ffn_out", "mhsa_out", "layer_out")


def all_sites(vlm):
    return [site for kind in KINDS for site in vlm.anatomy.sites(kind)]


def full_log_odds(vlm, batch, site, how, means=None, donors=None, scopes=("all",)):
    """Log-odds with `site` ablated, by one whole forward pass."""
    with ablate(vlm, [site], how, means, scopes, donors):
        return vlm.log_odds(vlm.forward(batch, logits_to_keep=1)[:, -1])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_replays_equal_full_passes(family):
    vlm = VLM(*tiny.FAMILIES[family](), name=family)
    batch = vlm.batch(EXAMPLES)
    means = collect(vlm, EXAMPLES, all_sites(vlm)).means
    replay = Replay(vlm, batch)
    assert replay.reuses
    for site in [Site(layer, kind) for layer in (0, 2) for kind in KINDS]:
        for how in ("mean", "zero", "skip"):
            expected = full_log_odds(vlm, batch, site, how, means)
            with ablate(vlm, [site], how, means):
                found = vlm.log_odds(replay.logits(site.layer + (site.kind == "layer_out")))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_replay_computes_only_the_layers_that_can_change():
    vlm = tiny.tiny_vlm()
    replay = Replay(vlm, vlm.batch(EXAMPLES))
    ran = []
    layers = [(layer.mlp, index) for index, layer in enumerate(vlm.anatomy.layers)]
    patches = next(m for m in vlm.model.modules() if isinstance(m, torch.nn.Conv2d))
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for module, name in [*layers, (patches, "tower")]
    ]
    replay.logits(2)
    assert ran == [2, 3]
    ran.clear()
    vlm.forward(vlm.batch(EXAMPLES[1]))
    assert ran == ["tower", 0, 1, 2, 3]  # nothing stays replaced
    assert all("forward" not in vars(module) for module in vlm.model.modules())
    for handle in handles:
        handle.remove()


def test_forwards_come_back_after_an_error():
    vlm = tiny.tiny_vlm()
    replay = Replay(vlm, vlm.batch(EXAMPLES))

    def fail(*_):
        raise KeyboardInterrupt

    handle = vlm.anatomy.layers[3].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        replay.logits(2)
    handle.remove()
    assert all("forward" not in vars(module) for module in vlm.model.modules())


def test_replays_see_edits_that_are_in_place(vlm):
    batch = vlm.batch(EXAMPLES)
    with edit(vlm, {Site(0, "layer_out"): lambda h, roles: h * 1.5}):
        expected = full_log_odds(vlm, batch, Site(2, "ffn_out"), "zero")
        replay = Replay(vlm, batch)
        with ablate(vlm, [Site(2, "ffn_out")], "zero"):
            found = vlm.log_odds(replay.logits(2))
    assert replay.reuses
    torch.testing.assert_close(found, expected)


def spoil_inputs(vlm, monkeypatch):
    """Every layer overwrites its input, so what an earlier layer returned can't be kept."""
    for layer in vlm.anatomy.layers:

        def forward(hidden_states, *args, original=layer.forward, **kwargs):
            output = original(hidden_states.clone(), *args, **kwargs)
            hidden_states.mul_(3.0)
            return output

        monkeypatch.setattr(layer, "forward", forward)


def test_a_model_that_replays_dont_suit_gets_full_passes(monkeypatch):
    vlm = tiny.tiny_vlm()
    spoil_inputs(vlm, monkeypatch)
    assert not Replay(vlm, vlm.batch(EXAMPLES)).reuses
    site = Site(2, "mhsa_out")
    found = scan(vlm, EXAMPLES, [Removal(site, "zero")])
    batch = vlm.batch(EXAMPLES)
    expected = full_log_odds(vlm, batch, site, "zero").numpy() - vlm.refusal_log_odds(EXAMPLES)
    np.testing.assert_allclose(found.effects[0], expected, atol=1e-4)


def test_a_scan_doesnt_depend_on_batches(vlm):
    means = collect(vlm, EXAMPLES, all_sites(vlm)).means
    removals = [Removal(site, "mean") for site in all_sites(vlm)]
    counted = []
    one = scan(vlm, EXAMPLES, removals, means=means, batch_size=2, advance=counted.append)
    other = scan(vlm, EXAMPLES, removals, means=means, batch_size=16)
    assert sum(counted) == len(EXAMPLES) * len(removals)
    np.testing.assert_allclose(one.clean, vlm.refusal_log_odds(EXAMPLES), atol=1e-4)
    np.testing.assert_allclose(one.effects, other.effects, atol=1e-4)
    np.testing.assert_allclose(one.relative_norm, other.relative_norm, rtol=1e-4)


def test_scopes_limit_a_removal(vlm):
    site = Site(0, "ffn_out")
    found = scan(vlm, EXAMPLES, [Removal(site, "zero", ("image",))])
    has_image = np.array([bool(example.images) for example in EXAMPLES])
    assert (np.abs(found.effects[0]) > 1e-4).tolist() == has_image.tolist()
    assert found.relative_norm[0] == pytest.approx(1.0, abs=1e-5)


def test_a_bad_model_is_named():
    vlm = tiny.tiny_vlm()
    with torch.no_grad():
        vlm.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(FitError, match=r"untouched aren't finite for 5 of 5"):
        scan(vlm, EXAMPLES, [Removal(Site(0, "ffn_out"), "zero")])
    vlm.refusal_ids = []
    with pytest.raises(UsageError, match="refusal_ids is empty"):
        scan(vlm, EXAMPLES, [])


# -- every intervention, windows, bounded memory ---------------------------------------------------


def everything(vlm, size):
    """Removals of every kind of every window that has one."""
    found = []
    for kind in (*KINDS, "ffn_neurons"):
        for sites in windows(kind, vlm.anatomy.n_layers, size)[: 3 : 3 - size // 2]:
            for how in ("mean", "zero", "resample", "constant", "paired", "skip", "previous-layer"):
                whole, neurons = kind == "layer_out", kind == "ffn_neurons"
                copied = how == "previous-layer" and (whole or neurons or sites[0].layer == 0)
                if not copied and not (how == "skip" and neurons):
                    found.append(Removal(sites, how))
            found.append(Removal(sites, "zero", ("image", "decision"), 0.5))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("size", [1, 3])
def test_replays_of_every_removal_equal_full_passes(family, size):
    vlm = VLM(*tiny.FAMILIES[family](), name=family)
    batch, other = vlm.batch(EXAMPLES), vlm.batch(EXAMPLES[::-1])
    removals = everything(vlm, size)
    sites = sorted({site for removal in removals for site in removal.sites})
    with read(vlm, sites) as donors:
        vlm.forward(other)
    table = {site: torch.randn(5, vlm.anatomy.site_width(site)) for site in sites}
    one = cache_bytes(1, *batch.roles.shape, tiny.WIDTH, torch.float32)
    replays = [Replay(vlm, batch, max_bytes=most) for most in (None, 2 * one, one, 0)]
    assert all(replay.reuses for replay in replays)
    for removal in removals:
        how = (removal.how, table, removal.scopes, donors, removal.scale)
        with ablate(vlm, removal.sites, *how):
            expected = vlm.forward(batch, logits_to_keep=1)[:, -1]
        for replay in replays:
            with ablate(vlm, removal.sites, *how):
                found = replay.logits(removal.start)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert removal.how != "zero" or not torch.allclose(expected, replays[0].clean)


@pytest.mark.parametrize("most", [None, 2, 0])
def test_activations_come_from_their_own_layers(vlm, most):
    batch = vlm.batch(EXAMPLES)
    sites = [Site(layer, kind) for layer in (1, 2) for kind in (*KINDS, "ffn_neurons")]
    with read(vlm, sites) as recorder:
        vlm.forward(batch)
    one = cache_bytes(1, *batch.roles.shape, tiny.WIDTH, torch.float32)
    replay = Replay(vlm, batch, max_bytes=None if most is None else most * one)
    ran = []
    handles = [
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(vlm.anatomy.layers)
    ]
    found = replay.activations(sites)
    for handle in handles:
        handle.remove()
    assert ran == ([1, 2] if most is None else [0, 1, 2])
    for site in sites:
        torch.testing.assert_close(found[site][0], recorder[site][0], rtol=1e-5, atol=1e-5)
        assert torch.equal(found[site][1], batch.roles)


def test_cache_bytes_are_those_that_are_held(vlm):
    batch = vlm.batch(EXAMPLES)
    replay = Replay(vlm, batch)
    held = sum(output[0].nbytes for output in replay._outputs.values())
    assert held == cache_bytes(tiny.LAYERS, *batch.roles.shape, tiny.WIDTH, torch.float32)
    assert cache_bytes(28, 16, 1000, 3584, torch.bfloat16) == 28 * 16 * 1000 * 3584 * 2
    bounded = Replay(vlm, batch, max_bytes=held // 2 + 1)
    assert sum(output[0].nbytes for output in bounded._outputs.values()) == held // 2


@given(st.integers(1, 80), st.integers(0, 100))
def test_kept_layers_are_few_enough_and_evenly_spaced(layers, most):
    kept = kept_layers(layers, most)
    assert len(kept) <= most and sorted(set(kept)) == kept
    if most:
        assert kept[-1] == layers - 1
        gaps = np.diff([-1, *kept])
        assert gaps.max() == -(-layers // min(most, layers)) and len(set(gaps[1:])) <= 1
    if most >= layers:
        assert kept == list(range(layers))


@pytest.mark.parametrize("how", ["mean", "zero"])
def test_a_scan_doesnt_depend_on_the_memory_it_may_use(vlm, how):
    removals = [Removal(sites, how) for kind in KINDS for sites in windows(kind, tiny.LAYERS, 3)]
    means = collect(vlm, EXAMPLES, all_sites(vlm)).means
    whole = scan(vlm, EXAMPLES, removals, means=means)
    little = scan(vlm, EXAMPLES, removals, means=means, max_cache_bytes=9000)
    np.testing.assert_allclose(whole.effects, little.effects, atol=1e-4)
    np.testing.assert_allclose(whole.residual_norm, little.residual_norm, rtol=1e-4)


def test_windows_and_their_names():
    assert windows("ffn_out", 4, 1) == [(Site(layer, "ffn_out"),) for layer in range(4)]
    found = windows("mhsa_out", 4, 3)
    assert [name_of(sites) for sites in found] == ["0-2.mhsa_out", "1-3.mhsa_out"]
    assert [Removal(sites, "zero").site.layer for sites in found] == [1, 2]
    assert name_of([Site(3, "ffn_out"), Site(1, "ffn_out")]) == "3.ffn_out+1.ffn_out"
    for size in (0, 2, 5):
        with pytest.raises(UsageError, match=f"odd number .* at most 4 of them, got {size}"):
            windows("ffn_out", 4, size)
    for sites in ((), (Site(1, "ffn_out"),) * 2):
        with pytest.raises(UsageError, match="needs different sites"):
            Removal(sites, "zero")


def test_a_scan_of_another_measure(vlm):
    site, measure = Site(1, "mhsa_out"), refusal_contrast(vlm, "I cannot assist.", "Sure, here.")
    found = scan(vlm, EXAMPLES, [Removal(site, "zero", ("image", "text"))], measure=measure)
    texts = ("I cannot assist.", "Sure, here.")
    with ablate(vlm, [site], "zero", scopes=("image", "text")):
        refused, complied = (vlm.score(EXAMPLES, [text] * 5).mean for text in texts)
    np.testing.assert_allclose(found.clean + found.effects[0], refused - complied, atol=1e-4)


def test_a_killed_scan_goes_on_where_it_stopped():
    vlm = tiny.tiny_vlm()
    removals = [Removal(sites, "zero") for sites in windows("ffn_out", tiny.LAYERS, 1)]
    lines = []

    class Killed(Exception):
        pass

    def keep(row):
        lines.append(json.dumps(row.to_json()))
        if len(lines) == 7:
            raise Killed

    with pytest.raises(Killed):
        scan(vlm, EXAMPLES, removals, batch_size=2, keep=keep)
    done = [ScanRow.from_json(json.loads(line)) for line in lines]
    again, passes, counted = [], [], []
    handle = vlm.model.register_forward_hook(lambda *_: passes.append(1))
    resumed = scan(
        *(vlm, EXAMPLES, removals),
        batch_size=2,
        done=done,
        keep=again.append,
        advance=counted.append,
    )
    assert len(again) == 3 * 5 - 7 and sum(counted) == 5 * 4
    ran = len(passes)
    assert ran < 3 * 5 + 6
    whole = scan(vlm, EXAMPLES, removals, batch_size=2)
    for one, other in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(one, other)
    passes.clear()
    scan(vlm, EXAMPLES, removals, batch_size=2, done=[*done, *again])
    assert not passes  # not even the clean runs
    handle.remove()


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("how", ["mean", "zero", "resample", "skip"])
def test_windows_find_the_planted_layer(layer, how):
    """A window shows the planted effect if and only if the planted layer is in it."""
    vlm = planted.vlm(layer)
    attacks, benign = planted.attacks(6), planted.benign(6)
    chosen = windows("ffn_out", tiny.LAYERS, 3)
    sites = vlm.anatomy.sites("ffn_out")
    means = collect(vlm, benign, sites).means
    with read(vlm, sites) as recorder:
        vlm.forward(vlm.batch(benign))

    def donors(site, indices):
        return recorder[site]

    found = scan(
        vlm, attacks, [Removal(sites, how) for sites in chosen], means=means, donors=donors
    )
    strong = found.effects.min(axis=1) > 1
    assert strong.tolist() == [any(site.layer == layer for site in sites) for sites in chosen]
    assert np.abs(found.effects[~strong]).max(initial=0) < 0.3
