"""Optimal constants: never worse than the mean, exact where the answer is known."""

import pytest
import torch

from care.diagnosis.activation_means import collect
from care.diagnosis.optimal_constants import ConstantConfig, divergence, fit_constants
from care.errors import FitError, UsageError
from care.models.replay import Replay
from care.models.sites import Role, Site
from kit import planted, tiny

EXAMPLES = tiny.mixed_examples(5)
SITES = [Site(1, "ffn_out"), Site(3, "mhsa_out"), Site(2, "layer_out")]


@pytest.fixture(scope="module")
def means(vlm):
    return collect(vlm, EXAMPLES, SITES).means


@pytest.mark.parametrize("per_class", [True, False])
def test_constants_cost_less_than_means(vlm, means, per_class):
    config = ConstantConfig(steps=6, per_class=per_class)
    counted = []
    found = fit_constants(vlm, EXAMPLES, means, config, counted.append)
    replay = Replay(vlm, vlm.batch(EXAMPLES))
    assert counted == [1] * len(SITES) and set(found) == set(SITES)
    for site in SITES:
        start = means[site] if per_class else means[site][Role.TEXT]
        before, after = (float(divergence(replay, site, part)) for part in (start, found[site]))
        assert 0 <= after < 0.9 * before
        assert found[site].shape == (5, tiny.WIDTH) and found[site].dtype == torch.float32
        if not per_class:
            assert (found[site] == found[site][0]).all()
        else:  # nothing was answered, so nothing says what would fit there
            assert torch.equal(found[site][Role.RESPONSE], means[site][Role.RESPONSE])
    assert all(parameter.grad is None for parameter in vlm.model.parameters())


def test_the_value_that_a_site_has_anyway_costs_nothing(vlm):
    """A sublayer that always gives the same is replaced by that without any loss."""
    made, value = tiny.tiny_vlm(), torch.randn(tiny.WIDTH)

    class Same(torch.nn.Module):
        def forward(self, x):
            return value.expand_as(x)

    made.anatomy.layers[1].mlp = Same()
    site = Site(1, "ffn_out")
    means = collect(made, EXAMPLES, [site]).means
    found = fit_constants(made, EXAMPLES, means, ConstantConfig(steps=3))
    replay = Replay(made, made.batch(EXAMPLES))
    assert float(divergence(replay, site, found[site])) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(found[site][Role.TEXT], value, rtol=1e-4, atol=1e-4)


def test_the_divergence_is_that_of_the_distributions(vlm, means):
    from care.diagnosis.ablation import ablate

    site, batch = SITES[0], vlm.batch(EXAMPLES)
    p = vlm.forward(batch, logits_to_keep=1)[:, -1].softmax(-1)
    with ablate(vlm, [site], "constant", means):
        q = vlm.forward(batch, logits_to_keep=1)[:, -1].softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean()
    found = divergence(Replay(vlm, batch), site, means[site])
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_the_planted_site_is_found_with_constants():
    from care.diagnosis.scan import Removal, scan

    for layer in (0, 3):
        made = planted.vlm(layer)
        sites = [*made.anatomy.sites("ffn_out"), *made.anatomy.sites("mhsa_out")]
        means = collect(made, planted.benign(6), sites).means
        constants = fit_constants(made, planted.benign(12)[6:], means, ConstantConfig(steps=2))
        found = scan(
            *(made, planted.attacks(6), [Removal(site, "constant") for site in sites]),
            constants=constants,
        )
        effects = dict(zip(sites, found.effects.mean(axis=1), strict=True))
        assert max(effects, key=lambda site: effects[site]) == Site(layer, "ffn_out")
        assert effects.pop(Site(layer, "ffn_out")) > 5 * max(map(abs, effects.values()))


def test_bad_input_is_named(vlm, means):
    with pytest.raises(UsageError, match="none were given"):
        fit_constants(vlm, [], means)
    with pytest.raises(UsageError, match=r"shape \(32,\); expected one row per position class"):
        fit_constants(vlm, EXAMPLES, {SITES[0]: torch.zeros(tiny.WIDTH)})
    for wrong in ({"steps": 0}, {"max_examples": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            ConstantConfig(**wrong)
    bad = {SITES[0]: torch.full((5, tiny.WIDTH), torch.nan)}
    with pytest.raises(FitError, match="its mean isn't finite"):
        fit_constants(vlm, EXAMPLES, bad)
    broken = tiny.tiny_vlm()
    with torch.no_grad():
        broken.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(FitError, match="loss isn't finite"):
        fit_constants(broken, EXAMPLES, means)
