"""Every rule of the verdict, held and failed, on trees that differ in one figure."""

import copy

import pytest

from care.report.conclusions import RULES, Conclusions, verdict
from care.report.neuron_rules import MAX_Q
from care.report.schema import validate
from care.report.site_rules import MAX_IDENTITY_ERROR, MIN_SELECTIVITY
from care.report.trust_rules import MAX_P, MIN_RELIABILITY
from kit.reports import estimate, figures, report_tree


def about(rate, low, high):
    return {"rate": rate, "low": low, "high": high}


def rho(value, low=0.2):
    return {"rho": value, "low": min(low, value), "high": min(value + 0.1, 1.0)}


def cell(layer, component="ffn", effect=1.0, window=1, how="mean", half=0.2):
    row = {"layer": layer, "component": component, "window": window, "intervention": how}
    return row | figures(effect, half) | {"relative_norm": 0.5}


def neuron(index, exact, q=0.001, benign=0.0):
    return {
        "layer": index,
        "neuron": 7,
        "exact": exact,
        "low": exact - 0.01,
        "high": exact + 0.01,
        "estimate": exact,
        "p": q / 2,
        "q": q,
        "benign_exact": benign,
    }


def search(**parts):
    found = {
        "n_neurons": 46080,
        "spearman": rho(0.8),
        "found": [neuron(k, 0.4 - 0.02 * k) for k in range(8)],
        "controls": [neuron(10 + k, 0.01 * k, q=0.9) for k in range(8)],
    }
    return {"neurons": found | parts}


def curve(**parts):
    return {
        "units": "FFN outputs",
        "metric": "refusal log-odds",
        "scale": about(-4.0, -5.0, -3.0),
        "cpr": about(0.8, 0.7, 0.9),
        "random_cpr": {"mean": 0.5, "low": 0.4, "high": 0.6},
        "sufficiency_advantage": about(0.3, 0.2, 0.4),
        "necessity_advantage": about(0.2, 0.1, 0.3),
        "p_random": 0.01,
    } | parts


def trusting(*curves, stability=()):
    return {"trust": {"faithfulness": list(curves), "stability": list(stability)}}


def row(kind, value, low=0.2, reliability=None, name="a and the others"):
    return {
        "kind": kind,
        "name": name,
        "spearman": rho(value, low),
        "overlap": about(0.6, 0.4, 0.8),
        "top": 5,
        "chance": 0.1,
        "reliability": reliability,
    }


def causal(metric="log-odds", site="15.ffn_out", indirect=-1.0, pairs="", **parts):
    keys = ("total", "direct", "reversed_indirect")
    return (
        {"site": site, "pairs": pairs, "metric": metric, "identity_error": 1e-6}
        | {key: estimate(-1.0) for key in keys}
        | {"indirect": estimate(indirect), "noising": estimate(0.5), "denoising": estimate(0.4)}
        | parts
    )


def compared(kind=None, norm=None, survives=False):
    rows = []
    for matched, difference in (("kind", kind), ("norm", norm)):
        if difference is not None:
            rows.append(
                {"intervention": "mean", "matched_by": matched, "survives": survives}
                | {"difference": about(*difference)}
            )
    return {"comparison": rows}


def generated(high):
    change = {"rate": -0.4, "low": -0.6, "high": high}
    return {"generated": [{"site": "15.ffn_out", "asr_change": change}]}


def suppressed(after, subspace=None, chosen=((15, 3),)):
    shares = {"before": 0.7, "after": after, "subspace": subspace}
    return search(
        repair={"neurons": [list(item) for item in chosen]}
        | {
            key: None if share is None else {"not_refused": share, "benign_refused": 0.02}
            for key, share in shares.items()
        }
    )


def whole_answers(difference, within=True, **costs):
    """Two repairs, of which the neurons succeed less often by `difference` (rate, low, high)."""
    theirs = {"utility": 0.8, "answered": 0.9, "degenerate": 0.0}
    rates = {"none": 0.7, "neurons": 0.3 + difference[0], "subspace": 0.3}
    edits = [
        {"edit": edit, "asr": about(rate, 0.0, 1.0)} | theirs | (costs if edit == "neurons" else {})
        for edit, rate in rates.items()
    ]
    judged = {"neurons": 12, "within_margin": within, "edits": edits}
    tree = suppressed(0.4)
    tree["neurons"]["repair"]["judged"] = judged | {"difference": about(*difference)}
    return tree


def ways(value, low=0.2):
    found = row("intervention", value, low, name="mean and resample, 8 greatest sites and 8 others")
    return trusting(stability=[found])


def of_pairs(*ways, totals=(-1.0, 1.0)):
    """Effects on pictures and twins: the indirect ones rise over sites, or fall."""
    kinds = zip(("pictures", "twins"), ways, totals, strict=True)
    return {
        "causal": [
            causal(site=str(k), indirect=way * k, pairs=kind, total=estimate(total))
            for kind, way, total in kinds
            for k in range(5)
        ]
    }


LAYERS = range(6)
SINGLE = [cell(k, effect=float(k)) for k in LAYERS]
CLEAR, UNCLEAR = (0.3, 0.1, 0.5), (0.05, -0.1, 0.2)

# rule, tree, words of the sentence where it holds
HOLDS = [
    ("best_site_is_selective", {"layers": [cell(3)]}, "Removing 3.ffn_out raises"),
    ("best_site_is_selective", {"heatmap": [cell(3), cell(4, "mhsa", 2.0)]}, "4.mhsa_out raises"),
    (
        "ffn_outweighs_attention",
        compared(CLEAR, CLEAR),
        "FFN outputs matter more than attention outputs",
    ),
    ("ffn_outweighs_attention", compared(CLEAR, CLEAR, True), "FFN outputs matter by far more"),
    (
        "interventions_agree",
        {"heatmap": [*SINGLE, *(cell(k, effect=k * k, how="zero") for k in LAYERS)]},
        "The interventions mean and zero agree on which sites matter: ρ = 1.00 over 6.",
    ),
    (
        "interventions_agree",
        ways(0.8),
        "Two ways of removing sites agree on which sites matter: mean and resample, 8 greatest "
        "sites and 8 others, ρ = 0.80 [0.20, 0.90].",
    ),
    (
        "windows_agree",
        {"heatmap": [*SINGLE, *(cell(k, effect=k, window=3) for k in range(1, 5))]},
        "Windows of 3 layers and single layers agree on which layers matter: ρ = 1.00",
    ),
    ("answers_change", generated(-0.1), "attack success falls without 15.ffn_out"),
    ("effects_add_up", {"causal": [causal()]}, "add up (largest error 1e-06 of the total effect)"),
    ("both_directions", {"causal": [causal()]}, "15.ffn_out carries the effect both ways"),
    (
        "both_directions",
        {"causal": [causal(pairs="pictures"), causal(site="3.ffn_out", pairs="twins")]},
        "3.ffn_out carries the effect both ways (log-odds; twins)",
    ),
    (
        "metrics_agree",
        {"causal": [causal(m, str(k), -k) for m in "ab" for k in range(5)]},
        "The metrics a and b agree",
    ),
    (
        "metrics_agree",
        {"causal": [causal(m, str(k), -k, "twins") for m in "ab" for k in range(5)]},
        "The metrics a and b (twins) agree",
    ),
    (
        "pairs_agree",
        of_pairs(-1, 1),
        "The kinds of pairs pictures and twins (log-odds) agree on which sites matter: ρ = 1.00",
    ),
    (
        "separability_predicts",
        {"rank_correlation": {"silhouette": rho(0.6), "class_separation": rho(0.4)}},
        "class separation 0.40 [0.20, 0.50]",
    ),
    (
        "halves_agree",
        trusting(stability=[row("half", 0.6, reliability=rho(0.75))]),
        "Halves of the goals rank the sites alike: reliability 0.75",
    ),
    (
        "seeds_agree",
        trusting(stability=[row("seed", 0.8)]),
        "Other seeds or draws agree on which sites matter: a and the others, ρ = 0.80",
    ),
    (
        "families_agree",
        trusting(stability=[row("family", 0.9), row("family", 0.6, name="worst")]),
        "Attack families agree on which sites matter: worst, ρ = 0.60 [0.20, 0.70], the least",
    ),
    (
        "ranking_beats_random",
        trusting(curve()),
        "best FFN outputs alone keep more of the behaviour",
    ),
    ("ranking_is_needed", trusting(curve()), "takes away more of the behaviour"),
    ("neurons_matter", search(), "Of 46080 neurons, 8 of the 8 best by estimate"),
    ("neurons_beat_controls", search(), "Found neurons have larger effects than random ones"),
    ("neurons_are_selective", search(), "act on attacks more than on benign prompts"),
    ("estimate_is_exact", search(), "as exact patching does: ρ = 0.80"),
    ("neurons_repair", suppressed(0.4), "Suppressing 1 neuron lowers the share of attacks"),
    ("neurons_repair", suppressed(0.1, 0.2), "Suppressing neurons closes as much as the subspace"),
    (
        "neurons_repair",
        whole_answers((-0.1, -0.2, 0.0)),
        "In whole answers, suppressing 12 neurons does as well as the subspace repair: attack "
        "success 20% against 30%, utility 80% against 80%",
    ),
]

# rule, tree, words of the sentence where it fails
FAILS = [
    ("best_site_is_selective", {"layers": [cell(3, effect=0.1)]}, "No single FFN or attention"),
    (
        "best_site_is_selective",
        {"layers": [cell(3) | {"selectivity_low": MIN_SELECTIVITY}]},
        "3.ffn_out, is not shown to carry attacks in particular",
    ),
    (
        "ffn_outweighs_attention",
        compared(UNCLEAR, CLEAR),
        "It is not shown that FFN outputs matter more",
    ),
    ("ffn_outweighs_attention", compared(CLEAR), "was not compared at equal norm"),
    ("ffn_outweighs_attention", compared(CLEAR, UNCLEAR), "does not survive matching by norm"),
    (
        "ffn_outweighs_attention",
        compared(None, UNCLEAR),
        "It is not shown that FFN outputs matter more",
    ),
    ("ffn_outweighs_attention", compared(CLEAR, CLEAR), "not shown that FFN outputs matter by far"),
    (
        "interventions_agree",
        {"heatmap": [*SINGLE, *(cell(k, effect=-k, how="zero") for k in LAYERS)]},
        "The interventions mean and zero disagree on which sites matter: ρ = -1.00",
    ),
    ("interventions_agree", ways(0.4), "Two ways of removing sites are not shown to agree"),
    ("interventions_agree", ways(0.8, -0.1), "sites are not shown to agree on which sites matter"),
    (
        "windows_agree",
        {"heatmap": [*SINGLE, *(cell(k, effect=-k, window=3) for k in range(1, 5))]},
        "layers disagree on which layers matter: ρ = -1.00 for FFN outputs.",
    ),
    ("answers_change", generated(0.1), "is not shown to fall without any of the top sites"),
    (
        "effects_add_up",
        {"causal": [causal(), causal(identity_error=2 * MAX_IDENTITY_ERROR)]},
        "do not add up at 15.ffn_out (largest error 0.1 of",
    ),
    (
        "both_directions",
        {"causal": [causal(denoising=about(0.1, -0.1, 0.3))]},
        "is not shown to carry the effect both ways",
    ),
    (
        "both_directions",
        {"causal": [causal(denoising=None, noising=None)]},
        "The attacks are not shown to change log-odds: their total effect is -1.00",
    ),
    (
        "effects_add_up",
        {"causal": [causal(pairs="twins", identity_error=2 * MAX_IDENTITY_ERROR)]},
        "do not add up at 15.ffn_out (twins) (largest",
    ),
    (
        "metrics_agree",
        {"causal": [causal(m, str(k), s * k) for m, s in (("a", 1), ("b", -1)) for k in range(5)]},
        "The metrics a and b disagree",
    ),
    ("pairs_agree", of_pairs(1, 1), "The kinds of pairs pictures and twins (log-odds) disagree"),
    (
        "separability_predicts",
        {"rank_correlation": {"silhouette": rho(0.6), "mahalanobis": rho(0.3, -0.1)}},
        "Separability does not predict causal effect",
    ),
    (
        "halves_agree",
        trusting(stability=[row("half", 0.6, reliability=rho(MIN_RELIABILITY - 0.01))]),
        "Halves of the goals do not rank the sites alike",
    ),
    ("seeds_agree", trusting(stability=[row("seed", 0.8, -0.1)]), "draws do not agree on which"),
    (
        "families_agree",
        trusting(stability=[row("family", 0.9), row("family", 0.4)]),
        "families do not agree on which sites matter: a and the others, ρ = 0.40",
    ),
    (
        "ranking_beats_random",
        trusting(curve(sufficiency_advantage=about(0.1, -0.1, 0.3))),
        "are not shown to keep more",
    ),
    ("ranking_beats_random", trusting(curve(p_random=2 * MAX_P)), "not shown to keep more"),
    (
        "ranking_beats_random",
        trusting(curve(scale=about(-1.0, -2.0, 0.5))),
        "can't be judged: removing all of them changes refusal log-odds by 1.00 [-0.50, 2.00]",
    ),
    (
        "ranking_is_needed",
        trusting(curve(necessity_advantage=about(0.1, -0.1, 0.3))),
        "is not shown to take away more",
    ),
    (
        "neurons_matter",
        search(found=[neuron(k, 0.4, q=2 * MAX_Q) for k in range(8)]),
        "No single neuron is shown to matter: of the 8 best",
    ),
    (
        "neurons_beat_controls",
        search(controls=[neuron(10 + k, 0.4 - 0.02 * k) for k in range(8)]),
        "are not shown to have larger effects",
    ),
    ("neurons_beat_controls", search(controls=[]), "were not compared with random ones"),
    (
        "neurons_are_selective",
        search(found=[neuron(k, 0.4, benign=-0.3) for k in range(8)]),
        "act on benign prompts about as much as on attacks",
    ),
    ("estimate_is_exact", search(spearman=rho(0.3)), "disagree on neurons (ρ = 0.30"),
    ("estimate_is_exact", search(spearman=rho(0.8, -0.1)), "disagree on neurons"),
    ("neurons_repair", suppressed(0.7), "No set of neurons makes more attacks refused"),
    ("neurons_repair", suppressed(0.4, chosen=()), "No set of neurons"),
    ("neurons_repair", suppressed(0.4, 0.2), "closes less than the subspace repair: 40% of"),
    (
        "neurons_repair",
        whole_answers((0.1, -0.1, 0.2), within=False),
        "suppressing 12 neurons (beyond the margin of benign refusals) is not shown to do as well",
    ),
    (
        "neurons_repair",
        whole_answers((-0.1, -0.2, 0.0), utility=0.77),
        "is not shown to do as well as the subspace repair: attack success 20% against 30%, "
        "utility 77% against 80%",
    ),
]

BY_NAME = {rule.name: rule.findings for rule in RULES}


@pytest.mark.parametrize(("rule", "tree", "words"), HOLDS)
def test_a_rule_that_holds_says_so_with_the_figure(rule, tree, words):
    texts = [finding.text for finding in BY_NAME[rule](tree) if finding.holds]
    assert any(words in text for text in texts), texts
    assert set(texts) <= set(verdict(tree).supported)


@pytest.mark.parametrize(("rule", "tree", "words"), FAILS)
def test_a_rule_that_fails_says_what_is_not_shown(rule, tree, words):
    texts = [finding.text for finding in BY_NAME[rule](tree) if not finding.holds]
    assert any(words in text for text in texts), texts
    assert set(texts) <= set(verdict(tree).unsupported)


def test_every_rule_is_tested_both_ways():
    assert {case[0] for case in HOLDS} == {case[0] for case in FAILS} == set(BY_NAME)


def test_nothing_measured_is_untested_and_never_supported():
    empty = verdict({})
    assert empty.supported == () and len(empty.unsupported) == 1
    assert all(rule.tests in empty.unsupported[0] for rule in RULES)
    assert verdict({"heatmap": [], "causal": [], "neurons": None, "trust": None}) == empty


def test_what_was_tested_is_not_among_the_untested():
    found = verdict(search())
    assert found.unsupported[-1].startswith("Not tested here: whether a site")
    assert "exact patching of neurons" not in found.unsupported[-1]
    assert "windows of layers" in found.unsupported[-1]


def test_sentences_end_and_repeat():
    tree = report_tree()
    validate(tree)
    found = verdict(tree["diagnosis"])
    assert isinstance(found, Conclusions) and found == verdict(copy.deepcopy(tree["diagnosis"]))
    assert found.supported and found.unsupported
    for text in (*found.supported, *found.unsupported):
        assert text.endswith(".") and (text[0].isupper() or text[0].isdigit())
        assert "\n" not in text


def test_too_few_or_constant_sites_have_no_agreement():
    few = [cell(k, effect=k) for k in range(3)]
    other = [cell(k, effect=k, how="zero") for k in range(3)]
    assert BY_NAME["interventions_agree"]({"heatmap": [*few, *other]}) == []
    flat = [cell(k, effect=1.0, how="zero") for k in LAYERS]
    assert BY_NAME["interventions_agree"]({"heatmap": [*SINGLE, *flat]}) == []


def test_only_the_first_intervention_is_the_plain_scan():
    """A second way of removing sites, with larger effects, doesn't replace the first."""
    rows = [cell(2), cell(4, effect=9.0, how="zero")]
    (found,) = BY_NAME["best_site_is_selective"]({"heatmap": rows})
    assert "2.ffn_out" in found.text


def test_answers_are_compared_also_where_there_is_no_repair():
    """The set that came closest is judged, and costs that weren't measured aren't named."""
    tree = whole_answers((0.1, 0.0, 0.2), within=False, utility=None)
    tree["neurons"]["repair"]["neurons"] = []
    first, second = BY_NAME["neurons_repair"](tree)
    assert first.text.startswith("No set of neurons") and "utility" not in second.text
    assert "harmless requests answered 90% against 90%" in second.text


def test_a_second_look_counts_before_cells_of_a_heatmap():
    cells = {"heatmap": [*SINGLE, *(cell(k, effect=k, how="zero") for k in LAYERS)]}
    (found,) = BY_NAME["interventions_agree"](ways(0.4) | cells)
    assert not found.holds and "8 greatest" in found.text


def test_metrics_are_compared_on_the_same_pairs_only():
    rows = [causal("a", str(k), k, "pictures") for k in range(5)]
    rows += [causal("b", str(k), k, "twins") for k in range(5)]
    assert BY_NAME["metrics_agree"]({"causal": rows}) == []
    assert BY_NAME["pairs_agree"]({"causal": rows}) == []


def test_windows_are_compared_with_what_their_layers_do():
    """One layer carries all; windows reach it from both sides, as the middle layers' means say."""
    single = [cell(k, effect=2.0 * (k == 3)) for k in range(8)]
    wide = [cell(k, effect=2.0 * (2 <= k <= 4), window=3) for k in range(8)]
    (found,) = BY_NAME["windows_agree"]({"heatmap": [*single, *wide]})
    assert found.holds and "ρ = 1.00 for FFN" in found.text
