"""Agreement of effects across seeds, halves and families: scipy as the oracle, planted truths."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from care.diagnosis.reliability import (
    Effects,
    ReliabilityConfig,
    agreement,
    families,
    halves,
    overlaps,
    rank_correlations,
    spearman_brown,
)
from care.errors import UsageError
from care.report.schema import validate
from care.statistics.sampling import SamplingSpec
from care.typed import to_tree
from kit.reports import report_tree

FAST = ReliabilityConfig(top=3, splits=60, sampling=SamplingSpec(resamples=100))


def made(spread, units=20, examples=24, seed=0, means=None, kinds=None):
    """Effects with means 0, 1, … and noise; two examples a goal."""
    rng = np.random.default_rng(seed)
    means = np.arange(units, dtype=float) if means is None else np.asarray(means)
    values = means[:, None] + spread * rng.normal(size=(len(means), examples))
    goals = tuple(f"goal {k // 2}" for k in range(examples))
    return Effects(values, goals, kinds)


# -- the two figures -------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), units=st.integers(3, 30), coarse=st.booleans())
def test_rank_correlation_equals_scipy(seed, units, coarse):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 3, units))
    if coarse:
        x, y = x.round(), y.round()
    for row, ours in enumerate(rank_correlations(x, y)):
        if np.ptp(x[row]) == 0 or np.ptp(y[row]) == 0:
            assert math.isnan(ours)
        else:
            assert ours == pytest.approx(spearmanr(x[row], y[row]).statistic)


def test_overlap_counts_the_greatest():
    first = np.array([[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0, 0.0]])
    second = np.array([[5.0, 1.0, 3.0, 2.0, 4.0], [0.0, 1.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(overlaps(first, second, 3), [2 / 3, 2 / 3])
    np.testing.assert_allclose(overlaps(first, first, 2), [1, 1])
    np.testing.assert_allclose(overlaps(first, -first, 5), [1, 1])


@given(rho=st.floats(-1, 1))
def test_spearman_brown(rho):
    assert spearman_brown(rho) == pytest.approx(-spearman_brown(-rho))
    assert abs(rho) <= abs(spearman_brown(rho)) <= 1
    if rho > 0:
        assert spearman_brown(rho) == pytest.approx(2 * rho / (1 + rho))


# -- two looks -------------------------------------------------------------------------------------


def test_the_same_look_twice_agrees_fully():
    effects = made(1.0)
    found = agreement(effects, effects, "seed 0 and seed 0", config=FAST)
    assert (found.spearman.rho, found.spearman.low, found.spearman.high) == (1, 1, 1)
    assert (found.overlap.rate, found.overlap.low) == (1, 1)
    assert found.chance == 3 / 20 and found.top == 3 and found.kind == "seed"


def test_a_turned_look_disagrees_fully():
    effects = made(0.1)
    turned = Effects(-effects.values, effects.goals)
    found = agreement(effects, turned, "turned", config=FAST)
    assert found.spearman.rho == pytest.approx(-1) and found.overlap.rate == 0


def test_agreement_is_that_of_mean_effects():
    first, second = made(4.0, seed=1), made(4.0, seed=2, examples=30)
    found = agreement(first, second, "seeds", config=FAST)
    expected = spearmanr(first.values.mean(1), second.values.mean(1)).statistic
    assert found.spearman.rho == pytest.approx(expected)
    assert -1 <= found.spearman.low < expected <= found.spearman.high <= 1
    assert found.spearman.n == 24


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), spread=st.floats(0.1, 50))
def test_figures_stay_in_range_and_repeat(seed, spread):
    first, second = made(spread, units=8, seed=seed), made(spread, units=8, seed=seed + 1)
    found = agreement(first, second, "x", config=FAST)
    for item, rate, least in (
        (found.spearman, found.spearman.rho, -1),
        (found.overlap, found.overlap.rate, 0),
    ):
        assert least <= item.low <= rate <= item.high <= 1
    again = agreement(first, second, "x", config=FAST)
    assert again == found


# -- halves ----------------------------------------------------------------------------------------


def test_halves_agree_where_effects_do():
    found = halves(made(0.5), FAST)
    assert found.reliability is not None
    assert found.reliability.low > 0.98 and found.overlap.rate > 0.9 and found.kind == "half"
    assert found.reliability.rho == pytest.approx(spearman_brown(found.spearman.rho))
    assert "12 goals" in found.name


def test_halves_of_noise_do_not_agree():
    found = halves(made(1.0, means=np.zeros(40)), FAST)
    assert found.reliability is not None
    assert abs(found.spearman.rho) < 0.3 and found.reliability.low < 0
    assert found.overlap.rate < 0.4


def test_halves_keep_goals_together():
    """Effects that only depend on the goal, each goal of two equal examples: splitting examples
    would find the same goals on both sides and full agreement."""
    rng = np.random.default_rng(3)
    per_goal = rng.normal(size=(30, 12))
    values = np.repeat(per_goal, 2, axis=1)
    goals = tuple(f"goal {k // 2}" for k in range(24))
    assert abs(halves(Effects(values, goals), FAST).spearman.rho) < 0.4


def test_more_goals_are_more_reliable():
    few, many = (halves(made(20.0, examples=n), FAST).reliability for n in (8, 160))
    assert few is not None and many is not None
    assert few.rho < many.rho


# -- families --------------------------------------------------------------------------------------


def test_a_family_with_other_sites_is_seen():
    kinds = tuple(("a", "a", "b", "b", "c", "c")[k % 6] for k in range(24))
    effects = made(0.5, kinds=kinds)
    turned = effects.values.copy()
    odd = np.array(kinds) == "c"
    turned[:, odd] = -turned[:, odd]
    found = {row.name: row for row in families(Effects(turned, effects.goals, kinds), config=FAST)}
    assert set(found) == {"a and the others", "b and the others", "c and the others"}
    assert found["c and the others"].spearman.rho < -0.9
    pairs = families(Effects(turned, effects.goals, kinds), pairwise=True, config=FAST)
    rates = {row.name: row.spearman.rho for row in pairs}
    assert set(rates) == {"a and b", "a and c", "b and c"}
    assert rates["a and b"] > 0.9 and rates["a and c"] < -0.9
    assert {row.kind for row in pairs} == {"family"}


def test_two_families_are_one_pair():
    kinds = tuple("ab"[k % 2] for k in range(24))
    assert [row.name for row in families(made(0.5, kinds=kinds), config=FAST)] == ["a and b"]


# -- results and bad input -------------------------------------------------------------------------


def test_the_result_is_plain_json_that_fits_the_report():
    tree = to_tree(halves(made(0.5), FAST))
    by_kind = families(made(0.5, kinds=tuple("ab" * 12)), config=FAST)
    report = report_tree()
    report["diagnosis"]["trust"]["stability"] = [tree, *map(to_tree, by_kind)]
    validate(report)
    assert set(tree["spearman"]) == {"rho", "low", "high", "n"} == set(tree["reliability"])
    assert tree["overlap"]["rate"] <= 1 and tree["kind"] == "half"
    effects = made(1.0)
    assert agreement(effects, effects, "x", config=FAST).reliability is None


def test_bad_input_is_named():
    effects = made(1.0)
    with pytest.raises(UsageError, match="same units, got 20 and 10"):
        agreement(effects, made(1.0, units=10), "x")
    flat = Effects(np.ones((20, 24)), effects.goals)
    with pytest.raises(UsageError, match="of x is undefined: all units of one side are equal"):
        agreement(effects, flat, "x", config=FAST)
    with pytest.raises(UsageError, match="all units have the same effect"):
        halves(flat, FAST)
    with pytest.raises(UsageError, match="at least 4 different goals, got 2"):
        halves(made(1.0, examples=4))
    with pytest.raises(UsageError, match="at least 2 of them to be compared, got 0"):
        families(effects)
    kinds = ("a",) * 22 + ("b",) * 2
    with pytest.raises(UsageError, match="'b' has 1 goal"):
        families(made(1.0, kinds=kinds))
    with pytest.raises(UsageError, match="have no families"):
        effects.of_family("a")
    with pytest.raises(UsageError, match=r"at least 3 units, got shape \(2, 3\)"):
        Effects(np.ones((2, 3)), ("a", "b", "c"))
    with pytest.raises(UsageError, match="finite"):
        Effects(np.full((3, 3), math.nan), ("a", "b", "c"))
    with pytest.raises(UsageError, match="3 examples need as many goals, got 1"):
        Effects(np.ones((3, 3)), ("a",))
    with pytest.raises(UsageError, match="as many families, got 2"):
        Effects(np.ones((3, 3)), ("a", "b", "c"), ("x", "y"))


@pytest.mark.parametrize("wrong", [{"top": 0}, {"splits": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        ReliabilityConfig(**wrong)
