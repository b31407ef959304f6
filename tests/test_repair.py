"""Repairs: closed forms of every correction, exactly the tokens in scope, nothing left behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from care.anatomy import Role, Site, scope_mask
from care.defenses import Defense, random_control
from care.errors import ArtefactError, SiteError, UsageError
from care.hooks import edit, read
from care.repair import Channel, Repair
from care.subspace import random_subspace
from care.vlm import VLM

EXAMPLES = tiny.mixed_examples(5)
SITE = Site(1, "ffn_out")
few = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def vlm():
    vlm = tiny.tiny_vlm()
    vlm.forward(vlm.batch(EXAMPLES))  # transformers installs hooks of its own on first use
    return vlm


@pytest.fixture(scope="module")
def batch(vlm):
    return vlm.batch(EXAMPLES, ["I'm sorry."] * len(EXAMPLES))


def made(site=SITE, scopes=("all",), rank=3, seed=0, width=tiny.WIDTH, modality="text", **options):
    """A channel with random directions about a random mean."""
    mean = np.random.default_rng(seed + 100).standard_normal(width)
    return Channel(site, modality, scopes, random_subspace(width, rank, mean, seed), **options)


def oblique(rank=3, seed=0, **options):
    """A channel that writes along other directions than it reads."""
    pattern = np.random.default_rng(seed + 200).standard_normal((tiny.WIDTH, rank))
    return made(rank=rank, seed=seed, pattern=pattern.astype(np.float32) / 6, **options)


def clipping(rank=3, seed=0, low=-0.5, high=0.5, **options):
    bounds = (np.full(rank, low, np.float32), np.full(rank, high, np.float32))
    return made(rank=rank, seed=seed, operation="clip", bounds=bounds, **options)


def before_after(vlm, repair, batch, site=SITE):
    """Activations (B, T, D) at `site` without and with the repair there, in one pass."""
    with read(vlm, [site]) as before, repair.applied(vlm), read(vlm, [site]) as after:
        vlm.forward(batch)
    return before[site][0], after[site][0]


def repaired(vlm, repair, h, batch, site=SITE):
    """What the repair makes of given activations h (B, T, D)."""
    with edit(vlm, {site: lambda _, roles: h}), repair.applied(vlm), read(vlm, [site]) as after:
        vlm.forward(batch, grad=h.requires_grad)
    return after[site][0]


def oracle(channel, h):
    """c(h) by D × D matrices in float64."""
    q = torch.tensor(channel.subspace.basis).double()
    centred = h.double() - torch.tensor(channel.subspace.mean).double()
    write = q if channel.pattern is None else torch.tensor(channel.pattern).double()
    if channel.operation == "project":
        return -channel.strength * centred @ (q @ write.T)
    z = centred @ q
    low, high = (torch.tensor(bound).double() for bound in channel.bounds)
    outside = torch.where(z > high, z - high, torch.where(z < low, z - low, 0.0))
    return -channel.strength * outside @ write.T


def hooks_of(vlm):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in vlm.model.modules()
    )


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


# -- one channel -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ffn_out", "mhsa_out", "layer_out", "ffn_neurons"])
@pytest.mark.parametrize("strength", [0.5, 1.0, 4.5])
def test_a_projection_has_its_closed_form_at_every_kind_of_site(vlm, batch, kind, strength):
    site = Site(2, kind)
    channel = made(site, width=vlm.anatomy.site_width(site), strength=strength)
    before, after = before_after(vlm, Repair((channel,)), batch, site)
    here = (batch.roles != Role.PAD)[..., None]
    close(after, before.double() + oracle(channel, before) * here)


@given(
    rank=st.integers(1, tiny.WIDTH),
    strength=st.floats(0, 6),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
    make=st.sampled_from([made, clipping, oblique]),
    seed=st.integers(0, 999),
)
@few
def test_a_correction_equals_dense_algebra(vlm, batch, rank, strength, scale, make, seed):
    rng = torch.Generator().manual_seed(seed)
    h = scale * torch.randn(*batch.roles.shape, tiny.WIDTH, generator=rng)
    channel = make(rank=rank, seed=seed, strength=strength)
    after = repaired(vlm, Repair((channel,)), h, batch)
    here = (batch.roles != Role.PAD)[..., None]
    close(after / scale, (h.double() + oracle(channel, h) * here) / scale, 1e-4 / min(scale, 1))


def test_strength_one_keeps_the_complement_and_puts_the_benign_mean_inside(vlm, batch):
    channel = made(rank=5)
    before, after = before_after(vlm, Repair((channel,)), batch)
    q = torch.tensor(channel.subspace.basis).double()
    inside = q @ q.T
    safe = torch.eye(tiny.WIDTH).double() - inside
    mean = torch.tensor(channel.subspace.mean).double()
    real = batch.roles != Role.PAD
    close(after[real], before[real].double() @ safe + inside @ mean)


@pytest.mark.parametrize("channel", [made(rank=5), clipping(rank=5)], ids=["project", "clip"])
def test_at_strength_one_twice_is_once(vlm, batch, channel):
    repair = Repair((channel,))
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
    close(after, h.double() + oracle(channel, h) * here, 0.05)


def test_clip_leaves_the_benign_range_alone_bit_for_bit(vlm, batch):
    wide = clipping(low=-1e4, high=1e4)
    before, after = before_after(vlm, Repair((wide,)), batch)
    assert torch.equal(before, after)
    narrow = clipping(low=-0.25, high=0.1)
    before, after = before_after(vlm, Repair((narrow,)), batch)
    q, mean = (torch.tensor(part) for part in (narrow.subspace.basis, narrow.subspace.mean))
    real = batch.roles != Role.PAD
    z, cut = (before[real] - mean) @ q, (after[real] - mean) @ q
    close(cut, z.clamp(-0.25, 0.1).double())
    assert (z > 0.1).any() and (z < -0.25).any()


def test_an_oblique_projection_brings_the_same_coordinates_to_the_mean(vlm, batch):
    """With Qᵀ W = I the coordinates end at those of μ, and the edit lies in the span of W."""
    channel = oblique(rank=4)
    q = channel.subspace.basis
    # W = W₀ (Qᵀ W₀)⁻¹
    pattern = channel.pattern @ np.linalg.inv(q.T @ channel.pattern)
    channel = replace(channel, pattern=pattern)
    before, after = before_after(vlm, Repair((channel,)), batch)
    real = batch.roles != Role.PAD
    z = (after[real] - torch.tensor(channel.subspace.mean)) @ torch.tensor(q)
    close(z, torch.zeros_like(z).double(), 1e-4)
    step = (after - before)[real].double().T
    solution = torch.linalg.lstsq(torch.tensor(pattern).double(), step).solution
    close(torch.tensor(pattern).double() @ solution, step, 1e-4)
    assert not torch.allclose(torch.tensor(q @ q.T).double() @ step, step, atol=0.1)
    same = replace(channel, pattern=q)
    _, orthogonal = before_after(vlm, Repair((replace(channel, pattern=None),)), batch)
    assert torch.equal(before_after(vlm, Repair((same,)), batch)[1], orthogonal)


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
    clip=st.booleans(),
    seed=st.integers(0, 999),
)
@few
def test_two_channels_are_fused_by_their_norms(vlm, batch, ranks, strengths, scopes, clip, seed):
    visual = made(rank=ranks[0], seed=seed, strength=strengths[0], scopes=scopes[0])
    maker = clipping if clip else made
    textual = maker(rank=ranks[1], seed=seed + 1, strength=strengths[1], scopes=scopes[1])
    repair = Repair((replace(visual, modality="image"), textual))
    h = torch.randn(*batch.roles.shape, tiny.WIDTH, generator=torch.Generator().manual_seed(seed))
    c_visual, c_textual = (
        oracle(channel, h) * scope_mask(batch.roles, channel.scopes)[..., None]
        for channel in repair.channels
    )
    norms = [c.norm(dim=-1, keepdim=True) for c in (c_visual, c_textual)]
    w = torch.nan_to_num(norms[0] / (norms[0] + norms[1]))
    close(repaired(vlm, repair, h, batch), h + w * c_visual + (1 - w) * c_textual, 1e-4)
    summed = repaired(vlm, replace(repair, fusion="sum"), h, batch)
    close(summed, h + c_visual + c_textual, 1e-4)


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
        assert here.any() and torch.equal(both[here], expected[here])


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
    with pytest.raises((ArtefactError, SiteError), match="9"):  # noqa: SIM117
        with Repair((made(Site(9, "ffn_out")),)).applied(vlm):
            pass
    assert hooks_of(vlm) == hooks


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_has_to_be_a_number_of_at_least_zero(strength):
    with pytest.raises(UsageError, match="strength"):
        made(strength=strength)
    with pytest.raises(UsageError, match="strength"):
        Repair((made(),)).with_strength(strength)


def test_contradictory_repairs_are_refused():
    bounds = (np.zeros(3, np.float32),) * 2
    with pytest.raises(UsageError, match="bounds"):
        made(operation="clip")
    with pytest.raises(UsageError, match="bounds"):
        made(bounds=bounds)
    with pytest.raises(UsageError, match="pattern"):
        made(pattern=np.zeros((tiny.WIDTH, 2), np.float32))
    with pytest.raises(UsageError, match="at least one channel"):
        Repair(())
    with pytest.raises(UsageError, match="fusion"):
        Repair((made(),), fusion="mean")  # pyright: ignore[reportArgumentType]


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
    repair = Repair((made(modality="image", scopes=("image",)), made(seed=1, rank=5)))
    control, again = random_control(repair, seed=3), random_control(repair, seed=3)
    for ours, theirs, same in zip(repair.channels, control.channels, again.channels, strict=True):
        basis = theirs.subspace.basis
        assert basis.shape == ours.subspace.basis.shape
        assert np.allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-6)
        assert np.abs(basis - ours.subspace.basis).max() > 0.1
        assert np.array_equal(basis, same.subspace.basis)
        assert np.array_equal(theirs.subspace.mean, ours.subspace.mean)
        assert (theirs.site, theirs.scopes, theirs.strength) == (
            ours.site,
            ours.scopes,
            ours.strength,
        )
    before, after = before_after(vlm, control, batch)
    assert not torch.equal(before, after)
