"""Selection: candidates from recommended sites, screening by first tokens, the rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from care.data.example import Suite
from care.defenses.repair.channel import Channel
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.presets import PRESETS
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace
from care.evaluation.results import Results
from care.models.sites import Site
from care.pipeline import selection
from care.pipeline.selection import (
    MARGINS,
    QUANTILES,
    Candidate,
    candidates,
    choose,
    mean_rates,
    ranked,
    screen,
    shown,
)
from kit.comparisons import judged
from kit.fits import asked, material


def rates(asr: float, utility: float = 1.0, answered: float = 1.0, degenerate: float = 0.0):
    return {"asr": asr, "utility": utility, "answered": answered, "degenerate": degenerate}


def test_the_least_asr_within_the_margins_wins_and_ties_go_to_the_first():
    before = rates(0.7)
    tried = {
        "mild": rates(0.3),
        "best": rates(0.2, utility=1.0 - MARGINS["utility"]),
        "again": rates(0.2),
        "costly": rates(0.05, answered=1.0 - MARGINS["answered"] - 0.01),
        "broken": rates(0.0, degenerate=MARGINS["degenerate"] + 0.01),
    }
    assert choose(before, tried) == "best"


def test_without_one_within_the_margins_the_least_excess_wins_then_the_least_asr():
    tried = {
        "a": rates(0.1, answered=0.5),
        "b": rates(0.3, answered=0.9),
        "c": rates(0.2, answered=0.9),
    }
    assert choose(rates(0.7), tried) == "c"


def test_candidates_are_each_site_or_all_of_a_modality_at_every_quantile(vlm):
    fitter = Fitter(vlm, material(), PRESETS["corrected"])
    first, second = (Site(layer, "layer_out") for layer in (3, 1))
    tried = candidates(fitter, "corrected", {"image": [first, second], "text": [first]})
    assert len(tried) == len({c.name for c in tried}) == 3 * len(QUANTILES)
    places = [{(ch.modality, ch.site.layer) for ch in c.repair.channels} for c in tried]
    assert places == [
        *[{("image", 3), ("text", 3)}] * len(QUANTILES),
        *[{("image", 1), ("text", 3)}] * len(QUANTILES),
        *[{("image", 3), ("image", 1), ("text", 3)}] * len(QUANTILES),
    ]
    assert [c.repair.channels[0].gate.quantile for c in tried] == [*QUANTILES] * 3
    assert tried[0].name == f"image 3.layer_out, text 3.layer_out; {QUANTILES[0]:g}"
    assert tried[-1].name == (
        f"image 3.layer_out + 1.layer_out, text 3.layer_out; {QUANTILES[-1]:g}"
    )
    [only, *_] = candidates(fitter, "corrected", {"text": [second]})
    assert [channel.modality for channel in only.repair.channels] == ["text"]


def test_without_recommended_sites_those_of_the_configuration_are_tried(vlm):
    fitter = Fitter(vlm, material(12, 0), PRESETS["corrected"])
    tried = candidates(fitter, "corrected", {})
    assert {channel.modality for c in tried for channel in c.repair.channels} == {"image"}
    assert len(tried) == len(QUANTILES)


def test_a_preset_without_a_gate_has_one_candidate(vlm):
    config = PRESETS["paper"]
    small = replace(config, subspace=replace(config.subspace, rank=2))
    [only] = candidates(Fitter(vlm, material(), small), "paper", {})
    assert only.name == "paper"


def test_all_candidates_are_ranked_by_the_rule():
    tried = {"costly": rates(0.1, answered=0.5), "weak": rates(0.3), "good": rates(0.2)}
    assert ranked(rates(0.7), tried) == ["good", "weak", "costly"]
    assert choose(rates(0.7), tried) == "good"


def answered(parts: dict[str, str]) -> Results:
    """Answers under one defense by role; `?` is one that couldn't be judged."""
    suites: dict[str, str] = {"attack": "attack", "utility": "utility", "over_refusal": "harmless"}
    return Results(
        judged(suites[role], role, "it", place, "r" if outcome == "?" else outcome)
        | ({"outcome": None, "error": "not English"} if outcome == "?" else {})
        for role, outcomes in parts.items()
        for place, outcome in enumerate(outcomes)
    )


def test_answers_that_cannot_be_judged_are_lost_and_such_attacks_left_out():
    found = mean_rates(answered({"attack": "hr??", "utility": "ss?", "over_refusal": "s???"}), "it")
    expected = {"asr": 0.5, "utility": 2 / 3, "answered": 0.25, "degenerate": 0.0}
    assert found == pytest.approx(expected) and shown(found) == found
    found = mean_rates(answered({"attack": "??", "utility": "??", "over_refusal": "ss"}), "it")
    assert found == {"asr": np.inf, "utility": 0.0, "answered": 1.0, "degenerate": 0.0}
    assert shown(found)["asr"] == 1.0
    assert mean_rates(answered({"utility": "s"}), "it")["asr"] == 1.0
    assert ranked(rates(0.7), {"unread": rates(np.inf), "costly": rates(1.0, answered=0.1)}) == [
        "costly",
        "unread",
    ]


@pytest.mark.parametrize("scope", ["decision", "all"])
def test_screening_counts_first_tokens_by_role(vlm, monkeypatch, scope):
    """Shares by hand, with the limit of a refusal moved between real log-odds."""
    suites = [
        Suite("one", "attack", tuple(asked("one", 6, "malicious", True, 0))),
        Suite("two", "attack", tuple(asked("two", 5, "malicious", False, 0))),
        Suite("fine", "over_refusal", tuple(asked("fine", 7, "benign", False, 0))),
    ]
    everything = [example for suite in suites for example in suite]
    middle = np.sort(vlm.refusal_log_odds(everything))[8:10].mean()
    log_odds = vlm.log_odds
    monkeypatch.setattr(vlm, "log_odds", lambda logits: log_odds(logits) - middle)
    subspace = random_subspace(vlm.anatomy.width, 20, np.full(vlm.anatomy.width, 3.0, np.float32))
    repair = Repair((Channel(Site(2, "layer_out"), "image", (scope,), subspace, 3.0),))
    counted: list[int] = []
    found = screen(
        vlm,
        [Candidate("moved", repair, Fitter(vlm, material(), PRESETS["corrected"]))],
        suites,
        batch_size=4,
        advance=counted.append,
    )
    assert sum(counted) == len(everything) and len(counted) > 3
    with repair.applied(vlm):
        now = vlm.refusal_log_odds(everything) <= 0
    before = vlm.refusal_log_odds(everything) <= 0
    assert found["moved"].pop("wins") == 1.0  # of one
    for name, row in (("none", before), ("moved", now)):
        assert found[name] == pytest.approx(
            {
                "asr": (row[:6].mean() + row[6:11].mean()) / 2,
                "answered": row[11:].mean(),
                "utility": 1.0,
                "degenerate": 0.0,
            }
        )
    assert found["none"] != found["moved"]


def test_a_candidate_that_is_the_best_on_few_goals_wins_seldom(monkeypatch):
    """By hand: of two goals with two attacks each, "all" closes both, "one" only the first."""
    suites = [
        Suite("bad", "attack", tuple(asked("bad", 4, "malicious", False, 0))),
        Suite("fine", "over_refusal", tuple(asked("fine", 2, "benign", False, 0))),
    ]
    suites[0] = replace(
        suites[0],
        examples=tuple(replace(e, goal=f"{n // 2}") for n, e in enumerate(suites[0].examples)),
    )
    suites[1] = replace(
        suites[1], examples=tuple(replace(e, goal="fine") for e in suites[1].examples)
    )
    refused = {
        "none": [0, 0, 0, 0, 0, 0],
        "one": [1, 1, 0, 0, 0, 0],
        "all": [1, 1, 1, 1, 0, 0],
        "again": [1, 1, 1, 1, 0, 0],
        "costly": [1, 1, 1, 1, 1, 0],
    }
    monkeypatch.setattr(
        selection, "refused_under", lambda *_: np.array(list(refused.values()), dtype=bool)
    )
    tried = [Candidate(name, None, None) for name in list(refused)[1:]]
    found = screen(None, tried, suites, seed=3)
    assert "wins" not in found["none"]
    wins = {name: found[name]["wins"] for name in list(refused)[1:]}
    # "one" is as good, and earlier, unless the second attacked goal is drawn: (2/3)³, of which
    # those without the first as well count as they are, and there "all" is better: (1/3)³.
    assert wins["one"] == pytest.approx((2 / 3) ** 3 - (1 / 3) ** 3, abs=0.05)
    assert wins["all"] == pytest.approx(1 - wins["one"]) and wins["again"] == wins["costly"] == 0
    assert screen(None, tried, suites, seed=3) == found != screen(None, tried, suites, seed=4)
    alone = [replace(suites[1], role="attack")]
    monkeypatch.setattr(selection, "refused_under", lambda *_: np.zeros((5, 2), dtype=bool))
    assert "wins" not in screen(None, tried, alone)["one"]
