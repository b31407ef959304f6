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

HOLDS = {
    "best_site_is_selective": {
        "Removing 3.ffn_out raises": {"layers": [cell(3)]},
        "4.mhsa_out raises": {"heatmap": [cell(3), cell(4, "mhsa", 2.0)]},
    },
    "ffn_outweighs_attention": {
        "FFN outputs matter more than attention outputs": compared(CLEAR, CLEAR),
        "FFN outputs matter by far more": compared(CLEAR, CLEAR, True),
    },
    "interventions_agree": {
        "The interventions mean and zero agree on which sites matter: ρ = 1.00 over 6.": {
            "heatmap": [*SINGLE, *(cell(k, effect=k * k, how="zero") for k in LAYERS)]
        },
        "Two ways of removing sites agree on which sites matter: mean and resample, 8 greatest "
        "sites and 8 others, ρ = 0.80 [0.20, 0.90].": ways(0.8),
    },
    "windows_agree": {
        "Windows of 3 layers and single layers agree on which layers matter: ρ = 1.00": {
            "heatmap": [*SINGLE, *(cell(k, effect=k, window=3) for k in range(1, 5))]
        }
    },
    "answers_change": {"attack success falls without 15.ffn_out": generated(-0.1)},
    "effects_add_up": {"add up (largest error 1e-06 of the total effect)": {"causal": [causal()]}},
    "both_directions": {
        "15.ffn_out carries the effect both ways": {"causal": [causal()]},
        "3.ffn_out carries the effect both ways (log-odds; twins)": {
            "causal": [causal(pairs="pictures"), causal(site="3.ffn_out", pairs="twins")]
        },
    },
    "metrics_agree": {
        "The metrics a and b agree": {
            "causal": [causal(m, str(k), -k) for m in "ab" for k in range(5)]
        },
        "The metrics a and b (twins) agree": {
            "causal": [causal(m, str(k), -k, "twins") for m in "ab" for k in range(5)]
        },
    },
    "pairs_agree": {
        "The kinds of pairs pictures and twins (log-odds) agree on which sites matter: "
        "ρ = 1.00": of_pairs(-1, 1)
    },
    "separability_predicts": {
        "class separation 0.40 [0.20, 0.50]": {
            "rank_correlation": {"silhouette": rho(0.6), "class_separation": rho(0.4)}
        }
    },
    "halves_agree": {
        "Halves of the goals rank the sites alike: reliability 0.75": trusting(
            stability=[row("half", 0.6, reliability=rho(0.75))]
        )
    },
    "seeds_agree": {
        "Other seeds or draws agree on which sites matter: a and the others, ρ = 0.80": trusting(
            stability=[row("seed", 0.8)]
        )
    },
    "families_agree": {
        "Attack families agree on which sites matter: worst, ρ = 0.60 "
        "[0.20, 0.70], the least": trusting(
            stability=[row("family", 0.9), row("family", 0.6, name="worst")]
        )
    },
    "ranking_beats_random": {
        "best FFN outputs alone keep more of the behaviour": trusting(curve())
    },
    "ranking_is_needed": {"takes away more of the behaviour": trusting(curve())},
    "neurons_matter": {"Of 46080 neurons, 8 of the 8 best by estimate": search()},
    "neurons_beat_controls": {"Found neurons have larger effects than random ones": search()},
    "neurons_are_selective": {"act on attacks more than on benign prompts": search()},
    "estimate_is_exact": {"as exact patching does: ρ = 0.80": search()},
    "neurons_repair": {
        "Suppressing 1 neuron lowers the share of attacks": suppressed(0.4),
        "Suppressing neurons closes as much as the subspace": suppressed(0.1, 0.2),
        "In whole answers, suppressing 12 neurons does as well as the subspace repair: attack "
        "success 20% against 30%, utility 80% against 80%": whole_answers((-0.1, -0.2, 0.0)),
    },
}
"""By rule: words of its sentence where it holds, and a tree in which it does."""

FAILS = {
    "best_site_is_selective": {
        "No single FFN or attention": {"layers": [cell(3, effect=0.1)]},
        "3.ffn_out, is not shown to carry attacks in particular": {
            "layers": [cell(3) | {"selectivity_low": MIN_SELECTIVITY}]
        },
    },
    "ffn_outweighs_attention": {
        "It is not shown that FFN outputs matter more": compared(UNCLEAR, CLEAR),
        "was not compared at equal norm": compared(CLEAR),
        "does not survive matching by norm": compared(CLEAR, UNCLEAR),
        "is not shown that FFN outputs matter more": compared(None, UNCLEAR),
        "not shown that FFN outputs matter by far": compared(CLEAR, CLEAR),
    },
    "interventions_agree": {
        "The interventions mean and zero disagree on which sites matter: ρ = -1.00": {
            "heatmap": [*SINGLE, *(cell(k, effect=-k, how="zero") for k in LAYERS)]
        },
        "Two ways of removing sites are not shown to agree": ways(0.4),
        "sites are not shown to agree on which sites matter": ways(0.8, -0.1),
    },
    "windows_agree": {
        "layers disagree on which layers matter: ρ = -1.00 for FFN outputs.": {
            "heatmap": [*SINGLE, *(cell(k, effect=-k, window=3) for k in range(1, 5))]
        }
    },
    "answers_change": {"is not shown to fall without any of the top sites": generated(0.1)},
    "effects_add_up": {
        "do not add up at 15.ffn_out (largest error 0.1 of": {
            "causal": [causal(), causal(identity_error=2 * MAX_IDENTITY_ERROR)]
        },
        "do not add up at 15.ffn_out (twins) (largest": {
            "causal": [causal(pairs="twins", identity_error=2 * MAX_IDENTITY_ERROR)]
        },
    },
    "both_directions": {
        "is not shown to carry the effect both ways": {
            "causal": [causal(denoising=about(0.1, -0.1, 0.3))]
        },
        "The attacks are not shown to change log-odds: their total effect is -1.00": {
            "causal": [causal(denoising=None, noising=None)]
        },
    },
    "metrics_agree": {
        "The metrics a and b disagree": {
            "causal": [causal(m, str(k), s * k) for m, s in (("a", 1), ("b", -1)) for k in range(5)]
        }
    },
    "pairs_agree": {"The kinds of pairs pictures and twins (log-odds) disagree": of_pairs(1, 1)},
    "separability_predicts": {
        "Separability does not predict causal effect": {
            "rank_correlation": {"silhouette": rho(0.6), "mahalanobis": rho(0.3, -0.1)}
        }
    },
    "halves_agree": {
        "Halves of the goals do not rank the sites alike": trusting(
            stability=[row("half", 0.6, reliability=rho(MIN_RELIABILITY - 0.01))]
        )
    },
    "seeds_agree": {"draws do not agree on which": trusting(stability=[row("seed", 0.8, -0.1)])},
    "families_agree": {
        "families do not agree on which sites matter: a and the others, ρ = 0.40": trusting(
            stability=[row("family", 0.9), row("family", 0.4)]
        )
    },
    "ranking_beats_random": {
        "are not shown to keep more": trusting(curve(sufficiency_advantage=about(0.1, -0.1, 0.3))),
        "not shown to keep more": trusting(curve(p_random=2 * MAX_P)),
        "can't be judged: removing all of them changes refusal log-odds by "
        "1.00 [-0.50, 2.00]": trusting(curve(scale=about(-1.0, -2.0, 0.5))),
    },
    "ranking_is_needed": {
        "is not shown to take away more": trusting(curve(necessity_advantage=about(0.1, -0.1, 0.3)))
    },
    "neurons_matter": {
        "No single neuron is shown to matter: of the 8 best": search(
            found=[neuron(k, 0.4, q=2 * MAX_Q) for k in range(8)]
        )
    },
    "neurons_beat_controls": {
        "are not shown to have larger effects": search(
            controls=[neuron(10 + k, 0.4 - 0.02 * k) for k in range(8)]
        ),
        "were not compared with random ones": search(controls=[]),
    },
    "neurons_are_selective": {
        "act on benign prompts about as much as on attacks": search(
            found=[neuron(k, 0.4, benign=-0.3) for k in range(8)]
        )
    },
    "estimate_is_exact": {
        "disagree on neurons (ρ = 0.30": search(spearman=rho(0.3)),
        "disagree on neurons": search(spearman=rho(0.8, -0.1)),
    },
    "neurons_repair": {
        "No set of neurons makes more attacks refused": suppressed(0.7),
        "No set of neurons": suppressed(0.4, chosen=()),
        "closes less than the subspace repair: 40% of": suppressed(0.4, 0.2),
        "suppressing 12 neurons (beyond the margin of benign refusals) is not "
        "shown to do as well": whole_answers((0.1, -0.1, 0.2), within=False),
        "is not shown to do as well as the subspace repair: attack success 20% against 30%, "
        "utility 77% against 80%": whole_answers((-0.1, -0.2, 0.0), utility=0.77),
    },
}
"""Where it fails."""

BY_NAME = {rule.name: rule.findings for rule in RULES}


def cases(table):
    return [(rule, *case) for rule, trees in table.items() for case in trees.items()]


@pytest.mark.parametrize(("rule", "words", "tree"), cases(HOLDS))
def test_a_rule_that_holds_says_so_with_the_figure(rule, words, tree):
    texts = [finding.text for finding in BY_NAME[rule](tree) if finding.holds]
    assert any(words in text for text in texts), texts
    assert set(texts) <= set(verdict(tree).supported)


@pytest.mark.parametrize(("rule", "words", "tree"), cases(FAILS))
def test_a_rule_that_fails_says_what_is_not_shown(rule, words, tree):
    texts = [finding.text for finding in BY_NAME[rule](tree) if not finding.holds]
    assert any(words in text for text in texts), texts
    assert set(texts) <= set(verdict(tree).unsupported)


def test_every_rule_is_tested_both_ways():
    assert set(HOLDS) == set(FAILS) == set(BY_NAME)


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
