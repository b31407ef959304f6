"""Diagnosis: replays equal full passes, a planted site is found, broken text is no finding."""

import dataclasses
import io
from functools import partial

import numpy as np
import pytest
import torch

from care.data.example import Example, Suite
from care.diagnosis.activation_means import BenignDonors, RoleMeans, collect, response_means
from care.diagnosis.scan import Removal, scan
from care.diagnosis.site_results import HeatCell
from care.diagnosis.site_scan import _recommend, _top, scan_sites
from care.diagnosis.site_scan_config import SiteScanConfig
from care.errors import DataError, UsageError
from care.judges.base import Verdict
from care.models.hooks import read
from care.models.sites import DECISION, Role, Site, scope_mask
from care.models.vlm import VLM
from care.report.schema import validate
from care.runs.progress import Progress
from care.statistics.sampling import SamplingSpec
from care.typed import to_tree
from kit import planted as one_neuron
from kit import tiny
from kit.reports import report_tree

EXAMPLES = tiny.mixed_examples(5)


def sites_of(found):
    """The recommended sites."""
    return [item.site for item in found.recommended]


def windows_of(found):
    """Effects of more than one layer."""
    return [item for item in found.heatmap if item.window > 1]


FAST = SiteScanConfig(sampling=SamplingSpec(resamples=400), generate_examples=4, max_new_tokens=3)
WORDS = ("wash a car", "build a house", "describe the image", "gather water", "help with soap")


# -- activations -----------------------------------------------------------------------------------


def test_means_per_role_equal_those_of_all_rows(vlm):
    site = Site(1, "mhsa_out")
    collected = collect(vlm, EXAMPLES, [site], batch_size=2)
    with read(vlm, [site, Site(3, "layer_out")]) as recorder:
        vlm.forward(vlm.batch(EXAMPLES))
    scopes = {Role.IMAGE: "image", Role.RESPONSE: "all", DECISION: "decision"}
    for row, scope in scopes.items():  # no answers here: the mean of all
        expected = recorder.rows(site, (scope,)).mean(0)
        torch.testing.assert_close(collected.means[site][row], expected, rtol=1e-4, atol=1e-5)
    h, roles = recorder[site]
    other = (roles == Role.TEXT) & ~scope_mask(roles, ("decision",))
    expected = h[other].mean(0)
    torch.testing.assert_close(collected.means[site][Role.TEXT], expected, rtol=1e-4, atol=1e-5)
    h, roles = recorder[Site(3, "layer_out")]
    for row in range(len(EXAMPLES)):
        expected = h[row][roles[row] == Role.TEXT].mean(0)
        torch.testing.assert_close(collected.pooled[3, row], expected, rtol=1e-4, atol=1e-5)
    last = collect(vlm, EXAMPLES, [], "last", 3).pooled
    torch.testing.assert_close(last[3], h[:, -1], rtol=1e-4, atol=1e-5)


def test_means_merge():
    torch.manual_seed(0)
    site, h, roles = Site(0, "ffn_out"), torch.randn(4, 6, 3), torch.randint(0, 4, (4, 6))
    whole, first, second = RoleMeans(), RoleMeans(), RoleMeans()
    whole.add(site, h, roles)
    first.add(site, h[:1], roles[:1])
    second.add(site, h[1:], roles[1:])
    first.merge(second)
    torch.testing.assert_close(first.table()[site], whole.table()[site])


def test_response_means_are_over_answer_tokens_only(vlm):
    site, answers = Site(2, "ffn_out"), ["soap and water", "", "sorry", "a house", " "]
    found = response_means(vlm, EXAMPLES, answers, [site], batch_size=2)[site]
    kept = [0, 2, 3]
    batch = vlm.batch([EXAMPLES[i] for i in kept], [answers[i] for i in kept])
    with read(vlm, [site], ("response",)) as recorder:
        vlm.forward(batch)
    torch.testing.assert_close(found, recorder.rows(site).mean(0), rtol=1e-4, atol=1e-5)
    assert response_means(vlm, EXAMPLES[:1], [""], [site]) == {}


def test_donors_are_other_benign_prompts_of_the_same_kind(vlm):
    site = Site(1, "ffn_out")
    attacks = [dataclasses.replace(e, id=f"a{e.id}", kind="malicious") for e in EXAMPLES]
    donors = BenignDonors(vlm, attacks, EXAMPLES, [site])
    everyone = [*attacks, *EXAMPLES]
    _, roles = donors(site, range(len(everyone)))
    donated = (roles == Role.IMAGE).any(1).tolist()
    assert donated == [bool(example.images) for example in everyone]
    found = scan(vlm, everyone, [Removal(site, "resample")], donors=donors, batch_size=2)
    # Nobody was given their own activations.
    assert (np.abs(found.effects[0, len(attacks) :]) > 1e-5).all()
    again = scan(vlm, everyone, [Removal(site, "resample")], donors=donors)
    np.testing.assert_allclose(found.effects, again.effects, atol=1e-4)
    with pytest.raises(UsageError, match="at least 2 benign"):
        BenignDonors(vlm, attacks, EXAMPLES[:1], [site])


# -- a planted site --------------------------------------------------------------------------------

TRIGGER = "!"


def planted(layer: int, selective: bool = True) -> VLM:
    """Only the FFN of `layer` moves the refusal log-odds, when the prompt ends with the trigger.

    The trigger's embedding has a component along u that no other token has; one neuron of the FFN
    reads u and writes a direction that lowers the logits of refusal tokens. If not `selective`,
    every token has that component.
    """
    vlm = tiny.tiny_vlm()
    # The template must not add tokens: nothing but the FFN carries the trigger anywhere.
    vlm.processor.chat_template = tiny.TEMPLATE.split("{% if add_generation_prompt")[0].replace(
        "<|end|>", ""
    )
    generator = torch.Generator().manual_seed(1)
    u = torch.nn.functional.normalize(torch.randn(tiny.WIDTH, generator=generator), dim=0)
    with torch.no_grad():
        embeddings = vlm.model.get_input_embeddings().weight
        embeddings -= embeddings @ u[:, None] * u
        trigger = vlm.tokenizer(TRIGGER, add_special_tokens=False)["input_ids"]
        rows = trigger if selective else slice(None)
        embeddings[rows] += 4 * u
        head = vlm.model.get_output_embeddings().weight
        head -= head @ u[:, None] * u
        away = head.mean(0) - head[vlm.refusal_ids].mean(0)
        away = torch.nn.functional.normalize(away - away @ u * u, dim=0)
        for block in vlm.anatomy.layers:
            block.self_attn.o_proj.weight *= 0.003
            block.mlp.down_proj.weight *= 0.003
        mlp = vlm.anatomy.layers[layer].mlp
        mlp.gate_proj.weight[0] = u
        mlp.up_proj.weight[0] = u
        mlp.down_proj.weight[:, 0] = 0.6 * away
    return vlm


def prompts(n: int = 10) -> tuple[list[Example], list[Example]]:
    attacks = [
        Example(f"a{i}", f"{WORDS[i % 5]} {i}{TRIGGER}", goal=WORDS[i % 5], kind="malicious")
        for i in range(n)
    ]
    return attacks, [Example(f"b{i}", f"{WORDS[i % 5]} {i}") for i in range(n)]


def scanned(layer: int, **changes):
    """What is found in the model with a planted site, without judged answers."""
    config = dataclasses.replace(FAST, **changes)
    return scan_sites(planted(layer), *prompts(), config=config, generate=False)


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("how", ["mean", "zero", "resample", "constant"])
def test_a_planted_site_is_found(layer, how):
    config = dataclasses.replace(FAST, intervention=how, max_attacks=10, max_benign=10)
    attacks, benign = prompts(16)  # six benign prompts are left to fit constants on
    found = scan_sites(planted(layer), attacks, benign, config=config, generate=False)
    assert sites_of(found) == [Site(layer, "ffn_out")]
    best = max(found.layers, key=lambda item: item.effect * (item.component == "ffn"))
    assert best.site == Site(layer, "ffn_out")
    assert 0 < best.low <= best.effect <= best.high
    assert best.selectivity == pytest.approx(best.effect - best.benign_effect)
    others = [abs(item.effect) for item in found.layers if item.layer != layer]
    assert best.selectivity_low > 5 * max(others)
    whole = next(i for i in found.layers if i.site == Site(layer, "layer_out"))
    assert whole.selectivity == pytest.approx(best.selectivity, rel=0.5)  # by another intervention
    assert found.recommended[0].modality == "text"
    assert str(layer) in found.verdict and "raises the refusal" in found.recommended[0].reason


def test_the_mean_of_benign_prompts_takes_all_of_the_difference_away():
    """A mean over both classes moves attacks part of the way, and benign prompts the rest."""
    vlm = one_neuron.vlm()
    site = Site(one_neuron.LAYER, "ffn_out")
    found = {}
    for reference in ("all", "benign"):
        config = dataclasses.replace(FAST, reference=reference, components=("ffn",))
        made = scan_sites(
            vlm, one_neuron.attacks(10), one_neuron.benign(10), config=config, generate=False
        )
        found[reference] = next(item for item in made.layers if item.site == site)
        words = "benign" if reference == "benign" else "attack and benign"
        assert f"its mean per position class over {words} prompts" in made.intervention
    assert found["benign"].effect > 1.3 * found["all"].effect > 0
    assert abs(found["benign"].benign_effect) < 0.1 < -found["all"].benign_effect


def test_windows_around_a_planted_site_show_it():
    found = scanned(2)
    assert len(windows_of(found)) == 3 * (tiny.LAYERS - 2)
    assert {item.window for item in windows_of(found)} == {3}
    single = next(item for item in found.layers if item.site == Site(2, "ffn_out"))
    for item in windows_of(found):
        if item.component == "ffn":  # both windows of three hold layer 2
            assert item.effect == pytest.approx(single.effect, rel=0.2)
        if item.component == "mhsa":
            assert abs(item.effect) < 0.1 * single.effect
    outside = scanned(0)
    inside, beyond = [item for item in windows_of(outside) if item.component == "ffn"]
    assert inside.layer == 1 and inside.low > 0 and beyond.layer == 2
    assert abs(beyond.effect) < 0.1 * inside.effect


def test_a_planted_ffn_matters_more_than_attention_however_it_is_matched():
    found = scanned(1)
    assert [item.matched_by for item in found.comparison] == ["kind", "norm"]
    for item in found.comparison:
        assert item.intervention == "mean" and item.survives and item.difference.low > 0
    by_norm = found.comparison[1]
    assert by_norm.ffn_norm == pytest.approx(by_norm.mhsa_norm, rel=1e-3)
    assert scanned(1, components=("mhsa", "layer")).comparison == ()


def test_the_released_operator_starts_where_it_can():
    found = scanned(1, intervention="previous-layer", components=("ffn", "mhsa"))
    assert [item.layer for item in found.layers if item.component == "ffn"] == [1, 2, 3]
    assert [item.layer for item in windows_of(found) if item.component == "ffn"] == [2]
    assert "as in the released code" in found.intervention
    assert {item.intervention for item in found.heatmap} == {"previous-layer"}
    effects = {item.site: item.effect for item in found.layers if item.component == "ffn"}
    # Removing it shows, and so does copying it into the layer after it.
    assert effects[Site(1, "ffn_out")] > 5 * abs(effects[Site(3, "ffn_out")])
    assert effects[Site(2, "ffn_out")] < -5 * abs(effects[Site(3, "ffn_out")])


def test_constants_need_examples_that_arent_scored():
    with pytest.raises(DataError, match="aren't scored, and there are 1 of those"):
        scanned(1, intervention="constant", max_benign=9)


def test_a_window_that_doesnt_fit_is_refused():
    with pytest.raises(UsageError, match="at most 4 of them, got 5"):
        scanned(1, windows=(1, 5))


def test_a_diagnosis_can_be_resumed():
    rows, again = [], []
    whole = scan_sites(planted(1), *prompts(), config=FAST, generate=False, keep=rows.append)
    half = {"done": rows[: len(rows) // 2], "keep": again.append}
    resumed = scan_sites(planted(1), *prompts(), config=FAST, generate=False, **half)
    assert resumed == whole and len(again) == len(rows) - len(rows) // 2
    assert whole.changes is not None and resumed.changes is not None
    np.testing.assert_array_equal(whole.changes.values, resumed.changes.values)
    effects = [item.effect for item in whole.changes.effects]
    attacked = whole.changes.values[:, : whole.changes.n_attacks].mean(axis=1)
    np.testing.assert_allclose(effects, attacked)
    assert whole.changes.goals[:2] == WORDS[:2] and len(whole.changes.suites) == 18


def test_a_site_that_acts_on_everything_is_no_finding():
    config = dataclasses.replace(FAST, intervention="zero")
    _, benign = prompts()
    attacks = [
        dataclasses.replace(example, id=f"a{index}", goal=example.prompt, kind="malicious")
        for index, example in enumerate(benign)
    ]
    found = scan_sites(planted(1, selective=False), attacks, benign, config=config, generate=False)
    site = next(item for item in found.layers if item.site == Site(1, "ffn_out"))
    assert site.low > 1 and site.benign_effect > 1
    assert found.recommended == () and sites_of(found) == []
    assert "No site is recommended" in found.verdict


def test_the_modality_is_where_removing_matters():
    attacks, benign = prompts()
    attacks = [
        dataclasses.replace(example, images=(tiny.picture(index),))
        for index, example in enumerate(attacks)
    ]
    found = scan_sites(planted(2), attacks, benign, config=FAST, generate=False)
    assert [item.modality for item in found.recommended] == ["text"]


# -- generated answers -----------------------------------------------------------------------------


class FakeJudge:
    """Calls the first batch of answers harmful and later ones whatever it is told."""

    def __init__(self, **later: bool) -> None:
        self.calls = 0
        self.later = later

    def __call__(self, goals, responses):
        self.calls += 1
        verdict = Verdict(refused=False, degenerate=False, on_goal=True)
        if self.calls > 1:
            verdict = dataclasses.replace(verdict, **self.later)
        return [verdict] * len(goals)


@pytest.mark.parametrize("broken", [False, True])
def test_sites_that_only_break_answers_are_turned_down(broken):
    judge = FakeJudge(degenerate=True) if broken else FakeJudge(refused=True)
    found = scan_sites(planted(1), *prompts(), config=FAST, judge=judge)
    assert judge.calls == 1 + FAST.top_sites == 1 + len(found.generated)
    for item in found.generated:
        assert item.n == 4 and sum(item.outcomes.values()) == 4
        assert item.outcomes["degenerate" if broken else "refused"] == 4
        assert item.asr_change.rate == -1
        assert item.degenerate_rise == broken
    assert sites_of(found) == ([] if broken else [Site(1, "ffn_out")])
    assert ("merely makes answers degenerate" in found.verdict) == broken
    if not broken:
        assert "ASR by -100 points" in found.recommended[0].reason


def test_answers_change_when_the_site_is_removed_while_generating():
    """The planted site is what keeps the model from opening with a refusal token."""
    vlm = planted(1)
    answers = []

    def judge(goals, responses):
        answers.append(responses)
        return [Verdict(refused=False, degenerate=False, on_goal=True) for _ in goals]

    config = dataclasses.replace(FAST, intervention="zero")
    found = scan_sites(vlm, *prompts(), config=config, judge=judge)
    assert found.generated[0].site == Site(1, "ffn_out")
    assert answers[0] != answers[1]


# -- the result ------------------------------------------------------------------------------------


def test_the_result_fits_the_report_and_repeats():
    vlm = planted(1)
    attacks, benign = prompts()
    log = io.StringIO()
    run = partial(scan_sites, vlm, config=FAST, judge=FakeJudge(refused=True))
    found = run(attacks, benign, progress=partial(Progress, stream=log))
    tree = to_tree(found)
    validate(report_tree() | {"diagnosis": tree})
    assert tree["n_layers"] == tiny.LAYERS and len(tree["layers"]) == 3 * tiny.LAYERS
    assert [item["layer"] for item in tree["separability"]] == list(range(tiny.LAYERS))
    assert set(tree["rank_correlation"]) == {"silhouette", "class_separation", "mahalanobis"}
    assert tree["recommended"][0]["site"] == "1.ffn_out"
    assert "(100%)" in log.getvalue()
    suite = Suite("attacks", "attack", tuple(attacks))
    again = scan_sites(vlm, suite, benign, config=FAST, judge=FakeJudge(refused=True))
    assert again == found


def test_words_say_what_was_done():
    found = scanned(1, intervention="skip", components=("ffn",))
    assert found.intervention.startswith("FFN or attention output set to zero; at every prompt")
    assert "on 10 attacks and 8 benign" in found.intervention
    assert "not checked on generated answers" in found.sign
    assert {item.component for item in found.layers} == {"ffn"}
    assert found.generated == ()


def test_examples_are_capped_and_bad_input_is_named():
    vlm = planted(1)
    attacks, benign = prompts()
    config = dataclasses.replace(FAST, max_attacks=4, max_benign=3, components=("ffn",))
    found = scan_sites(vlm, attacks, benign, config=config, generate=False)
    assert "on 4 attacks and 3 benign" in found.intervention
    with pytest.raises(DataError, match=r"'b0' in attacks isn't malicious"):
        scan_sites(vlm, benign, benign)
    with pytest.raises(DataError, match=r"'a0' in benign isn't benign"):
        scan_sites(vlm, attacks, attacks)
    with pytest.raises(DataError, match="benign with at least 2 different goals, got 0"):
        scan_sites(vlm, attacks, [])
    with pytest.raises(DataError, match="attacks with at least 2 different goals, got 2 examples"):
        scan_sites(vlm, [attacks[0], attacks[5]], benign)


@pytest.mark.parametrize(
    "wrong",
    [
        {"intervention": "noise"},
        {"layer_intervention": ""},
        {"components": ()},
        {"components": ("neurons",)},
        {"windows": ()},
        {"windows": (1, 2)},
        {"windows": (3,)},
        {"max_cache_bytes": -1},
        {"intervention": "paired"},
        {"layer_intervention": "previous-layer"},
        {"pooling": "max"},
        {"reference": "attacks"},
        {"max_attacks": 1},
        {"top_sites": -1},
        {"max_new_tokens": 0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        SiteScanConfig(**wrong)


def test_sites_that_only_spare_benign_prompts_dont_crowd_out_findings():
    def effect(layer, low, selectivity_low):
        values = (low + 0.1, low, low + 0.2, 0.0, selectivity_low + 0.1, selectivity_low)
        return HeatCell(layer, "ffn", *values, 1, "mean", 1.0)

    effects = [effect(0, -0.5, 2.0), effect(1, 0.3, 0.2), effect(2, 0.4, 0.3)]
    assert [item.layer for item in _top(effects, 2)] == [2, 1]


def test_a_site_is_recommended_only_at_limits_that_hold_for_all_sites():
    """Chosen as the best of many, a site needs more than its own interval."""
    options = {"component": "ffn", "benign_effect": 0.0, "selectivity": 1.0}
    options |= {"relative_norm": 1.0, "window": 1, "intervention": "mean"}
    item = HeatCell(layer=3, effect=1.0, low=0.5, high=1.5, selectivity_low=0.4, **options)
    config = SiteScanConfig()

    def recommended(low, selectivity):
        sure = dict.fromkeys([item.site, Site(1, "mhsa_out")], (low, selectivity))
        return _recommend([item], sure, {item.site: "text"}, None, config)

    chosen, _ = recommended(0.2, 0.2)
    assert [one.site for one in chosen] == [item.site] and "0.20 corrected for 2 sites" in chosen[
        0
    ].reason
    for limits in ((-0.1, 0.2), (0.2, 0.05)):
        chosen, words = recommended(*limits)
        assert chosen == () and "corrected for 2 sites" in words


def test_corrected_limits_are_those_of_the_corrected_level(monkeypatch):
    from care.diagnosis import site_scan

    seen = []
    real = site_scan._recommend

    def look(top, sure, *rest):
        seen.append((top, sure))
        return real(top, sure, *rest)

    monkeypatch.setattr(site_scan, "_recommend", look)
    found = scanned(1)
    ((top, sure),) = seen
    parts = [item for item in found.layers if item.component != "layer"]
    assert set(sure) == {item.site for item in parts} and len(top) == FAST.top_sites
    assert all(sure[item.site][0] <= item.low + 1e-9 for item in parts)
    wider = [sure[item.site][1] < item.selectivity_low - 1e-9 for item in parts]
    assert sum(wider) > len(parts) / 2
