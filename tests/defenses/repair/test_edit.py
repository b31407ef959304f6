"""Gated repairs: the plain formula at every precision, and what a gate promises."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from care.defenses.repair.channel import Fusion
from care.defenses.repair.edit import ChannelEdit, channel_edits, side_by_side
from care.defenses.repair.gate import Gate
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace
from care.errors import UsageError
from care.models.sites import Role, scope_mask
from kit import tiny
from kit.repairs import (
    FULLY_OPEN,
    SHUT,
    SITE,
    a_gate,
    a_nonlinear_gate,
    before_after,
    close,
    correction,
    exact,
    made,
    openness,
    plain,
    repaired,
    skewed,
    slanted,
)

EXAMPLES = tiny.mixed_examples(5)
SCOPES = st.sampled_from([("image",), ("text",), ("decision", "response"), ("all",)])
TEXT = int(Role.TEXT)
few = settings(max_examples=25, deadline=None)


@st.composite
def some_channels(draw):
    """One to three channels of one site; ranks, scopes, strengths and gates are their own."""
    found = []
    for make in draw(st.lists(st.sampled_from([made, skewed, slanted]), min_size=1, max_size=3)):
        filters, seed = draw(st.integers(0, 4)), draw(st.integers(0, 99))
        opening = draw(st.sampled_from([a_gate, a_nonlinear_gate]))
        found.append(
            make(
                rank=draw(st.integers(1, 12)),
                seed=seed,
                strength=draw(st.sampled_from([0.0, 0.3, 1.0, 4.5])),
                scopes=draw(SCOPES),
                gate=opening(filters, seed) if filters else None,
            )
        )
    return found


def activations(seed, shape=(3, 6), dtype=torch.float32):
    """h (B, T, D) and roles (B, T), padding among them."""
    rng = torch.Generator().manual_seed(seed)
    roles = torch.randint(0, len(Role), shape, generator=rng)
    return torch.randn(*shape, tiny.WIDTH, generator=rng).to(dtype), roles


def in_any_scope(channels, roles):
    masks = [scope_mask(roles, c.scopes) for c in channels if c.strength]
    return torch.stack(masks or [roles < 0]).any(0)


# -- the formula -----------------------------------------------------------------------------------

PRECISIONS = {
    torch.float64: (1e-6, 1e-6),  # that to which float32 directions are orthonormal
    torch.float32: (1e-4, 1e-4),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (5e-3, 1e-2),
}
"""Absolute and relative tolerance; the last two are those of rounding the result."""


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@given(
    channels=some_channels(),
    fusion=st.sampled_from(["adaptive", "constant", "sum"]),
    seed=st.integers(0, 999),
    length=st.integers(1, 6),
)
@settings(max_examples=100, deadline=None)
def test_channels_side_by_side_equal_the_plain_formula(dtype, channels, fusion, seed, length):
    h, roles = activations(seed, (3, length), dtype)
    after = ChannelEdit(channels, fusion)(h, roles)
    assert after.dtype == dtype
    absolute, relative = PRECISIONS[dtype]
    expected = plain(channels, fusion, h, roles)
    torch.testing.assert_close(after.double(), expected, atol=absolute, rtol=relative)
    outside = ~in_any_scope(channels, roles)
    assert torch.equal(after[outside], h[outside])


@given(channels=some_channels(), fusion=st.sampled_from(["adaptive", "sum"]))
@few
def test_products_in_bfloat16_are_right_to_their_precision(channels, fusion):
    """An accelerator takes the large products in bfloat16, the processor in float32."""
    channels = [channel for channel in channels if channel.strength] or [made()]
    h, roles = activations(0, dtype=torch.bfloat16)
    site_edit = ChannelEdit(channels, fusion)
    site_edit.kept[h.device, h.dtype] = side_by_side(channels, h.device, torch.bfloat16)
    after, expected = site_edit(h, roles).double(), plain(channels, fusion, h, roles)
    ungated = [replace(channel, gate=None) for channel in channels]
    size = h.double().norm(dim=-1) + sum(correction(c, h).norm(dim=-1) for c in ungated)
    assert ((after - expected).norm(dim=-1) <= 0.04 * size).all()


def test_the_formula_of_one_token_by_hand():
    """z = 2, g = (3 − 1) / (5 − 1) = 1/2 by the second filter, a = 3: h' = h − 3 · 1/2 · 2 e₁."""
    subspace = replace(
        random_subspace(4, 1),
        basis=np.eye(4, 1, dtype=np.float32),
        mean=np.array([1, 0, 0, 0], np.float32),
    )
    filters = np.eye(4, dtype=np.float32)[:, [1, 2]]
    low, high = np.array([0, 1], np.float32), np.array([10, 5], np.float32)
    gate = Gate(filters, np.array([0, 0, 1, 0], np.float32), low, high)
    channel = replace(made(width=4, rank=1), subspace=subspace, strength=3.0, gate=gate)
    h = torch.tensor([[[3.0, 2.0, 4.0, 7.0]]])
    after = ChannelEdit([channel], "adaptive")(h, torch.full((1, 1), TEXT))
    assert after.flatten().tolist() == [0.0, 2.0, 4.0, 7.0]


@given(
    gates=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    strengths=st.tuples(st.floats(0, 5), st.floats(0, 5)),
    scopes=st.tuples(SCOPES, SCOPES),
    seed=st.integers(0, 999),
)
@few
def test_in_a_model_two_channels_equal_the_formula(vlm, batch, gates, strengths, scopes, seed):
    channels = tuple(
        made(
            rank=2 + place,
            seed=seed + place,
            strength=strengths[place],
            scopes=scopes[place],
            gate=a_gate(count, seed + place) if count else None,
        )
        for place, count in enumerate(gates)
    )
    h = torch.randn(*batch.roles.shape, tiny.WIDTH, generator=torch.Generator().manual_seed(seed))
    for fusion in get_args(Fusion):
        after = repaired(vlm, Repair(channels, fusion), h, batch)
        close(after, plain(channels, fusion, h, batch.roles), 1e-4)


@given(count=st.integers(1, 4), seed=st.integers(0, 99))
@few
def test_a_gate_of_features_opens_as_it_says(count, seed):
    gate = a_nonlinear_gate(count, seed)
    h, roles = activations(seed)
    found = gate.openness(h[0].double().numpy())
    np.testing.assert_allclose(found, openness(made(gate=gate), h[0])[:, 0], atol=1e-6)
    sums = ChannelEdit([made(gate=gate), made(seed=1, gate=a_gate(4, seed))], "sum")(h, roles)
    close(sums, plain([made(gate=gate), made(seed=1, gate=a_gate(4, seed))], "sum", h, roles), 1e-4)


def test_gradients_of_gated_and_fused_channels_are_those_of_finite_differences():
    channels = [
        made(rank=2, gate=a_gate(2, 1)),
        skewed(rank=3, seed=1, strength=2.0, gate=a_gate(3, 2)),
        made(seed=2),
    ]
    h = activations(3, (1, 4), torch.float64)[0].requires_grad_()
    roles = torch.full((1, 4), TEXT)
    for channel in channels[:2]:  # on the ramp, where the gate has a slope
        opened = openness(channel, h.detach())
        assert ((opened > 0) & (opened < 1)).any()
    site_edit = ChannelEdit(channels, "adaptive")
    assert torch.autograd.gradcheck(lambda x: site_edit(x, roles), h, eps=1e-7, atol=1e-5)


def test_constant_weights_are_half_each_and_without_fusion_one_follows_the_other():
    """By hand, on the same direction about 0: h₁ = 8, and corrections of 8 and of half."""
    direction = replace(
        random_subspace(3, 1), basis=np.eye(3, 1, dtype=np.float32), mean=np.zeros(3, np.float32)
    )
    whole = replace(made(width=3, rank=1), subspace=direction)
    half = replace(whole, strength=0.5)
    h, roles = torch.tensor([[[8.0, 1.0, 2.0]]]), torch.full((1, 1), TEXT)
    first = ChannelEdit([whole, half], "constant")(h, roles)
    assert first.flatten().tolist() == [8 - (8 + 4) / 2, 1.0, 2.0]
    [edit] = channel_edits(Repair((half, half, whole), "none"), ChannelEdit).values()
    assert edit(h, roles).flatten().tolist() == [0.0, 1.0, 2.0]
    [edit] = channel_edits(Repair((half, half), "none"), ChannelEdit).values()
    assert edit(h, roles).flatten().tolist() == [2.0, 1.0, 2.0]  # the sum would be 0


def test_an_oblique_edit_sets_the_coordinates_and_reads_nothing_else():
    channel = slanted(rank=4)
    h, roles = activations(2)
    after = ChannelEdit([channel], "sum")(h, roles)
    q, mean = (torch.from_numpy(part) for part in (channel.subspace.basis, channel.subspace.mean))
    inside = roles != int(Role.PAD)
    torch.testing.assert_close(
        (after @ q)[inside], (mean @ q).expand_as(after @ q)[inside], atol=1e-4, rtol=1e-4
    )
    orthogonal = ChannelEdit([made(rank=4)], "sum")(h, roles)
    assert not torch.allclose(after, orthogonal, atol=0.1)


# -- shut and open ---------------------------------------------------------------------------------


def bits(h):
    return h.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[h.element_size()])


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("fusion", ["adaptive", "sum"])
@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-3, 1.0, 300.0]))
@settings(max_examples=10, deadline=None)
def test_a_shut_gate_leaves_every_bit(dtype, fusion, seed, scale):
    h, roles = activations(seed)
    h = (scale * h).to(dtype) + 0.0  # without −0, which adding nothing turns into 0
    channels = [
        made(seed=seed, strength=4.5, gate=a_gate(3, seed, thresholds=SHUT)),
        skewed(seed=seed + 1, scopes=("text",), gate=a_gate(1, seed, thresholds=SHUT)),
    ]
    for some in (channels, channels[:1]):
        assert torch.equal(bits(ChannelEdit(some, fusion)(h, roles)), bits(h))


@given(seed=st.integers(0, 999), strength=st.floats(0.1, 5), count=st.integers(1, 4))
@few
def test_a_fully_open_gate_is_no_gate(seed, strength, count):
    h, roles = activations(seed)
    ungated = [made(seed=seed, strength=strength), skewed(rank=2, seed=seed + 1, scopes=("text",))]
    opened = [replace(c, gate=a_gate(count, seed, thresholds=FULLY_OPEN)) for c in ungated]
    for mixed in (opened, [opened[0], ungated[1]]):
        for fusion in ("adaptive", "sum"):
            after = ChannelEdit(mixed, fusion)(h, roles)
            close(after, ChannelEdit(ungated, fusion)(h, roles).double(), 1e-4)


def test_one_open_filter_among_shut_ones_opens_the_gate():
    shut = a_gate(3, thresholds=SHUT)
    for place in range(3):
        low, high = shut.low.copy(), shut.high.copy()
        low[place], high[place] = FULLY_OPEN
        channel = made(gate=replace(shut, low=low, high=high))
        h, roles = activations(place)
        close(ChannelEdit([channel], "sum")(h, roles), plain([made()], "sum", h, roles))


def test_where_one_gate_is_shut_the_other_channel_acts_in_full():
    shut = made(gate=a_gate(thresholds=SHUT), modality="image")
    other = made(seed=1, rank=5)
    h, roles = activations(1)
    alone = ChannelEdit([other], "adaptive")(h, roles)
    assert not torch.equal(alone, h)
    for pair in ([shut, other], [other, shut]):
        close(ChannelEdit(pair, "adaptive")(h, roles), alone.double())


@given(seed=st.integers(0, 999), count=st.integers(1, 4), strength=st.floats(0.1, 4))
@few
def test_the_gate_opens_monotonically_from_shut_to_open(seed, count, strength):
    """Along a line on which z stays and every score grows, the step grows from 0 to a ‖z‖."""
    channel = made(rank=3, seed=seed, strength=strength, gate=a_gate(count, seed))
    gate, q = channel.gate, channel.subspace.basis.astype(np.float64)
    # every filter's score and no coordinate of z
    targets = np.concatenate([np.ones(count), np.zeros(3)])
    towards = np.linalg.lstsq(np.hstack([gate.filters, q]).T, targets)[0]
    start = activations(seed, (1, 1))[0].double()
    scores = (start.numpy().ravel() - gate.mean) @ gate.filters
    reach = np.linspace((gate.low - scores).min() - 1, (gate.high - scores).max() + 1, 60)
    h = start + torch.from_numpy(np.outer(reach, towards))[None]
    steps = (h - ChannelEdit([channel], "adaptive")(h, torch.full((1, 60), TEXT))).norm(dim=-1)[0]
    assert steps[0] == 0
    assert (steps.diff() >= -1e-6).all()
    assert ((steps > 1e-6) & (steps < 0.99 * steps[-1])).any()
    z = (start.numpy().ravel() - channel.subspace.mean) @ q
    close(steps[-1], torch.tensor(strength * np.linalg.norm(z)))


@given(seed=st.integers(0, 999), rank=st.integers(1, 12))
@few
def test_where_the_gate_is_open_strength_one_lands_on_the_anchor(seed, rank):
    """Qᵀ h' = Qᵀ μ, the rest of h is kept, and a second application changes nothing."""
    channel = made(rank=rank, seed=seed, gate=a_gate(3, seed, thresholds=FULLY_OPEN))
    site_edit = ChannelEdit([channel], "adaptive")
    h, roles = activations(seed)[0], torch.full((3, 6), TEXT)
    once = site_edit(h, roles)
    q, mean = exact(channel.subspace.basis), exact(channel.subspace.mean)
    close(once.double() @ q, (mean @ q).expand(3, 6, rank))
    rest = torch.eye(tiny.WIDTH).double() - q @ q.T
    close(once.double() @ rest, h.double() @ rest)
    assert not torch.allclose(once, h, atol=1e-2)
    close(site_edit(once, roles), once.double())


def test_a_half_open_gate_goes_half_the_way():
    """Where one filter scores halfway between low and high, half of z is left."""
    gate = a_gate(1)
    score = (gate.low + gate.high) / 2
    h = gate.mean + gate.filters[:, 0] * score / (gate.filters**2).sum()
    channel = made(gate=gate)
    after = ChannelEdit([channel], "sum")(torch.tensor(h)[None, None], torch.full((1, 1), TEXT))
    q, mean = exact(channel.subspace.basis), exact(channel.subspace.mean)
    close((after.double() - mean) @ q, (exact(h)[None, None] - mean) @ q / 2)


def test_padding_that_holds_no_numbers_does_not_leak():
    """A padded position may hold anything; neither it nor the tokens beside it change for it."""
    h, roles = activations(2)
    roles[0, 0] = int(Role.PAD)
    h[0, 0] = torch.nan
    channels = [made(gate=a_gate(3)), made(seed=1)]
    after = ChannelEdit(channels, "adaptive")(h, roles)
    assert after[0, 0].isnan().all()
    keep = roles != Role.PAD
    close(after[keep], plain(channels, "adaptive", h, roles)[keep], 1e-4)


# -- in a model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scopes", [("image",), ("text",), ("response",), ("all",)], ids=str)
def test_tokens_are_counted_only_where_the_gate_is_open(vlm, batch, scopes):
    channel = made(scopes=scopes)
    seen, _ = before_after(vlm, Repair((channel,)), batch)
    inside = scope_mask(batch.roles, scopes)
    gate = a_gate(1)
    scores = (exact(seen) - exact(gate.mean)) @ exact(gate.filters[:, 0])
    ordered = scores[inside].sort().values
    middle = len(ordered) // 2
    low = float(ordered[middle - 1 : middle + 1].mean())  # between two scores, far from both
    thresholds = (np.array([at], np.float32) for at in (low, low + 1))
    channel = replace(channel, gate=Gate(gate.filters, gate.mean, *thresholds))
    before, after = before_after(vlm, Repair((channel,)), batch)
    changed = (before != after).any(-1)
    assert torch.equal(changed, inside & (scores > low))
    with Repair((channel,)).applied(vlm) as stats:
        vlm.forward(batch)
    assert 0 < stats[SITE].tokens == int(changed.sum()) < int(inside.sum())


def test_a_shut_repair_changes_no_logit_and_counts_nothing(vlm, batch):
    unrepaired = vlm.forward(batch)
    shut = made(gate=a_gate(thresholds=SHUT))
    with Repair((shut, replace(shut, modality="image"))).applied(vlm) as stats:
        assert torch.equal(vlm.forward(batch), unrepaired)
    assert stats[SITE].calls == 1
    assert stats.tokens == 0 and stats.relative_norm == 0.0


def test_answers_under_a_gate_do_not_depend_on_batching(vlm):
    gated = made(gate=a_gate(3, 1), scopes=("image",), modality="image", strength=3.0)
    repair = Repair((gated, made(seed=1, gate=a_gate(2), strength=3.0)))
    with repair.applied(vlm):
        together = vlm.generate(EXAMPLES, max_new_tokens=6, batch_size=8)
        alone = vlm.generate(EXAMPLES, max_new_tokens=6, batch_size=1)
    assert together == alone
    assert together != vlm.generate(EXAMPLES, max_new_tokens=6)


# -- channels and gates ----------------------------------------------------------------------------


def test_another_strength_keeps_the_gate_and_another_subspace_drops_it():
    gated = made(gate=a_gate(), strength=2.0, scopes=("response",))
    (stronger,) = Repair((gated,)).with_strength(3.0).channels
    assert stronger.gate is gated.gate
    other = random_subspace(tiny.WIDTH, 5, seed=9)
    projecting = gated.projecting(other)
    assert vars(projecting) == vars(gated) | {"subspace": other, "gate": None}


def test_gates_are_refused_unless_their_parts_fit():
    good = a_gate(2, families=("pgd", "text"))
    for count in (1, 3):
        with pytest.raises(UsageError, match=f"2 filters needs.*2 families or none, got {count}"):
            replace(good, families=("a", "b", "c")[:count])
    assert replace(good, families=()).families == ()
    with pytest.raises(UsageError, match=r"filters \(D, F\)"):
        replace(good, filters=good.filters[:, 0])
    with pytest.raises(UsageError, match="finite"):
        replace(good, mean=good.mean * np.nan)
    with pytest.raises(UsageError, match="low below high"):
        replace(good, low=good.high)
    with pytest.raises(UsageError, match="so far below high"):
        replace(good, low=np.zeros(2, np.float32), high=np.full(2, 1e-44, np.float32))
