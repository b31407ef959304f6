"""Gates: discriminants against closed forms, thresholds that hold on unseen goals, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh

from care.defenses.repair.family_subspace import Classes, pooled, unsafe_subspace
from care.defenses.repair.gate import (
    FourierFeatures,
    Gate,
    GateConfig,
    crossfit_scores,
    fit_gate,
)
from care.errors import FitError, UsageError
from care.statistics.crossfit import FamilyRows, folds_of


def rows(rng: np.random.Generator, n: int, mean: np.ndarray, goals: int = 20) -> FamilyRows:
    """n rows about `mean`; rows of one goal share an offset, as real ones do."""
    offsets = rng.standard_normal((goals, len(mean))) * 0.5
    which = np.arange(n) % goals
    x = mean + offsets[which] + rng.standard_normal((n, len(mean)))
    return FamilyRows(x.astype(np.float32), [f"goal {g}" for g in which])


def classes(seed: int = 0, width: int = 12, n: int = 200, gap: float = 6.0) -> Classes:
    rng = np.random.default_rng(seed)
    axis = np.eye(width) * gap
    return Classes(
        attacks={"first": rows(rng, n, axis[0]), "second": rows(rng, n, axis[1])},
        refused=rows(rng, n, axis[2]),
        benign={name: rows(rng, n, axis[3] * i / 4) for i, name in enumerate("abc")},
    )


def test_a_familys_mean_scores_one_and_the_backgrounds_mean_zero() -> None:
    found = classes()
    gate = fit_gate(found)
    means = [r.mean for r in found.attacks.values()]
    scores = (np.stack(means) - gate.mean) @ gate.filters
    assert np.allclose(np.diagonal(scores), 1.0, atol=1e-5)
    benign = np.mean([r.mean for r in found.benign.values()], axis=0)
    assert np.allclose(gate.mean, 0.95 * benign + 0.05 * found.refused.mean, atol=1e-5)


def test_the_discriminant_is_fishers_where_the_covariance_is_known() -> None:
    """Without shrinkage and with a diagonal covariance, u is the gap over the variances."""
    width, n = 3, 4000
    rng = np.random.default_rng(1)
    scale = np.array([1.0, 2.0, 4.0])
    gap = np.array([1.0, 1.0, 1.0])

    def draw(mean: np.ndarray) -> FamilyRows:
        return FamilyRows(
            mean + scale * rng.standard_normal((n, width)), [str(i) for i in range(n)]
        )

    zero = np.zeros(width)
    found = Classes({"a": draw(gap)}, draw(zero), {"b": draw(zero)})
    gate = fit_gate(found, GateConfig(shrinkage=1e-6, within=0.0))
    expected = gap / scale**2
    cosine = gate.filters[:, 0] @ expected / np.linalg.norm(gate.filters) / np.linalg.norm(expected)
    assert cosine > 0.995


def test_it_opens_for_attacks_on_unseen_goals_and_stays_shut_for_benign_ones() -> None:
    gate = fit_gate(classes(0, gap=8.0), GateConfig(quantile=0.99))
    rng = np.random.default_rng(5)
    axis = np.eye(12) * 8.0
    assert np.median(gate.openness(rows(rng, 200, axis[0]).x)) == 1.0
    assert np.median(gate.openness(rows(rng, 200, axis[1]).x)) == 1.0
    assert (gate.openness(rows(rng, 400, axis[3] / 4).x) > 0).mean() < 0.06


def test_cross_fitting_holds_the_share_that_in_sample_thresholds_would_exceed() -> None:
    """With as many dimensions as rows, in-sample scores flatter; cross-fitted ones don't."""
    found = classes(2, width=60, n=40, gap=2.0)
    config = GateConfig(quantile=0.95, shrinkage=0.02)
    gate = fit_gate(found, config)
    rng = np.random.default_rng(9)
    axis = np.eye(60) * 2.0
    fresh = np.concatenate([rows(rng, 1000, axis[3] * i / 4, goals=500).x for i in range(3)])
    beyond = ((fresh - gate.mean) @ gate.filters > gate.low).mean(axis=0)
    level = 1 - 0.05 / 2  # two families
    seen = np.concatenate([r.x for r in found.benign.values()])
    naive = np.quantile((seen - gate.mean) @ gate.filters, level, axis=0)
    naively = ((fresh - gate.mean) @ gate.filters > naive).mean(axis=0)
    assert (beyond < 0.05).all()
    assert (gate.openness(fresh) > 0).mean() < 0.09
    assert (naively > beyond).all()


def test_no_row_is_scored_by_discriminants_that_saw_its_group() -> None:
    """A group that lies apart is not recognised by discriminants that were fitted without it."""
    found = classes(3)
    config = GateConfig(folds=4)
    before = crossfit_scores(found, config)
    x = found.attacks["first"].x.copy()
    folds = folds_of(found.everything(), 4)
    fold = folds[0]
    x[fold == 1] += 3.0
    moved = Classes(
        {**found.attacks, "first": FamilyRows(x, found.attacks["first"].groups)},
        found.refused,
        found.benign,
    )
    after = crossfit_scores(moved, config)
    benign = len(found.attacks) + 1
    own = folds[benign]
    assert np.allclose(before[benign][own == 1], after[benign][own == 1])
    assert not np.allclose(before[benign][own == 0], after[benign][own == 0])


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(2, 6))
@settings(max_examples=50, deadline=None)
def test_a_group_has_one_fold_in_all_classes_unless_it_is_the_only_one(
    groups: list[str], folds: int
) -> None:
    parts = [groups, [*groups[::2], "z"]]
    found = folds_of([FamilyRows(np.zeros((len(part), 2)), part) for part in parts], folds)
    names: dict[str, set[int]] = {}
    for fold, part in zip(found, parts, strict=True):
        assert set(fold) <= set(range(folds))
        assert len(set(fold)) > 1 or len(fold) == 1
        if list(fold) != [row % folds for row in range(len(part))]:  # not cut by rows
            for f, group in zip(fold, part, strict=True):
                names.setdefault(group, set()).add(int(f))
    assert all(len(own) == 1 for own in names.values())


@given(st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_openness_lies_between_zero_and_one_and_grows_along_a_filter(seed: int) -> None:
    gate = fit_gate(classes(seed % 3))
    h = np.random.default_rng(seed).standard_normal((50, 12)) * 10
    opened = gate.openness(h)
    assert ((opened >= 0) & (opened <= 1)).all()
    step = gate.filters @ np.linalg.inv(gate.filters.T @ gate.filters) @ np.ones(2)
    assert (gate.openness(h + step) >= opened - 1e-6).all()


def test_bad_input_is_refused_in_a_sentence() -> None:
    good = classes()
    with pytest.raises(FitError, match="'first' has 2 activations"):
        Classes({"first": FamilyRows(np.zeros((2, 12)), ["a", "b"])}, good.refused, good.benign)
    broken = good.refused.x.copy()
    broken[0, 0] = np.nan
    with pytest.raises(FitError, match="1 of the activations of 'refused'"):
        Classes(good.attacks, FamilyRows(broken, good.refused.groups), good.benign)
    with pytest.raises(FitError, match="needs attacks"):
        Classes({}, good.refused, good.benign)
    with pytest.raises(UsageError, match="quantile"):
        GateConfig(quantile=1.0)
    gate = fit_gate(good)
    with pytest.raises(UsageError, match="low below high"):
        Gate(gate.filters, gate.mean, gate.high, gate.low)
    with pytest.raises(UsageError, match="filters"):
        Gate(gate.filters, gate.mean[:-1], gate.low, gate.high)


def test_the_unsafe_subspace_is_spanned_by_family_means_minus_refusals() -> None:
    found = classes(4, n=400)
    subspace = unsafe_subspace(found)
    gaps = np.stack([r.mean - found.refused.mean for r in found.attacks.values()], axis=1)
    inside = subspace.basis @ (subspace.basis.T @ gaps)
    assert subspace.rank == subspace.significant == 2
    assert np.allclose(inside, gaps, atol=1e-4)
    assert np.allclose(subspace.basis.T @ subspace.basis, np.eye(2), atol=1e-5)
    assert np.allclose(subspace.mean, found.refused.mean, atol=1e-5)


def test_its_oblique_form_reads_the_filters_and_writes_the_patterns() -> None:
    """u = C⁻¹ (m_f − r) of the whole covariance, and the edit C U (Uᵀ C U)⁻¹ Uᵀ."""
    found = classes(seed=3)
    parts = [r.x for r in found.everything()]
    _, covariance = pooled(parts, found, 0.1, 0.3, 0.05)
    gaps = np.stack([r.mean - found.refused.mean for r in found.attacks.values()], axis=1)
    filters = np.linalg.solve(covariance, gaps)
    expected = gaps @ np.linalg.inv(filters.T @ gaps) @ filters.T
    subspace = unsafe_subspace(found, projection="oblique")
    assert subspace.rank == 2 and subspace.write is not None
    assert np.allclose(subspace.write @ subspace.basis.T, expected, atol=1e-4)
    assert unsafe_subspace(found).write is None


def test_its_eigenvalues_are_those_of_the_generalized_problem() -> None:
    found = classes(5)
    subspace = unsafe_subspace(found, shrinkage=0.2, within=0.3, refusals=0.5)
    _, c = pooled([r.x for r in found.everything()], found, 0.2, 0.3, 0.5)
    gaps = np.stack([r.mean - found.refused.mean for r in found.attacks.values()], axis=1)
    expected = eigh(gaps @ gaps.T / 2, c, eigvals_only=True)[::-1][:2]
    assert np.allclose(subspace.eigenvalues, expected, rtol=1e-6)


def test_families_that_do_not_differ_from_refusals_stay_below_the_null() -> None:
    below = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)

        def draw(n: int, rng: np.random.Generator = rng) -> FamilyRows:
            return FamilyRows(rng.standard_normal((n, 8)), [str(i) for i in range(n)])

        found = Classes({"a": draw(30), "b": draw(50)}, draw(60), {"c": draw(60)})
        subspace = unsafe_subspace(found, permutations=100, seed=seed)
        assert subspace.rank == 1
        below += subspace.significant == 0
    assert below >= 16  # 19 expected


def test_equal_classes_and_constant_coordinates_are_refused() -> None:
    same = FamilyRows(np.eye(6), list("abcdef"))
    with pytest.raises(FitError, match="equal means"):
        unsafe_subspace(Classes({"a": same}, same, {"b": same}))
    flat = FamilyRows(np.pad(np.eye(6), ((0, 0), (0, 1))), list("abcdef"))
    with pytest.raises(FitError, match="1 of 7 coordinates never vary"):
        unsafe_subspace(Classes({"a": flat}, flat, {"b": flat}))


# -- features --------------------------------------------------------------------------------------


def test_inner_products_of_features_are_those_of_a_gaussian_kernel() -> None:
    """At the scale of the rows: s of each channel, σ² half the median squared distance."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 6)) * [1.0, 10.0, 1.0, 0.1, 2.0, 0.0] + [0, 500.0, 0, 0, 0, 3.0]
    features = FourierFeatures.drawn(x, 20_000)
    z = x[:, :5] / x[:, :5].std(axis=0)
    squared = ((z[:, None] - z[None]) ** 2).sum(-1)
    median = np.median(squared[np.triu_indices(40, 1)])
    mapped = features(x)
    np.testing.assert_allclose(mapped @ mapped.T, np.exp(-squared / median), atol=0.04)


def test_a_gate_of_features_tells_apart_what_no_line_does() -> None:
    """Attacks around benign requests on all sides have the same mean as these."""
    rng = np.random.default_rng(1)

    def ring(n: int, radius: float) -> np.ndarray:
        angle = rng.uniform(0, 2 * np.pi, n)
        x = np.column_stack([np.cos(angle), np.sin(angle), np.zeros(n), np.zeros(n)])
        return radius * x + 0.3 * rng.standard_normal((n, 4))

    def grouped(x: np.ndarray) -> FamilyRows:
        return FamilyRows(x.astype(np.float32), [f"goal {i % 50}" for i in range(len(x))])

    found = Classes(
        {"around": grouped(ring(300, 4.0))},
        grouped(ring(200, 0.5) + 5 * np.eye(4)[2]),
        {"inside": grouped(ring(300, 0.5))},
    )
    linear, nonlinear = (fit_gate(found, GateConfig(features=m)) for m in (0, 200))
    assert linear.opened["around"] < 0.3
    assert nonlinear.opened["around"] > 0.9
    assert nonlinear.opened_benign <= 0.031
    fresh = nonlinear.openness(ring(200, 4.0)), nonlinear.openness(ring(200, 0.5))
    assert (fresh[0] > 0).mean() > 0.9 and (fresh[1] > 0).mean() < 0.1
    assert (linear.width, nonlinear.width) == (4, 4)
    with pytest.raises(UsageError, match="features must be at least 0, got -1"):
        GateConfig(features=-1)
