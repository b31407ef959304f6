"""Rogan-Gladen: the closed form, coverage with the judge's own uncertainty, refusals."""

import numpy as np
import pytest

from care.errors import DataError, UsageError
from care.statistics.intervals import wilson
from care.statistics.judge_error import JudgeAccuracy, corrected_rate, rogan_gladen
from kit.refusals import refusals


def test_the_closed_form_and_its_inverse():
    for true in (0.0, 0.07, 0.5, 1.0):
        seen = 0.9 * true + 0.2 * (1 - true)
        assert rogan_gladen(seen, 0.9, 0.8) == pytest.approx(true)
    assert rogan_gladen(0.1, 0.9, 0.8) == 0.0  # fewer than the false alarms alone


def test_a_perfect_judge_on_many_labels_changes_nothing():
    flagged = np.arange(200) < 14
    found = corrected_rate(flagged, JudgeAccuracy(20000, 0, 20000, 0))
    plain = wilson(14, 200)
    assert found.rate == pytest.approx(0.07)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.02)


def test_few_labels_widen_the_interval():
    flagged = np.arange(200) < 60
    many = corrected_rate(flagged, JudgeAccuracy(900, 100, 900, 100))
    few = corrected_rate(flagged, JudgeAccuracy(27, 3, 27, 3))
    assert few.rate == pytest.approx(many.rate) == pytest.approx(0.25)
    assert few.high - few.low > 1.3 * (many.high - many.low)


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(2)
    se, sp, true, hits, plain_hits = 0.85, 0.9, 0.2, 0, 0
    for seed in range(120):
        a, b = rng.binomial(60, se), rng.binomial(60, sp)
        accuracy = JudgeAccuracy(a, 60 - a, b, 60 - b)
        harmful = rng.random(150) < true
        flagged = np.where(harmful, rng.random(150) < se, rng.random(150) > sp)
        found = corrected_rate(flagged, accuracy, seed=seed)
        hits += found.low <= true <= found.high
        plain = wilson(int(flagged.sum()), 150)
        plain_hits += plain.low <= true <= plain.high
    assert hits >= 0.9 * 120
    assert plain_hits < 0.9 * 120  # uncorrected, the judge's errors are outside of the interval


def test_goals_are_resampled_whole():
    flagged = np.repeat(np.arange(20) < 6, 10)
    goals = np.repeat(np.arange(20), 10)
    accuracy = JudgeAccuracy(95, 5, 95, 5)
    aware, naive = corrected_rate(flagged, accuracy, goals), corrected_rate(flagged, accuracy)
    assert aware.high - aware.low > 2 * (naive.high - naive.low)


def test_all_or_none_flagged_still_has_an_interval():
    accuracy = JudgeAccuracy(95, 5, 95, 5)
    none = corrected_rate(np.zeros(80, bool), accuracy)
    assert none.rate == 0.0 and none.low == 0.0 and 0.0 < none.high < 0.08
    assert corrected_rate(np.ones(80, bool), accuracy).rate == 1.0


def test_counts_from_decisions():
    found = JudgeAccuracy.of([1, 0, 0, 1, 1], [1, 1, 0, 0, 1])
    assert vars(found) == {
        "true_positives": 2, "false_negatives": 1, "true_negatives": 1, "false_positives": 1,
    }  # fmt: skip
    assert found.sensitivity.rate == pytest.approx(2 / 3) and found.specificity.rate == 0.5


test_what_can_not_be_corrected_is_refused = refusals(
    (DataError, "no better than chance", lambda: rogan_gladen(0.3, 0.5, 0.5)),
    (DataError, "both kinds, got 0 harmful", lambda: JudgeAccuracy(0, 0, 5, 5)),
    (DataError, "label more", lambda: corrected_rate([1, 0], JudgeAccuracy(3, 2, 3, 2))),
    (UsageError, "negative", lambda: JudgeAccuracy(-1, 2, 3, 4)),
    (UsageError, "at least one answer", lambda: corrected_rate([], JudgeAccuracy(9, 1, 9, 1))),
    (UsageError, "labels", lambda: JudgeAccuracy.of([1], [1, 0])),
)
