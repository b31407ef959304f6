"""Faithfulness curves against closed forms on toy metrics, and properties of any metric."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care.diagnosis.faithfulness import FaithfulnessConfig, faithfulness, log_sizes, steps
from care.errors import FitError, UsageError
from care.report.schema import validate
from care.statistics.bootstrap import Resamples, bootstrap_mean
from care.statistics.sampling import SamplingSpec
from care.typed import to_tree
from kit.reports import report_tree

N = 6
FAST = FaithfulnessConfig(sizes=6, draws=4, sampling=SamplingSpec(resamples=50))


def additive(parts):
    """m = Σ of the kept units' parts, on N examples that differ by a constant factor."""
    share = np.linspace(0.5, 1.5, N)

    def metric(removed):
        return share * (sum(parts) - sum(parts[unit] for unit in removed)) + 3.0

    return metric


# -- closed forms ----------------------------------------------------------------------------------


def test_an_additive_metric_has_the_cumulative_share_as_its_curve():
    parts = [8.0, 4.0, 2.0, 1.0, 1.0]
    found = faithfulness(range(5), additive(parts), config=FAST)
    shares = {k: sum(parts[:k]) / 16 for k in range(6)}
    assert [point.size for point in found.points] == [0, *log_sizes(5, 6)] == [0, 1, 2, 3, 4, 5]
    for point in found.points:
        assert point.faithfulness.rate == pytest.approx(shares[point.size])
        assert point.completeness.rate == pytest.approx(1 - shares[point.size])
        assert point.metric.rate == pytest.approx(3 + 16 * (1 - shares[point.size]))
    assert found.scale.rate == pytest.approx(16)
    cpr = sum((shares[k] + shares[k + 1]) / 2 for k in range(5)) / 5
    assert found.cpr.rate == pytest.approx(cpr)
    assert found.cmd.rate == pytest.approx(1 - cpr)  # never above 1
    # Every example has the same shares, so goals don't matter.
    assert found.cpr.low == pytest.approx(found.cpr.high)


def test_equal_parts_are_no_better_than_random():
    found = faithfulness(range(12), additive([1.0] * 12), config=FAST)
    assert found.cpr.rate == pytest.approx(0.5) == found.random_cpr.mean
    assert found.sufficiency_advantage.rate == pytest.approx(0, abs=1e-12)
    assert found.necessity_advantage.rate == pytest.approx(0, abs=1e-12)
    for point in found.points:
        band = point.random_faithfulness
        assert band.low == pytest.approx(band.high) == pytest.approx(point.size / 12)


def test_a_single_unit_carries_all():
    """F is 1 from the first unit on; a random ranking has it at a place that is uniform."""
    n = 10
    config = FaithfulnessConfig(
        sizes=30, draws=400, sampling=SamplingSpec(resamples=20)
    )  # every size
    found = faithfulness(range(n), additive([1.0] + [0.0] * (n - 1)), config=config)
    assert found.cpr.rate == pytest.approx(1 - 1 / (2 * n))
    assert found.random_cpr.mean == pytest.approx(0.5, abs=0.05)
    assert found.sufficiency_advantage.rate == pytest.approx(found.necessity_advantage.rate)
    assert found.beaten == pytest.approx(1 - 1 / n, abs=0.06)  # ties aren't beaten


def test_p_is_that_of_a_new_draw():
    """Small for the best order, large for the worst, 1 where it can't be told."""
    rng = np.random.default_rng(4)
    parts = rng.random(8).tolist()
    config = FaithfulnessConfig(sizes=20, draws=4, sampling=SamplingSpec(resamples=10))
    order = sorted(range(8), key=lambda unit: -parts[unit])
    found = faithfulness(order, additive(parts), config=config)
    assert 0 < found.p_random < 0.2
    worst = faithfulness(order[::-1], additive(parts), config=config)
    assert worst.p_random > 0.8
    flat = faithfulness(range(8), additive([1.0] * 8), config=config)
    assert flat.p_random == 1.0
    alone = faithfulness(order, additive(parts), config=FaithfulnessConfig(draws=1))
    assert alone.p_random == 1.0


def test_redundant_units_are_each_enough_but_neither_is_needed():
    """m = max of the kept: two equal units back each other up."""
    parts = np.array([5.0, 5.0, 1.0, 0.0])

    def metric(removed):
        kept = np.delete(parts, list(removed))
        return np.full(N, kept.max(initial=0.0))

    points = faithfulness(range(4), metric, config=FAST).points
    assert points[1].faithfulness.rate == pytest.approx(1.0)
    assert points[1].completeness.rate == pytest.approx(1.0)
    assert points[2].completeness.rate == pytest.approx(0.2)


def test_units_that_work_against_each_other_leave_the_unit_interval():
    found = faithfulness(range(3), additive([3.0, 1.0, -2.0]), config=FAST)
    assert [round(point.faithfulness.rate, 9) for point in found.points] == [0, 1.5, 2, 1]
    x, y = [0, 1, 2, 3], [1.0, 0.5, 1.0, 0.0]  # |1 − F| at the sizes
    assert found.cmd.rate == pytest.approx(np.trapezoid(y, x) / 3)


def test_the_sign_of_the_metric_is_immaterial():
    parts = [3.0, 2.0, 1.0]
    plus = faithfulness(range(3), additive(parts), config=FAST)
    metric = additive(parts)
    minus = faithfulness(range(3), lambda removed: -metric(removed), config=FAST)
    assert minus.cpr == plus.cpr
    assert minus.scale.rate == -plus.scale.rate


# -- random rankings -------------------------------------------------------------------------------


def test_random_rankings_are_matched_by_weight():
    """Large units matter, small ones don't; a ranking that only finds large ones finds nothing."""
    rng = np.random.default_rng(0)
    weights = np.r_[np.full(10, 9.0), np.full(40, 1.0)] + 0.01 * rng.random(50)
    parts = weights.round().tolist()
    config = FaithfulnessConfig(sizes=8, draws=60, sampling=SamplingSpec(resamples=50))
    plain_draws = faithfulness(range(50), additive(parts), config=config)
    matched = faithfulness(range(50), additive(parts), config=config, weights=weights)
    assert plain_draws.sufficiency_advantage.low > 0.1 and not plain_draws.matched
    assert abs(matched.sufficiency_advantage.rate) < 1e-9 and matched.matched


def test_every_random_prefix_has_as_many_of_each_stratum():
    seen = []

    def metric(removed):
        seen.append(frozenset(removed))
        return np.arange(N) + len(removed)

    ranking = [7, 0, 6, 1, 5, 2, 4, 3]
    config = FaithfulnessConfig(sizes=9, draws=5, strata=2, sampling=SamplingSpec(resamples=10))
    faithfulness(ranking, metric, weights=[float(unit) for unit in ranking], config=config)
    sizes = [0, *log_sizes(8, 9)]
    ours = {frozenset(part) for k in sizes for part in (ranking[:k], ranking[k:])}
    assert ours <= set(seen) and len(set(seen)) > len(ours)
    for removed in seen:  # strata {0..3} and {4..7}; the ranking takes them in turn, heavy first
        heavy = sum(unit >= 4 for unit in removed)
        assert abs(heavy - len(removed) / 2) <= 0.5


def test_each_set_is_measured_once_and_steps_are_the_most():
    seen = []
    metric = additive([2.0, 1.0, 0.5, 0.25, 0.25])

    def counted(removed):
        seen.append(frozenset(removed))
        return metric(removed)

    advanced = []
    faithfulness(range(5), counted, config=FAST, advance=advanced.append)
    assert len(seen) == len(set(seen)) == sum(advanced) <= steps(5, FAST)
    assert steps(5, FAST) == 2 + 2 * 4 * 5


# -- properties ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 9), seed=st.integers(0, 1000), sizes=st.integers(2, 9))
def test_curves_of_any_metric(n, seed, sizes):
    """A metric that is random for each set: ends, order and areas are still as they must."""
    salt = np.random.default_rng(seed).normal(size=(n, N))

    def metric(removed):
        key = sum(2 ** int(unit) for unit in removed)
        return 10.0 * len(removed) + np.sin(key + salt[0]) + salt[list(removed)].sum(axis=0)

    config = FaithfulnessConfig(
        sizes=sizes, draws=2, sampling=SamplingSpec(resamples=30, seed=seed)
    )
    found = faithfulness(range(n), metric, config=config)
    first, last = found.points[0], found.points[-1]
    assert (first.size, last.size) == (0, n)
    assert first.faithfulness.rate == 0.0 == pytest.approx(last.completeness.rate)
    assert first.completeness.rate == pytest.approx(1) == last.faithfulness.rate
    assert first.faithfulness.low == first.faithfulness.high == 0.0
    for point in found.points:
        for item in (point.metric, point.faithfulness, point.completeness):
            assert item.low <= item.rate <= item.high
    whole, empty = metric([]).mean(), metric(list(range(n))).mean()
    assert found.scale.rate == pytest.approx(whole - empty)
    x = [point.size / n for point in found.points]
    y = [point.faithfulness.rate for point in found.points]
    assert found.cpr.rate == pytest.approx(np.trapezoid(y, x))
    assert found.cmd.rate >= abs(1 - found.cpr.rate) - 1e-9
    assert 0 <= found.beaten <= 1
    again = faithfulness(range(n), metric, config=config)
    assert again == found


@given(n=st.integers(1, 5000), points=st.integers(2, 20))
def test_sizes_run_from_one_to_all(n, points):
    sizes = log_sizes(n, points)
    assert sizes[0] == 1 and sizes[-1] == n and len(sizes) <= points
    assert sizes == sorted(set(sizes))


# -- intervals -------------------------------------------------------------------------------------


def test_intervals_of_plain_means_are_those_of_the_bootstrap():
    rng = np.random.default_rng(2)
    values, goals = rng.normal(size=40), [f"goal {k % 8}" for k in range(40)]
    resamples = Resamples(goals, n=500, seed=3)
    ours = resamples.interval(resamples.means(values, goals), 40)
    theirs = bootstrap_mean(values, goals, n=500, seed=3)
    assert (ours.rate, ours.low, ours.high) == pytest.approx((theirs.rate, theirs.low, theirs.high))


def test_intervals_follow_goals():
    """Two examples of one goal say no more than one."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=30)

    def metric(which):
        def measured(removed):
            return (10.0 - 2.0 * len(removed)) * np.ones(len(which)) + noise[which] * (
                len(removed) == 2
            )

        return measured

    once, twice = np.arange(30), np.repeat(np.arange(30), 2)
    config = FaithfulnessConfig(sizes=5, draws=1, sampling=SamplingSpec(resamples=400))
    single = faithfulness(range(5), metric(once), once, config=config)
    doubled = faithfulness(range(5), metric(twice), twice, config=config)
    apart = faithfulness(range(5), metric(twice), config=config)
    widths = [
        item.points[2].completeness.high - item.points[2].completeness.low
        for item in (single, doubled, apart)
    ]
    assert widths[0] == pytest.approx(widths[1])
    assert widths[2] < 0.85 * widths[0]


def test_resamples_are_paired_and_may_miss_goals():
    resamples = Resamples(["a", "b", "c"], n=200)
    first = resamples.means([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]], ["a", "b", "c"])
    assert first.shape == (201, 2)
    np.testing.assert_allclose(first[:, 1], 2 * first[:, 0])
    only = resamples.means([5.0], ["a"])
    assert only[0] == 5.0 and np.isnan(only).any() and set(only[np.isfinite(only)]) == {5.0}
    interval = resamples.interval(only, 1)
    assert (interval.rate, interval.low, interval.high) == (5.0, 5.0, 5.0)
    with pytest.raises(FitError, match="undefined"):
        resamples.interval(np.full(201, math.nan), 1)
    with pytest.raises(UsageError, match="'d' isn't among"):
        resamples.means([1.0], ["d"])
    with pytest.raises(FitError, match="1 of 2 values aren't finite"):
        resamples.means([1.0, math.nan], ["a", "b"])
    with pytest.raises(UsageError, match="at least 2 different goals, got 1"):
        Resamples(["a", "a"])
    with pytest.raises(UsageError, match="level"):
        Resamples(["a", "b"], level=1.0)


# -- results and bad input -------------------------------------------------------------------------


def test_the_result_is_plain_json_that_fits_the_report():
    found = faithfulness(range(5), additive([5.0, 3, 2, 1, 1]), config=FAST)
    tree = to_tree(found)
    report = report_tree()
    report["diagnosis"]["trust"]["faithfulness"] = [tree | {"units": "FFNs", "metric": "m"}]
    validate(report)
    assert tree["n_units"] == 5 and tree["points"][0]["size"] == 0
    assert set(tree["random_cpr"]) == {"mean", "low", "high"}
    assert set(tree["cpr"]) == {"rate", "low", "high", "n"} and tree["cpr"]["n"] == N
    assert set(tree["points"][1]["random_faithfulness"]) == {"mean", "low", "high"}


def test_bad_input_is_named():
    with pytest.raises(FitError, match="undefined: the metric is 3 with all 3 units and the same"):
        faithfulness(range(3), additive([1.0, -2.0, 1.0]), config=FAST)
    with pytest.raises(UsageError, match="each once, got 3 of which 2 differ"):
        faithfulness([1, 2, 2], additive([1.0] * 3), config=FAST)
    with pytest.raises(UsageError, match="at least 2 units"):
        faithfulness([0], additive([1.0]), config=FAST)
    with pytest.raises(UsageError, match="one finite number for each of the 2 units, got 1"):
        faithfulness([0, 1], additive([1.0, 2.0]), weights=[1.0], config=FAST)
    with pytest.raises(UsageError, match="one finite number"):
        faithfulness([0, 1], additive([1.0, 2.0]), weights=[1.0, math.inf], config=FAST)
    with pytest.raises(UsageError, match=r"one value for each example, got shape \(\)"):
        faithfulness([0, 1], lambda removed: 1.0, config=FAST)
    with pytest.raises(
        UsageError, match=r"got shape \(2,\) with 1 units removed and \(1,\) before"
    ):
        faithfulness([0, 1], lambda removed: np.ones(1 + (len(removed) == 1)), config=FAST)
    with pytest.raises(FitError, match="aren't finite"):
        faithfulness([0, 1], lambda removed: np.full(3, math.nan), config=FAST)
    with pytest.raises(UsageError, match="values of shape"):
        faithfulness([0, 1], additive([1.0, 2.0]), goals=["a", "b"], config=FAST)


@pytest.mark.parametrize("wrong", [{"sizes": 1}, {"draws": 0}, {"strata": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        FaithfulnessConfig(**wrong)
