"""Total, direct and indirect effects: definitions by full passes, the identity, a planted site."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from care.data.example import Example
from care.data.minimal_pairs import Pair
from care.diagnosis.ablation import ablate
from care.diagnosis.causal_mediation import EffectsConfig, exchange, site_effects
from care.diagnosis.measures import first_token, passes, refusal_contrast, refusal_log_odds
from care.diagnosis.scan import windows
from care.errors import FitError, SiteError, UsageError
from care.models.hooks import read
from care.models.sites import Site
from care.models.vlm import VLM
from care.report.schema import validate
from care.statistics.sampling import SamplingSpec
from care.typed import to_tree
from kit import planted, tiny
from kit.reports import report_tree

EXAMPLES = tiny.mixed_examples(8)
FAST = EffectsConfig(sampling=SamplingSpec(resamples=300), batch_size=3)


def as_pairs(examples=EXAMPLES):
    """Attacks beside prompts of other lengths, some with and some without pictures."""
    half = len(examples) // 2
    attacks = [
        dataclasses.replace(example, kind="malicious", goal=f"goal {index}")
        for index, example in enumerate(examples[:half])
    ]
    return [Pair(*both) for both in zip(attacks, examples[half:], strict=True)]


def log_odds(vlm, examples):
    return vlm.log_odds(vlm.forward(vlm.batch(examples), logits_to_keep=1)[:, -1]).numpy()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("kind", ["ffn_out", "mhsa_out", "layer_out", "ffn_neurons"])
def test_exchanged_values_are_those_of_full_passes(family, kind):
    vlm = VLM(*tiny.FAMILIES[family](), name=family)
    pairs = as_pairs()
    attacks, benign = [pair.attack for pair in pairs], [pair.benign for pair in pairs]
    mediators = [(Site(0, kind),), tuple(Site(layer, kind) for layer in (1, 2, 3))]
    measure = first_token(refusal_log_odds(vlm))
    (found,) = exchange(vlm, pairs, mediators, [measure], FAST)
    np.testing.assert_allclose(found.clean, log_odds(vlm, benign), atol=1e-4)
    np.testing.assert_allclose(found.attacked, log_odds(vlm, attacks), atol=1e-4)
    for row, sites in enumerate(mediators):
        for given, taken, values in (
            (benign, attacks, found.noised),
            (attacks, benign, found.denoised),
        ):
            with read(vlm, sites) as recorder:
                vlm.forward(vlm.batch(taken))
            with ablate(vlm, sites, "paired", donors=recorder):
                np.testing.assert_allclose(values[row], log_odds(vlm, given), atol=1e-4)


@pytest.mark.parametrize("forced", [False, True])
def test_the_identity_holds(vlm, forced):
    measures = [refusal_contrast(vlm, "Sorry, no.", "Sure, here is how.")] if forced else []
    sites = [*vlm.anatomy.sites("ffn_out"), *windows("mhsa_out", tiny.LAYERS, 3)]
    counted = []
    found = site_effects(
        vlm, as_pairs(), sites, measures=measures, config=FAST, advance=counted.append
    )
    assert sum(counted) == 4 * len(sites)
    checked = [item.identity_error for item in found if item.identity_error is not None]
    assert len(checked) == FAST.check_sites and max(checked) < 1e-4
    for item in found:
        held = item.direct.rate - item.reversed_indirect.rate
        assert item.total.rate == pytest.approx(held, abs=1e-6)
        assert ("per token" in item.metric) == forced


def test_measures_that_share_passes_say_what_they_say_alone(vlm):
    forced = refusal_contrast(vlm, "Sorry, no.", "Sure, here is how.")
    first = first_token(refusal_log_odds(vlm))
    assert [len(one.parts) for one in passes([first, forced])] == [2, 1]
    mediators = [(Site(1, "ffn_out"),), (Site(2, "mhsa_out"),)]
    together = exchange(vlm, as_pairs(), mediators, [first, forced], FAST)
    for measure, found in zip((first, forced), together, strict=True):
        (alone,) = exchange(vlm, as_pairs(), mediators, [measure], FAST)
        for one, other in zip(found, alone, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_wrong_run_breaks_the_identity(monkeypatch):
    """If a patch weren't what it is taken for, the check would say so."""
    from care.diagnosis import causal_mediation as effects

    vlm = tiny.tiny_vlm()
    real = effects.Replay.activations
    monkeypatch.setattr(
        effects.Replay,
        "activations",
        lambda self, sites: {site: (2 * h, r) for site, (h, r) in real(self, sites).items()},
    )
    (found,) = site_effects(vlm, as_pairs(), [Site(1, "ffn_out")], config=FAST)
    assert found.identity_error > 1e-2


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_the_planted_site_carries_the_effect(layer):
    vlm = planted.vlm(layer, harm=0.0)
    kinds = ("ffn_out", "mhsa_out")
    sites = [site for kind in kinds for site in vlm.anatomy.sites(kind)]
    found = site_effects(vlm, planted.pairs(8), sites, config=FAST)
    best = max(found, key=lambda item: abs(item.indirect.rate))
    assert best.site == f"{layer}.ffn_out" and best.window == 1
    assert best.total.high < -1
    assert best.indirect.rate == pytest.approx(best.total.rate, rel=0.1)
    assert best.direct.rate == pytest.approx(0, abs=0.1 * abs(best.total.rate))
    assert best.noising is not None and best.denoising is not None
    assert best.noising.rate == pytest.approx(1, abs=0.1)
    assert best.denoising.rate == pytest.approx(1, abs=0.1)
    assert best.noising.low <= best.noising.rate <= best.noising.high
    assert best.aligned == 1
    others = [item for item in found if item is not best]
    assert max(abs(item.noising.rate) for item in others if item.noising) < 0.1
    for item in windows_of(vlm):
        first, last = item.site.partition(".")[0].split("-")
        inside = int(first) <= layer <= int(last)
        assert (abs(item.noising.rate) > 0.5) == inside


def windows_of(vlm):
    chosen = windows("ffn_out", tiny.LAYERS, 3)
    return site_effects(vlm, planted.pairs(8), chosen, config=FAST)


def test_direct_and_indirect_effects_can_oppose_each_other():
    """The trigger itself raises refusals, and the planted site lowers them by more."""
    vlm = planted.vlm(2)
    (found,) = site_effects(vlm, planted.pairs(8), [Site(2, "ffn_out")], config=FAST)
    assert found.direct.low > 0 > found.indirect.high
    assert found.reversed_indirect.rate == pytest.approx(
        found.direct.rate - found.total.rate, abs=1e-4
    )


def test_a_whole_residual_stream_of_aligned_pairs_carries_everything(vlm):
    prompts = [("What is it?", index) for index in range(3)]
    pairs = [
        Pair(
            Example(f"a{i}", text, (tiny.picture(i),), f"goal {i}", "malicious"),
            Example(f"b{i}", text, (tiny.picture(i + 9),)),
        )
        for text, i in prompts
    ]
    stream = Site(1, "layer_out")
    (found,) = site_effects(vlm, pairs, [stream], config=FAST)
    assert found.indirect.rate == pytest.approx(found.total.rate, abs=1e-4)
    assert found.direct.rate == pytest.approx(0, abs=1e-4) and found.aligned == 1
    config = dataclasses.replace(FAST, scopes=("decision",))
    (part,) = site_effects(vlm, pairs, [stream], config=config)
    assert abs(part.indirect.rate - part.total.rate) > 1e-3


def test_effects_of_an_attack_on_itself_are_nothing(vlm):
    pairs = [dataclasses.replace(pair, benign=pair.attack) for pair in as_pairs()]
    (found,) = site_effects(vlm, pairs, [Site(1, "ffn_out")], config=FAST)
    parts = (found.total, found.indirect, found.direct)
    assert [part.rate for part in parts] == pytest.approx([0, 0, 0], abs=1e-5)
    assert found.noising is None and found.denoising is None
    tree = json.loads(json.dumps(to_tree(found)))
    assert tree["site"] == "1.ffn_out" and tree["noising"] is None and tree["window"] == 1
    assert tree["total"]["n"] == 4
    validate(report_tree() | {"diagnosis": report_tree()["diagnosis"] | {"causal": [tree]}})


def test_memory_can_be_bounded_and_results_repeat(vlm):
    sites = [Site(2, "ffn_out"), Site(1, "layer_out")]
    one = site_effects(vlm, as_pairs(), sites, config=FAST)
    other = site_effects(
        vlm, as_pairs(), sites, config=dataclasses.replace(FAST, max_cache_bytes=20_000)
    )
    for first, second in zip(one, other, strict=True):
        assert first.indirect.rate == pytest.approx(second.indirect.rate, abs=1e-4)
    assert site_effects(vlm, as_pairs(), sites, config=FAST) == one


def test_bad_input_is_named():
    vlm = tiny.tiny_vlm()
    pairs = as_pairs()
    with pytest.raises(UsageError, match="at least one mediator"):
        site_effects(vlm, pairs, [])
    with pytest.raises(SiteError, match="does not exist"):
        site_effects(vlm, pairs, [Site(9, "ffn_out")])
    with pytest.raises(UsageError, match="at least 2 different goals, got 1 pairs"):
        site_effects(vlm, pairs[:1], [Site(1, "ffn_out")])
    for wrong in ({"batch_size": 0}, {"check_sites": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            EffectsConfig(**wrong)
    with torch.no_grad():
        vlm.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(FitError, match="aren't finite for 4 of 4 pairs"):
        site_effects(vlm, pairs, [Site(1, "ffn_out")])
