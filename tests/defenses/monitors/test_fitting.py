"""Fitting monitors on a tiny model: thresholds, choices, and what is told of them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from care.data.contamination import goal_in_text
from care.data.example import Example
from care.defenses.monitors.choosing import (
    CHOICES,
    REFUSALS,
    best_choice,
    fit_monitors,
    labelled_answer,
    labelled_request,
)
from care.defenses.monitors.features import Labelled
from care.defenses.monitors.fitting import MonitorConfig, auc, fit_monitor, stated_threshold
from care.defenses.monitors.reading import Exchange
from care.defenses.monitors.results import Choice
from care.errors import FitError, UsageError
from kit.said import HARMFUL, REFUSAL, SMALL, said

# -- thresholds ------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(-3, 3)), min_size=1, max_size=80),
    st.floats(0.01, 0.5),
)
def test_of_every_kind_at_most_the_stated_share_exceeds_the_threshold(harmless, share):
    threshold = stated_threshold(tuple(harmless), share)
    for kind in "abc":
        own = [score for name, score in harmless if name == kind]
        if len(own) >= 8:
            assert np.mean([score > threshold for score in own]) <= share
    assert threshold in [score for _, score in harmless]


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 30).round(1), rng.normal(0, 1, 40).round(1)
    pairs = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    assert auc(a, b) == pytest.approx(pairs.mean())
    assert auc(a, np.array([])) == 0.5


# -- fits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["request", "answer", "exchange"])
def test_words_that_are_told_apart_are_caught_on_others(vlm, reads):
    label = labelled_request if reads == "request" else None
    parts = [
        [label(e) if label else labelled_answer(e, a, h) for e, a, h in part]
        for part in (said(), said(start=100))
    ]
    fit = fit_monitor(vlm, reads, parts[0], parts[1], SMALL)
    monitor = fit.best.monitor(0.1)
    pooled = {trial.pooling for trial in fit.tried if trial.site is not None}
    assert pooled == {"mean", "window"} | ({"last"} if reads == "request" else set())
    assert fit.tried[0].auc > 0.95 and fit.tried[0].caught["direct"] > 0.9
    assert max(monitor.alarmed.values()) <= 0.1
    news = said(12, start=200)
    alarms = monitor.alarms(vlm, [Exchange(e, a) for e, a, _ in news])
    wanted = [e.kind == "malicious" if reads == "request" else h for e, _, h in news]
    assert (
        np.mean([(alarm is not None) == want for alarm, want in zip(alarms, wanted, strict=True)])
        > 0.7
    )


def test_without_validation_cross_fitted_scores_decide(vlm):
    labelled = [labelled_answer(*each) for each in said()]
    fit = fit_monitor(vlm, "answer", labelled, (), SMALL)
    assert set(fit.best.scores) == set(range(len(labelled)))
    assert all(each.pooling != "window" for each in fit.tried)  # a window has no such scores
    assert fit.best.monitor(0.1).alarmed.keys() == {"benign", REFUSALS}


def test_monitors_watch_requests_and_what_is_said(vlm):
    found = fit_monitors(vlm, said(), said(start=100), SMALL)
    reads = [monitor.reads for monitor in found.monitors]
    assert reads == ["request", *found.choices[0].reads, "request"]
    assert len(found.choices) == 3 and set(found.tried) == {"request", "answer", "exchange"}
    best = np.mean(list(found.choices[0].missed.values()))
    for other in found.choices[1:]:
        assert best < np.mean(list(other.missed.values())) + 0.01
    # The refusal log-odds, to which nothing is fitted, were tried where they can be read.
    assert [any(t.site is None for t in found.tried[r]) for r in ("request", "answer")] == [
        True
    ] * 2


def test_what_the_model_refuses_as_text_is_watched_beside_a_detector(vlm):
    """Its threshold is that of the harmless requests' own log-odds, at the share of each kind."""
    held = said(start=100)
    found = fit_monitors(vlm, said(), held, SMALL)
    detector, *_, odds = found.monitors
    assert detector.site is not None and odds.site is None and odds.reads == "request"
    harmless = {e.prompt: e.text_alone() for e, _, _ in held if e.kind == "benign"}
    scores = vlm.refusal_log_odds(list(harmless.values()))
    assert (scores > odds.threshold).mean() <= SMALL.share()
    assert np.isclose(scores, odds.threshold, atol=1e-4).any()
    # Where the log-odds are what is taken of requests, they stand there once.
    fits = fit_monitor(vlm, "request", *([labelled_request(e) for e, _, _ in part]
                       for part in (said(), held)), SMALL)  # fmt: skip
    assert fits.best.site is not None and fits.odds is not None and fits.odds.odds is None
    assert fits.odds.best.site is None and fits.odds.tried == fits.tried


@pytest.mark.parametrize(
    ("missed", "taken"),
    [
        ((0.10, 0.20, 0.10), 2),  # alike: what passes one may not pass the other
        ((0.10, 0.20, 0.109), 2),
        ((0.10, 0.20, 0.111), 0),  # more than a point worse
        ((0.20, 0.10, 0.18), 1),
        ((0.10, 0.105, 0.30), 0),
    ],
)
def test_both_watch_answers_where_they_miss_as_little_as_one(missed, taken):
    choices = [Choice(reads, {"direct": m}, {}) for reads, m in zip(CHOICES, missed, strict=True)]
    assert best_choice(choices) is choices[taken]


def test_no_more_answers_of_a_suite_are_fitted_on_than_asked_for(vlm):
    few = fit_monitors(vlm, said(8), said(start=100), SMALL)
    same = fit_monitors(vlm, said(8), said(start=100), replace(SMALL, most=8))
    many = fit_monitors(vlm, [*said(8)] * 3, said(start=100), replace(SMALL, most=24))
    assert few.choices == same.choices == many.choices  # copies of rows change no mean
    assert fit_monitors(vlm, said(30), said(start=100), replace(SMALL, most=8)).choices


def test_a_fit_is_the_same_every_time(vlm):
    one, other = (fit_monitors(vlm, said(), said(start=100), SMALL) for _ in range(2))
    assert one.choices == other.choices and one.tried == other.tried
    for a, b in zip(one.monitors, other.monitors, strict=True):
        assert a.threshold == b.threshold and a.site == b.site


def test_other_false_alarms_have_the_same_detectors_and_thresholds_of_their_own(vlm):
    shares = (0.1, 0.02, 0.4)
    found = fit_monitors(vlm, said(), said(start=100), SMALL, shares=shares)
    assert tuple(found.others) == shares
    own, strict, loose = found.others.values()
    for taken, same, high, low in zip(found.monitors, own, strict, loose, strict=True):
        assert {each.site for each in (same, high, low)} == {taken.site}
        assert same.threshold == taken.threshold
        assert low.threshold < taken.threshold <= high.threshold


def test_one_side_alone_is_refused(vlm):
    harmless = [labelled_answer(*each) for each in said() if not each[2]]
    with pytest.raises(FitError, match="no harmful example to choose a monitor of the answer on"):
        fit_monitor(vlm, "answer", harmless, (), SMALL)
    with pytest.raises(FitError, match="has 2 examples"):
        fit_monitor(
            vlm, "answer", [*harmless, *[labelled_answer(*each) for each in said(2)]], (), SMALL
        )


# -- labels ----------------------------------------------------------------------------------------


def test_requests_whose_goal_is_not_in_their_text_are_no_harmful_requests():
    goal, asked = "forge a passport", "Do what the picture shows."
    pictured = Example("a", asked, goal=goal, kind="malicious")
    assert not goal_in_text(goal, asked) and labelled_request(pictured) is None
    for prompt in (goal, "How would one forge a passport, please?", "Passports: forge one."):
        example = Example("a", prompt, goal=goal, kind="malicious", suite="s")
        assert labelled_request(example) == Labelled(Exchange(example), True, "s", goal)
    benign = Example("b", asked, goal="wash a car", suite="pictured")
    told = labelled_request(benign)
    assert told is not None and not told.harmful


def test_refusals_are_a_kind_of_harmless_answers():
    example = Example("a", "forge a passport", kind="malicious", suite="direct")
    assert labelled_answer(example, REFUSAL, False).kind == REFUSALS
    assert labelled_answer(example, HARMFUL, True).kind == "direct"


@pytest.mark.parametrize(
    "wrong",
    [
        {"false_alarms": 0},
        {"false_alarms": 1},
        {"shrinkage": 0},
        {"depths": ()},
        {"kinds": ()},
        {"most": 3},
        {"poolings": ("last",)},
    ],
)
def test_settings_that_make_no_monitor_are_refused(wrong):
    with pytest.raises(UsageError, match=r"must lie|at least one"):
        MonitorConfig(**wrong)
