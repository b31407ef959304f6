"""Goals drawn with replacement: against closed forms and the normal interval."""

import numpy as np
import pytest

from care.errors import UsageError
from care.statistics.bootstrap import bootstrap_mean, bootstrap_ratio
from kit.refusals import refusals


def test_bootstrap_mean_matches_the_normal_interval():
    values = np.random.default_rng(0).normal(2.0, 3.0, 400)
    interval = bootstrap_mean(values, n=4000)
    half = 1.96 * values.std() / 20.0
    assert interval.rate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05)
    assert bootstrap_mean(values, n=4000) == interval


def test_bootstrap_over_groups_is_wider():
    effects = np.random.default_rng(1).normal(size=20)
    values, groups = np.repeat(effects, 30), np.repeat([f"goal {i}" for i in range(20)], 30)
    alone, grouped = bootstrap_mean(values), bootstrap_mean(values, groups=groups)
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)
    assert grouped.rate == alone.rate


def test_bootstrap_weights_groups_by_size():
    assert bootstrap_mean([0.0, 1.0, 1.0, 1.0], groups=[0, 1, 1, 1]).rate == 0.75


test_wrong_use = refusals(
    (UsageError, "at least 2 groups", lambda: bootstrap_mean([1.0, 2.0], groups=["a", "a"])),
    (UsageError, "1 that aren't finite", lambda: bootstrap_mean([1.0, np.nan])),
    (UsageError, "groups of shape", lambda: bootstrap_mean([1.0, 2.0], groups=[1])),
)


def test_a_ratio_is_of_means_and_its_limits_of_both():
    rng = np.random.default_rng(3)
    whole = rng.normal(5.0, 1.0, 300)
    part = 0.4 * whole + rng.normal(0.0, 0.1, 300)
    goals = np.repeat(np.arange(100), 3)
    found = bootstrap_ratio(part, whole, goals)
    assert found.rate == pytest.approx(part.mean() / whole.mean()) and found.n == 300
    # A part that moves with the whole has a ratio that hardly moves: the delta method.
    residual = np.bincount(goals, weights=part - found.rate * whole)
    half = 1.96 * np.sqrt((residual**2).sum()) / whole.sum()
    assert (found.low, found.high) == pytest.approx(
        (found.rate - half, found.rate + half), abs=1e-3
    )
    assert bootstrap_ratio(whole, whole, goals).low == pytest.approx(1.0)
