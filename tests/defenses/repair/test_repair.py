"""Repairs: closed forms of every correction, exactly the tokens in scope, nothing left behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from care.defenses.base import Defense
from care.defenses.controls import random_control
from care.defenses.repair.edit import ChannelEdit
from care.defenses.repair.repair import Repair
from care.errors import ArtefactError, UsageError
from care.models.hooks import edit, read
from care.models.sites import Role, Site, scope_mask
from care.models.vlm import VLM
from kit import tiny
from kit.repairs import SITE, a_gate, before_after, close, correction, made, plain, repaired, skewed
from kit.tiny import hooks_of

EXAMPLES = tiny.mixed_examples(5)
few = settings(max_examples=25, deadline=None)


# -- one channel -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ffn_out", "mhsa_out", "layer_out", "ffn_neurons"])
@pytest.mark.parametrize("strength", [0.5, 1.0, 4.5])
def test_a_projection_has_its_closed_form_at_every_kind_of_site(vlm, batch, kind, strength):
    site = Site(2, kind)
    channel = made(site, width=vlm.anatomy.site_width(site), strength=strength)
    before, after = before_after(vlm, Repair((channel,)), batch, site)
    here = (batch.roles != Role.PAD)[..., None]
    close(after, before.double() + correction(channel, before) * here)


@given(
    rank=st.integers(1, tiny.WIDTH),
    strength=st.floats(0, 6),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
    make=st.sampled_from([made, skewed]),
    seed=st.integers(0, 999),
)
@few
def test_a_correction_equals_dense_algebra(vlm, batch, rank, strength, scale, make, seed):
    rng = torch.Generator().manual_seed(seed)
    h = scale * torch.randn(*batch.roles.shape, tiny.WIDTH, generator=rng)
    channel = make(rank=rank, seed=seed, strength=strength)
    after = repaired(vlm, Repair((channel,)), h, batch)
    here = (batch.roles != Role.PAD)[..., None]
    close(after / scale, (h.double() + correction(channel, h) * here) / scale, 1e-4 / min(scale, 1))


def test_strength_one_keeps_the_complement_and_puts_the_benign_mean_inside(vlm, batch):
    channel = made(rank=5)
    before, after = before_after(vlm, Repair((channel,)), batch)
    q = torch.tensor(channel.subspace.basis).double()
    inside = q @ q.T
    safe = torch.eye(tiny.WIDTH).double() - inside
    mean = torch.tensor(channel.subspace.mean).double()
    real = batch.roles != Role.PAD
    close(after[real], before[real].double() @ safe + inside @ mean)


def test_at_strength_one_twice_is_once(vlm, batch):
    repair = Repair((made(rank=5),))
    before, once = before_after(vlm, repair, batch)
    assert not torch.allclose(before, once, atol=1e-2)
    twice = repaired(vlm, repair, once, batch)
    close(twice, once.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_zero_is_bit_equal(batch, dtype):
    model, processor = tiny.tiny_llava()
    vlm = VLM(model.to(dtype), processor)
    plain = vlm.forward(vlm.batch(EXAMPLES))
    repair = Repair((made(), made(modality="image", seed=1), made(Site(2, "layer_out"), seed=2)))
    with repair.with_strength(0).applied(vlm) as stats:
        assert torch.equal(vlm.forward(vlm.batch(EXAMPLES)), plain)
    assert stats.tokens == 0
    with repair.applied(vlm) as stats:
        assert not torch.allclose(vlm.forward(vlm.batch(EXAMPLES)), plain, atol=1e-2)
    assert stats.tokens == 2 * int((vlm.batch(EXAMPLES).roles != Role.PAD).sum())


def test_bfloat16_activations_are_corrected_to_their_own_precision(batch):
    model, processor = tiny.tiny_llava()
    vlm = VLM(model.to(torch.bfloat16), processor)
    channel = made(rank=8)
    h = torch.randn(*batch.roles.shape, tiny.WIDTH).bfloat16()
    after = repaired(vlm, Repair((channel,)), h, vlm.batch(EXAMPLES, ["I'm sorry."] * 5))
    assert after.dtype == torch.bfloat16
    here = (batch.roles != Role.PAD)[..., None]
    close(after, h.double() + correction(channel, h) * here, 0.05)


def test_gradients_pass_through_a_repair(vlm, batch):
    channel = made(rank=4, strength=2.0)
    h = torch.randn(*batch.roles.shape, tiny.WIDTH, requires_grad=True)
    towards = torch.randn(tiny.WIDTH)
    (gradient,) = torch.autograd.grad(
        (repaired(vlm, Repair((channel,)), h, batch) @ towards).sum(), h
    )
    q = torch.tensor(channel.subspace.basis).double()
    expected = towards.double() - 2.0 * q @ (q.T @ towards.double())
    real = batch.roles != Role.PAD
    close(gradient[real], expected.expand(int(real.sum()), -1))
    assert torch.equal(gradient[~real], towards.expand(int((~real).sum()), -1))


def test_gradients_pass_after_use_in_inference_mode():
    site_edit = ChannelEdit([made(rank=4), skewed(seed=1, gate=a_gate())], "adaptive")
    h = torch.randn(1, 2, tiny.WIDTH)
    roles = torch.full((1, 2), int(Role.TEXT))
    with torch.inference_mode():
        expected = site_edit(h, roles).double()
    h = h.clone().requires_grad_()
    after = site_edit(h, roles)
    (gradient,) = torch.autograd.grad(after.square().sum(), h)
    close(after, expected)
    assert gradient.isfinite().all() and gradient.abs().min() > 0


# -- scopes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scopes",
    [("image",), ("text",), ("decision",), ("response",), ("decision", "response"), ("all",)],
    ids=str,
)
def test_exactly_the_tokens_in_scope_are_edited(vlm, batch, scopes):
    repair = Repair((made(scopes=scopes),))
    before, after = before_after(vlm, repair, batch)
    changed = (before != after).any(-1)
    assert torch.equal(changed, scope_mask(batch.roles, scopes))
    with repair.applied(vlm) as stats:
        vlm.forward(batch)
    assert stats[SITE].tokens == int(changed.sum())


@pytest.mark.parametrize(
    "scopes", [("image",), ("text",), ("decision",), ("response",), ("all",)], ids=str
)
def test_scopes_hold_in_prefill_and_in_every_decode_step(vlm, scopes):
    passes = []
    with (
        read(vlm, [SITE], sink=lambda site, h, roles: passes.append((roles, h))),
        Repair((made(scopes=scopes),)).applied(vlm) as stats,
        read(vlm, [SITE], sink=lambda site, h, roles: passes.append((roles, h))),
    ):
        vlm.generate(EXAMPLES[1::2], max_new_tokens=4)
    pairs = list(zip(passes[::2], passes[1::2], strict=True))
    assert len(pairs) >= 3
    for step, ((roles, before), (_, after)) in enumerate(pairs):
        assert (roles.shape[1] == 1) == (step > 0)
        assert torch.equal((before != after).any(-1), scope_mask(roles, scopes))
    counts = [int(scope_mask(roles, scopes).sum()) for (roles, _), _ in pairs]
    assert stats.tokens == sum(counts)
    assert (counts[0] > 0) == (scopes != ("response",))
    assert scopes != ("decision",) or counts[0] == len(EXAMPLES[1::2])
    assert (sum(counts[1:]) > 0) == (scopes in (("response",), ("all",)))


def test_answers_do_not_depend_on_batching_while_repaired(vlm):
    repair = Repair((made(scopes=("image",), modality="image"), made(seed=1)))
    with repair.applied(vlm):
        together = vlm.generate(EXAMPLES, max_new_tokens=6, batch_size=8)
        alone = vlm.generate(EXAMPLES, max_new_tokens=6, batch_size=1)
    assert together == alone
    assert together != vlm.generate(EXAMPLES, max_new_tokens=6)


# -- two channels ----------------------------------------------------------------------------------


@given(
    ranks=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    strengths=st.tuples(st.floats(0, 5), st.floats(0, 5)),
    scopes=st.tuples(*[st.sampled_from([("image",), ("text",), ("all",)])] * 2),
    seed=st.integers(0, 999),
)
@few
def test_two_channels_are_fused_by_their_norms(vlm, batch, ranks, strengths, scopes, seed):
    visual = made(rank=ranks[0], seed=seed, strength=strengths[0], scopes=scopes[0])
    textual = made(rank=ranks[1], seed=seed + 1, strength=strengths[1], scopes=scopes[1])
    repair = Repair((replace(visual, modality="image"), textual))
    h = torch.randn(*batch.roles.shape, tiny.WIDTH, generator=torch.Generator().manual_seed(seed))
    c_visual, c_textual = (
        correction(channel, h) * scope_mask(batch.roles, channel.scopes)[..., None]
        for channel in repair.channels
    )
    norms = [c.norm(dim=-1, keepdim=True) for c in (c_visual, c_textual)]
    w = torch.nan_to_num(norms[0] / (norms[0] + norms[1]))
    close(repaired(vlm, repair, h, batch), h + w * c_visual + (1 - w) * c_textual, 1e-4)
    summed = repaired(vlm, replace(repair, fusion="sum"), h, batch)
    close(summed, h + c_visual + c_textual, 1e-4)


@pytest.mark.parametrize("maker", [made, skewed])
def test_large_activations_in_float16_do_not_overflow(maker):
    """A coordinate is a sum of D entries, so it leaves float16's range long before they do."""
    channels = [maker(rank=2, seed=seed, strength=0.3) for seed in (0, 1)]
    q = torch.tensor(channels[0].subspace.basis)[:, :1]
    h = (30_000 * q.T.sign()).half()[None]
    assert (h.float() @ q).abs().max() > torch.finfo(torch.float16).max
    roles = torch.full((1, 1), int(Role.RESPONSE))
    after = ChannelEdit(channels, "adaptive")(h, roles)
    assert after.dtype == torch.float16
    close(after / 3e4, plain(channels, "adaptive", h.double(), roles) / 3e4, 1e-3)


def test_a_large_mean_cancels_in_bfloat16():
    """z = Qᵀ (h − μ) is right to the precision of h − μ though Q is rounded."""
    channel = made(rank=4)
    mean = np.full(tiny.WIDTH, 1024, np.float32)
    channel = replace(channel, subspace=replace(channel.subspace, mean=mean))
    h = torch.full((1, 1, tiny.WIDTH), 1024.0).bfloat16()
    after = ChannelEdit([channel], "adaptive")(h, torch.full((1, 1), int(Role.TEXT)))
    close(after, h.double(), 1e-2)


def test_where_one_channel_is_out_of_scope_the_other_acts_in_full(vlm, batch):
    visual = made(scopes=("image",), modality="image")
    textual = made(scopes=("text",), seed=1)
    before, both = before_after(vlm, Repair((visual, textual)), batch)
    _, image_only = before_after(vlm, Repair((visual,)), batch)
    _, text_only = before_after(vlm, Repair((textual,)), batch)
    for role, expected in (
        (Role.IMAGE, image_only),
        (Role.TEXT, text_only),
        (Role.RESPONSE, before),
        (Role.PAD, before),
    ):
        here = batch.roles == role
        assert here.any()
        if expected is before:
            assert torch.equal(both[here], before[here])
        close(both[here], expected[here].double())


def test_every_site_is_edited_and_counted(vlm, batch):
    sites = [Site(2, "ffn_out"), Site(0, "layer_out"), Site(1, "mhsa_out")]
    repair = Repair(tuple(made(site, seed=i) for i, site in enumerate([*sites, sites[0]])))
    assert repair.sites == tuple(sorted(sites))
    with repair.applied(vlm) as stats:
        vlm.forward(batch)
    real = int((batch.roles != Role.PAD).sum())
    assert {site: stats[site].tokens for site in stats} == dict.fromkeys(sites, real)
    assert 0 < stats.relative_norm < 100


# -- life cycle ------------------------------------------------------------------------------------


def test_hooks_are_gone_after_use_and_after_an_exception(vlm, batch):
    repair = Repair((made(), made(Site(0, "layer_out"), seed=1)))
    plain, hooks = vlm.forward(batch), hooks_of(vlm)
    with repair.applied(vlm):
        assert hooks_of(vlm) > hooks
        vlm.forward(batch)
    for interruption in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(interruption), repair.applied(vlm):
            vlm.forward(batch)
            raise interruption

    def explode(h, roles):
        raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        repair.applied(vlm),
        edit(vlm, {Site(3, "ffn_out"): explode}),
    ):
        vlm.forward(batch)
    assert hooks_of(vlm) == hooks
    assert torch.equal(vlm.forward(batch), plain)


def test_a_repair_can_be_applied_again_and_to_another_model_alike(vlm, batch):
    repair = Repair((made(),))
    results = []
    for model in (vlm, vlm, tiny.tiny_vlm()):
        with repair.applied(model):
            results.append(model.forward(batch))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_repair_of_another_width_or_depth_is_refused_before_anything_runs(vlm):
    hooks = hooks_of(vlm)
    for site, width in ((SITE, 48), (Site(1, "ffn_neurons"), tiny.WIDTH)):
        repair = Repair((made(), made(site, width=width)))
        with pytest.raises(ArtefactError, match=rf"{site}.*{width}"), repair.applied(vlm):
            pass
    deep = Repair((made(), made(Site(9, "ffn_out"))))
    with pytest.raises(ArtefactError, match=r"9\.ffn_out.*tiny-llava.*4 layers"):
        deep.check_sites(vlm)
    assert hooks_of(vlm) == hooks


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf"), "1", None, 10**400])
def test_a_strength_has_to_be_a_number_of_at_least_zero(strength):
    with pytest.raises(UsageError, match="strength"):
        made(strength=strength)
    with pytest.raises(UsageError, match="strength"):
        Repair((made(),)).with_strength(strength)


def test_contradictory_repairs_are_refused():
    with pytest.raises(UsageError, match="the gate has width 48, the subspace 32"):
        made(gate=a_gate(width=48))
    with pytest.raises(UsageError, match="at least one channel"):
        Repair(())
    with pytest.raises(UsageError, match="fusion"):
        Repair((made(),), fusion="mean")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("modality", "audio"),
        ("scopes", "text"),
        ("scopes", ()),
        ("scopes", ("text", "video")),
        ("scopes", (["text"],)),
        ("scopes", None),
    ],
)
def test_unknown_settings_of_a_channel_are_refused(setting, value):
    with pytest.raises(UsageError, match=setting):
        made(**{setting: value})


def test_scopes_may_be_a_list():
    assert made(scopes=["text", "image"]).scopes == ("text", "image")


def test_ablations_of_a_repair():
    visual, textual = made(modality="image", scopes=("image",)), made(seed=1, strength=2.0)
    repair = Repair((visual, textual), name="both", manifest={"a": 1})
    assert isinstance(repair, Defense)
    assert repair.only("image").channels == (visual,)
    assert repair.only("text").channels == (textual,)
    assert "image" in repair.only("image").name and repair.only("image").manifest == {"a": 1}
    with pytest.raises(UsageError, match="no text channel"):
        repair.only("image").only("text")
    stronger = repair.with_strength(3.0)
    assert [c.strength for c in stronger.channels] == [3.0, 3.0]
    assert [c.strength for c in repair.channels] == [1.0, 2.0]
    assert stronger.channels[0].subspace is visual.subspace


def test_the_random_control_differs_in_the_directions_alone(vlm, batch):
    gated = made(modality="image", scopes=("image",), gate=a_gate())
    repair = Repair((gated, made(seed=1, rank=5)))
    control, again = random_control(repair, seed=3), random_control(repair, seed=3)
    for ours, theirs, same in zip(repair.channels, control.channels, again.channels, strict=True):
        basis = theirs.subspace.basis
        assert basis.shape == ours.subspace.basis.shape
        assert np.allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-6)
        assert np.abs(basis - ours.subspace.basis).max() > 0.1
        assert np.array_equal(basis, same.subspace.basis)
        assert np.array_equal(theirs.subspace.mean, ours.subspace.mean)
        assert vars(theirs) == vars(ours) | {"subspace": theirs.subspace}
    before, after = before_after(vlm, control, batch)
    assert not torch.equal(before, after)
