"""Paired comparisons by goal: closed forms, known tests as special cases, coverage."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import norm

from care.errors import UsageError
from care.statistics.intervals import mcnemar_exact, wilson
from care.statistics.paired import cluster_rate, non_inferior, paired_difference
from kit.refusals import refusals


def clustered(rng, goals=40, each=4, shift=0.0):
    """Outcomes that agree within a goal, before and after."""
    before, after, labels = [], [], []
    for goal in range(goals):
        p = rng.beta(0.5, 0.5)
        q = min(1.0, max(0.0, p + shift))
        before += list(rng.random(each) < p)
        after += list(rng.random(each) < q)
        labels += [goal] * each
    return np.array(before), np.array(after), np.array(labels)


def test_difference_and_robust_error_are_the_formula():
    before, after, goals = clustered(np.random.default_rng(3), goals=17, each=3)
    found = paired_difference(before, after, goals)
    d = after.astype(float) - before
    mean, n = d.mean(), len(d)
    sums = [(d[goals == g] - mean).sum() for g in range(17)]
    assert found.interval.rate == pytest.approx(mean)
    assert found.se == pytest.approx(np.sqrt(17 / 16 * sum(s**2 for s in sums)) / n)
    assert found.clusters == 17 and found.interval.n == n


def test_without_groups_the_error_is_that_of_a_mean_and_the_test_mcnemars():
    rng = np.random.default_rng(0)
    before, after = rng.random(50) < 0.6, rng.random(50) < 0.4
    found = paired_difference(before, after)
    d = after.astype(float) - before
    assert found.se == pytest.approx(d.std(ddof=1) / np.sqrt(50))
    assert found.p == pytest.approx(mcnemar_exact(before, after).p)


def test_examples_of_one_goal_are_one_observation():
    before, after = [0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0]
    tripled = paired_difference(before * 3, after * 3, list(range(6)) * 3)
    once = paired_difference(before, after)
    assert tripled.p == once.p
    assert tripled.se == pytest.approx(once.se)
    assert tripled.interval.low == pytest.approx(once.interval.low, abs=0.02)
    ignored = paired_difference(before * 3, after * 3)
    assert ignored.se < 0.7 * once.se  # what forgetting the goals would claim


def test_few_goals_are_counted_exactly():
    goals = [0, 0, 1, 1, 1, 2, 3, 3]
    before, after = [1, 1, 1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1, 0, 0]
    sums = np.array([-2, -2, 1, -1])
    flips = [abs(np.dot(signs, sums)) for signs in product((-1, 1), repeat=4)]
    wanted = np.mean([flip >= abs(sums.sum()) for flip in flips])
    assert paired_difference(before, after, goals).p == pytest.approx(wanted)


def test_many_goals_are_drawn_close_to_the_normal_limit():
    before, after, goals = clustered(np.random.default_rng(5), goals=60, shift=0.12)
    found = paired_difference(before, after, goals, seed=1)
    sums = np.bincount(goals, weights=after.astype(float) - before)
    z = (abs(sums.sum()) - 1.0) / np.sqrt((sums**2).sum())  # sums of one parity: steps of 2
    assert found.p == pytest.approx(2 * norm.sf(z), abs=0.01)
    assert paired_difference(before, after, goals, seed=1) == found


def test_no_change_is_not_certainty():
    found = paired_difference([1] * 40, [1] * 40)
    unseen = wilson(0, 40).high
    assert (found.interval.low, found.interval.high) == pytest.approx((-unseen, unseen))
    assert found.p == 1.0 and found.se == 0.0
    all_fell = paired_difference([1] * 40, [0] * 40)
    assert all_fell.interval.low == -1.0 and all_fell.interval.high == pytest.approx(unseen - 1)


def test_intervals_cover_a_clustered_difference():
    rng = np.random.default_rng(11)
    hits = ignored = 0
    for _ in range(80):
        before, after, goals = clustered(rng, goals=30, each=5)
        found = paired_difference(before, after, goals, n=300).interval
        hits += found.low <= 0.0 <= found.high
        naive = cluster_rate(before, n=300)
        aware = cluster_rate(before, goals, n=300)
        ignored += (naive.high - naive.low) < 0.75 * (aware.high - aware.low)
    assert hits >= 0.88 * 80
    assert ignored >= 0.9 * 80


def test_non_inferiority_needs_the_whole_interval():
    same = np.tile([1, 1, 1, 0], 100)
    claim = non_inferior(paired_difference(same, same), 0.02)
    assert claim.shown and claim.low > -0.02
    few = non_inferior(paired_difference(same[:40], same[:40]), 0.02)
    assert not few.shown  # 40 examples can't rule out a loss of 2 points
    worse = same.copy()
    worse[:40] = 0
    assert not non_inferior(paired_difference(same, worse), 0.02).shown


def test_rates_by_goal():
    rate = cluster_rate([1, 1, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2, 3, 3])
    assert rate.rate == 0.5 and rate.low < 0.25 and rate.high > 0.75
    none = cluster_rate([0] * 12, [0, 1, 2] * 4)
    assert (none.low, none.high) == (0.0, wilson(0, 3).high)


test_wrong_use = refusals(
    (UsageError, "one length", lambda: paired_difference([1, 0], [1])),
    (UsageError, "finite", lambda: paired_difference([1, np.nan], [1, 0])),
    (UsageError, "groups of shape", lambda: paired_difference([1, 0], [1, 0], ["a"])),
    (UsageError, "at least 2 goals", lambda: paired_difference([1, 0], [1, 0], ["a", "a"])),
    (UsageError, "2 points", lambda: non_inferior(paired_difference([1, 0], [1, 0]), 2.0)),
)


def test_many_goals_have_normal_limits(monkeypatch):
    before, after, goals = clustered(np.random.default_rng(4), goals=300, each=3, shift=0.03)
    drawn = paired_difference(before, after, goals)
    for module in ("paired", "sign_flips"):
        monkeypatch.setattr(f"care.statistics.{module}.MANY", 40)
    normal = paired_difference(before, after, goals)
    assert normal.interval.low == pytest.approx(drawn.interval.low, abs=0.004)
    assert normal.interval.high == pytest.approx(drawn.interval.high, abs=0.004)
    assert normal.p == pytest.approx(drawn.p, abs=0.05)
