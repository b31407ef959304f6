"""Attacks through a defense: gradients past gates, evasion, and images that adapt."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from care.attacks.adaptive import Evasion, SoftEdit, Through
from care.attacks.pgd import image_loss
from care.defenses.base import Defense
from care.defenses.neuron_suppression import NeuronSuppression
from care.defenses.repair.edit import ChannelEdit
from care.defenses.repair.repair import Repair
from care.errors import UsageError
from care.models.hooks import edit, read
from care.models.sites import Role, Site
from care.models.vlm import VLM
from kit import attacks
from kit.attacks import CONFIG, START, vlm  # noqa: F401
from kit.repairs import FULLY_OPEN, SHUT, SITE, a_gate, a_nonlinear_gate, made
from kit.tiny import WIDTH

TEXT = int(Role.TEXT)
EXAMPLES, TARGETS = attacks.EXAMPLES[:3], attacks.TARGETS[:3]
attack, shown = partial(attacks.attack, n=3), partial(attacks.beside, n=3)
LATE = ("decision", "response")


def activations(n=40, seed=0):
    h = torch.randn(1, n, WIDTH, generator=torch.Generator().manual_seed(seed))
    return h, torch.full((1, n), TEXT)


def gradient_of(site_edit, h, roles):
    h = h.clone().requires_grad_()
    out = site_edit(h, roles)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    (gradient,) = torch.autograd.grad((out * weights).sum(), h)
    return out.detach(), gradient


def soft(channels, temperature=None, fusion="adaptive"):
    return SoftEdit(temperature, channels, fusion)


# -- gates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("thresholds", [None, FULLY_OPEN, SHUT])
@pytest.mark.parametrize("fusion", ["adaptive", "sum"])
def test_straight_through_edits_exactly_as_the_repair_does(thresholds, fusion):
    channels = [made(gate=a_gate(thresholds=thresholds)), made(seed=1, gate=a_gate(seed=1))]
    h, roles = activations()
    with torch.no_grad():
        assert torch.equal(
            soft(channels, None, fusion)(h, roles), ChannelEdit(channels, fusion)(h, roles)
        )


def test_straight_through_has_a_gradient_where_the_gate_is_flat():
    gate = a_gate(count=1, thresholds=(0.0, 1e-3))  # open or shut, hardly ever in between
    channels = [made(gate=gate)]
    h, roles = activations()
    score = torch.tensor(gate.openness(h[0].numpy()))
    shut = score == 0
    assert 0 < int(shut.sum()) < len(shut)
    _, exact = gradient_of(ChannelEdit(channels, "sum"), h, roles)
    _, through = gradient_of(soft(channels), h, roles)
    weights = torch.linspace(-1, 1, h.numel()).view_as(h)
    torch.testing.assert_close(exact[0, shut], weights[0, shut])  # as if nothing were there
    difference = (through - exact)[0]
    assert bool((difference.norm(dim=-1) > 0).all())
    # What is missing is the gate's own slope: a multiple of its filter at every token.
    direction = torch.tensor(gate.filters[:, 0])
    cosine = torch.nn.functional.cosine_similarity(difference, direction[None], dim=-1)
    torch.testing.assert_close(cosine.abs(), torch.ones(len(cosine)), atol=1e-4, rtol=0)


def test_a_soft_gate_is_a_sigmoid_of_the_score_and_others_stay_open():
    gate = a_gate(count=1)
    gated, plain = made(gate=gate), made(seed=1)
    h, roles = activations()
    low, high = float(gate.low[0]), float(gate.high[0])
    score = ((h[0].numpy() - gate.mean) @ gate.filters[:, 0] - low) / (high - low)
    openness = 1 / (1 + np.exp(-(score - 0.5) / 0.2))
    q, mean = gated.subspace.basis.astype(float), gated.subspace.mean.astype(float)
    expected = h[0].numpy() - openness[:, None] * ((h[0].numpy() - mean) @ q @ q.T)
    found = soft([gated], 0.2, "sum")(h, roles)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    exact = ChannelEdit([plain], "sum")(h, roles)
    both = soft([gated, plain], 0.2, "sum")(h, roles)
    torch.testing.assert_close(both - torch.tensor(found)[None], exact - h, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "make", [lambda c: ChannelEdit(c, "adaptive"), soft, lambda c: soft(c, 0.3)]
)
def test_gradients_stay_finite_where_every_gate_is_shut(make):
    channels = [made(gate=a_gate(thresholds=SHUT)), made(seed=1, gate=a_gate(thresholds=SHUT))]
    out, gradient = gradient_of(make(channels), *activations())
    assert bool(out.isfinite().all()) and bool(gradient.isfinite().all())


def test_the_gradient_through_a_repair_agrees_with_finite_differences(vlm):
    repair = Repair((made(scopes=("all",)), made(seed=1, modality="image", scopes=("all",))))
    loss_of, levels = attacks.objective(vlm, 3)
    with repair.applied(vlm):
        attacks.check_gradient(loss_of, levels / 255)


# -- evasion ---------------------------------------------------------------------------------------


def test_the_evasion_term_is_what_the_channel_sees():
    h, roles = activations(6)
    roles[0, :2] = int(Role.PAD)
    gate = a_gate()
    plain, gated = made(scopes=("text",)), made(seed=1, gate=gate, scopes=("text",))
    rows = h[0, 2:].numpy().astype(float)
    q, mean = plain.subspace.basis.astype(float), plain.subspace.mean.astype(float)
    inside = (((rows - mean) @ q) ** 2).sum(1) / ((rows - mean) ** 2).sum(1)
    score = (((rows - gate.mean) @ gate.filters - gate.low) / (gate.high - gate.low)).max(1)
    scores = np.maximum(score + 0.1, 0)
    for channels, expected in (
        ((plain,), inside.mean()),
        ((gated,), scores.mean()),
        ((plain, gated), np.concatenate([inside, scores]).mean()),
        ((plain, replace(gated, strength=0.0)), inside.mean()),
    ):
        term = Evasion(Repair(channels), 2.0)
        assert term.take() is None
        term.see(SITE, h, roles)
        assert float(term.take()) == pytest.approx(2 * expected, rel=1e-4)
        assert term.take() is None


def test_evasion_and_digest_see_the_features_of_a_gate():
    gate = a_nonlinear_gate(seed=3)
    channel = made(gate=gate)
    h, roles = activations(5)
    term = Evasion(Repair((channel,)), 1.0)
    term.see(channel.site, h, roles)
    mapped = gate.features(h[0].numpy())
    score = (((mapped - gate.mean) @ gate.filters - gate.low) / (gate.high - gate.low)).max(1)
    assert float(term.take()) == pytest.approx(np.maximum(score + 0.1, 0).mean(), rel=1e-3)
    other = replace(gate, features=replace(gate.features, phases=gate.features.phases + 1))
    told = [Through(Repair((replace(channel, gate=g),))).describe() for g in (gate, other)]
    assert told[0] != told[1]


def test_evasion_keeps_the_image_out_of_the_subspace(vlm):
    channel = made(scopes=("decision", "response"), strength=0.0)
    repair = Repair((replace(channel, strength=0.3),))

    def share(image):
        term = Evasion(repair, 1.0)
        with read(vlm, repair.sites, sink=term.see):
            vlm.forward(vlm.batch(shown(image), TARGETS))
        return float(term.take())

    config = replace(CONFIG, steps=25)
    careless, careful = (
        attack(vlm, config, through=Through(repair, evasion=weight)) for weight in (0.0, 200.0)
    )
    assert share(careful.image) < 0.9 * share(careless.image)
    assert careful.losses[0] > careless.losses[0] + 1  # the term is part of what is descended
    assert careful.loss < careful.losses[0]  # but not of what is reported at the end


# -- the attack ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scopes", [LATE, ("all",)])
def test_an_adaptive_image_does_better_against_the_defense(vlm, scopes):
    repair = Repair((made(site=Site(3, "layer_out"), rank=20, scopes=scopes),))
    transfer = attack(vlm)
    through = Through(repair)
    adaptive = attack(vlm, through=through)
    shown = image_loss(vlm, EXAMPLES, TARGETS, transfer.image, CONFIG, through)
    assert adaptive.loss < shown - 0.2
    assert not vlm.model._forward_pre_hooks


@pytest.mark.parametrize("gate", ["exact", "straight-through", "soft"])
def test_a_finished_image_is_measured_under_the_repair_itself(vlm, gate):
    repair = Repair((made(scopes=LATE, strength=1.5, gate=a_gate()),))
    config = replace(CONFIG, steps=3)
    found = attack(vlm, config, through=Through(repair, gate))
    with repair.applied(vlm):
        assert found.loss == pytest.approx(attacks.ordinary_loss(vlm, found.image, 3), abs=1e-4)


def test_a_saved_image_is_measured_the_way_the_attack_measured_it(vlm, monkeypatch):
    """In half precision whole prompts and a shared beginning round differently."""
    through = Through(Repair((made(scopes=LATE, strength=1.5, gate=a_gate()),)))
    assert through.decision_only
    found = attack(vlm, replace(CONFIG, steps=3), through=through)
    whole, forward = [], VLM.forward

    def watched(self, batch, **how):
        whole.append(len(batch.roles))
        return forward(self, batch, **how)

    monkeypatch.setattr(VLM, "forward", watched)
    assert image_loss(vlm, EXAMPLES, TARGETS, found.image, found.config, through) == found.loss
    assert max(whole) < len(EXAMPLES)  # only what verifies the path reads whole prompts


def test_a_gate_that_masks_the_gradient_is_seen_past(vlm):
    """Where it is fully open, everything is replaced by one vector: no gradient is left."""
    site = Site(3, "layer_out")
    channel = made(site=site, rank=WIDTH, scopes=LATE)
    probe = a_gate(count=1, thresholds=(0.0, 1.0))
    scores = []

    def look(site, h, roles):
        rows = h[(roles == Role.RESPONSE) | (roles == Role.TEXT)]
        scores.append((rows.detach().numpy() - probe.mean) @ probe.filters[:, 0])

    with read(vlm, [site], sink=look):
        vlm.forward(vlm.batch(shown(START), TARGETS))
    least, spread = scores[0].min(), scores[0].std()
    low, high = (np.float32([least - share * spread]) for share in (0.5, 0.1))
    repair = Repair((replace(channel, gate=replace(probe, low=low, high=high)),))
    config = replace(CONFIG, steps=25)
    blind, seeing = (
        attack(vlm, config, through=Through(repair, gate)) for gate in ("exact", "straight-through")
    )
    assert blind.loss == pytest.approx(blind.losses[0], abs=0.01)
    assert seeing.loss < blind.loss - 0.1


def test_any_defense_can_be_attacked_through(vlm):
    class Halved(Defense):
        name = "halved"

        def applied(self, vlm):
            return edit(vlm, {Site(1, "layer_out"): lambda h, roles: h * 0.5})

    result = attack(vlm, through=Through(Halved()))
    assert result.loss < result.losses[0]
    assert result.losses[0] == pytest.approx(
        image_loss(vlm, EXAMPLES, TARGETS, START, CONFIG, Through(Halved())), abs=0.01
    )
    with pytest.raises(UsageError, match="needs the sites of a repair"):
        Through(Halved(), evasion=1.0)


@pytest.mark.parametrize(
    "wrong", [{"gate": "none"}, {"evasion": -1.0}, {"evasion": float("nan")}, {"temperature": 0.0}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Through(Repair((made(),)), **wrong)
    with pytest.raises(UsageError, match="goes through a defense"):
        Through("repair")  # pyright: ignore


def test_a_checkpoint_knows_its_defense(vlm, tmp_path):
    repair = Repair((made(gate=a_gate()),))

    def one_step(through):
        attack(vlm, replace(CONFIG, steps=1), through=through, checkpoint=tmp_path / "state")

    one_step(Through(repair))
    one_step(Through(repair))
    channels = (made(seed=1, gate=a_gate()), made())
    others = (*(Repair((channel,)) for channel in channels), repair.with_strength(0.5))
    neurons = NeuronSuppression.of(vlm, [(1, 3)], "zero", name=repair.name)
    for other in (None, *map(Through, others), Through(repair, "soft"), Through(neurons)):
        with pytest.raises(UsageError, match="another attack"):
            one_step(other)
    assert Through(neurons).describe() != Through(replace(neurons, strength=0.5)).describe()
