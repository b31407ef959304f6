"""The eigensolver, the fit, the choice of rank and the controls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh

from care.defenses.repair.eigensolver import benign_solve, dense_eigh, generalized_eigh
from care.defenses.repair.permutation_test import permuted_maxima
from care.defenses.repair.subspace import (
    Subspace,
    SubspaceConfig,
    Target,
    difference_of_means,
    fit_subspace,
    orthonormal,
    permutation_null,
    principal_angles,
    random_subspace,
)
from care.errors import FitError, UsageError
from care.statistics.moments import Moments

TARGETS: tuple[Target, ...] = ("cov", "second_moment", "mean+cov")


def _classes(
    n_m: int, n_b: int, width: int, seed: int = 0, planted: int = 0, strength: float = 4.0
) -> tuple[Moments, Moments, np.ndarray]:
    """Isotropic classes; malicious rows get extra variance in the first `planted` channels."""
    rng = np.random.default_rng(seed)
    malicious, benign = rng.standard_normal((n_m, width)), rng.standard_normal((n_b, width))
    malicious[:, :planted] += strength * rng.standard_normal((n_m, planted))
    return Moments(width).fit(malicious), Moments(width).fit(benign), np.eye(width)[:, :planted]


def _matrices(
    a: np.ndarray, b: np.ndarray, ridge: float, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    c_benign = weight * b.T @ b / len(b) + ridge * np.eye(b.shape[1])
    return a.T @ a / len(a), c_benign


@settings(max_examples=20, deadline=None)
@given(
    n_m=st.integers(1, 12),
    n_b=st.integers(1, 12),
    extra=st.integers(0, 20),
    ridge=st.sampled_from([1e-3, 0.1, 1.0]),
    weight=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 999),
)
def test_low_rank_path_equals_the_dense_one(
    n_m: int, n_b: int, extra: int, ridge: float, weight: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    width = n_m + n_b + extra
    a, b = rng.standard_normal((n_m, width)), rng.standard_normal((n_b, width))
    c_m, c_b = _matrices(a, b, ridge, weight)
    fast, dense = generalized_eigh(a, b, ridge, weight=weight), dense_eigh(c_m, c_b, max_rank=n_m)
    np.testing.assert_allclose(fast.values, dense.values, rtol=1e-8)
    assert len(fast.values) == n_m
    # The same span, the eigen-equation, and unit length under C_b.
    assert principal_angles(fast.vectors, dense.vectors).max() < 1e-6
    residual = c_m @ fast.vectors - c_b @ fast.vectors * fast.values
    assert np.abs(residual).max() < 1e-8 * fast.values[0] * max(1.0, np.abs(fast.vectors).max())
    gram = fast.vectors.T @ c_b @ fast.vectors
    np.testing.assert_allclose(gram, np.eye(n_m), atol=1e-7)


def test_many_rows_take_the_dense_path() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 10)), rng.standard_normal((50, 10))
    expected = eigh(*_matrices(a, b, 0.1, 0.9), eigvals_only=True)[::-1]
    pairs = generalized_eigh(a, b, 0.1, weight=0.9, k=3)
    np.testing.assert_allclose(pairs.values, expected, rtol=1e-10)
    assert pairs.vectors.shape == (10, 3)


def test_a_tiny_ridge_keeps_the_leading_eigenvalues() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((20, 100)), rng.standard_normal((30, 100))
    expected = eigh(*_matrices(a, b, 1e-6, 1.0), eigvals_only=True)[::-1]
    np.testing.assert_allclose(generalized_eigh(a, b, 1e-6).values, expected[:20], rtol=1e-7)


def test_diagonal_closed_form() -> None:
    # C_m = diag(9, 4, 1, 0, 0, 0) / 3 and C_b = diag(0, 4, 0, 16, 0, 0) / 2 + 0.5 I.
    a = np.diag([3.0, 2.0, 1.0, 0.0, 0.0, 0.0])[:3]
    b = np.diag([0.0, 2.0, 0.0, 4.0, 0.0, 0.0])[[1, 3]]
    pairs = generalized_eigh(a, b, 0.5)
    np.testing.assert_allclose(pairs.values, [3.0 / 0.5, (1 / 3) / 0.5, (4 / 3) / 2.5])
    expected = np.eye(6)[:, [0, 2, 1]] / np.sqrt([0.5, 0.5, 2.5])
    np.testing.assert_allclose(np.abs(pairs.vectors), expected, atol=1e-12)


def test_benign_solve_equals_the_inverse() -> None:
    rng = np.random.default_rng(0)
    b, x = rng.standard_normal((5, 12)), rng.standard_normal(12)
    c_benign = _matrices(b, b, 0.3, 0.7)[1]
    np.testing.assert_allclose(benign_solve(b, x, 0.3, 0.7), np.linalg.solve(c_benign, x))
    np.testing.assert_allclose(benign_solve(b, x, 0.3, 0.0), x / 0.3)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shrinkage", ["ledoit-wolf", "oas", 0.2])
def test_fits_from_rows_and_from_sums_agree(target: Target, shrinkage: str | float) -> None:
    malicious, benign, _ = _classes(20, 25, 60, planted=2)
    config = SubspaceConfig(target=target, shrinkage=shrinkage, rank=4)  # pyright: ignore[reportArgumentType]
    rows = fit_subspace(malicious, benign, config)
    folded = [Moments(60, max_rows=0).fit(m.rows_) for m in (malicious, benign)]
    sums = fit_subspace(folded[0], folded[1], config)
    np.testing.assert_allclose(rows.eigenvalues, sums.eigenvalues, rtol=1e-8)
    np.testing.assert_allclose(rows.basis, sums.basis, atol=1e-5)
    assert rows.condition == pytest.approx(sums.condition, rel=1e-6)
    assert rows.shrinkage == pytest.approx(sums.shrinkage, rel=1e-8)


@settings(max_examples=15, deadline=None)
@given(
    n_m=st.integers(6, 30),
    n_b=st.integers(2, 30),
    width=st.integers(6, 40),
    rank=st.integers(1, 5),
    target=st.sampled_from(TARGETS),
    seed=st.integers(0, 999),
)
def test_projector_is_idempotent_and_the_sign_is_fixed(
    n_m: int, n_b: int, width: int, rank: int, target: Target, seed: int
) -> None:
    malicious, benign, _ = _classes(n_m, n_b, width, seed)
    subspace = fit_subspace(malicious, benign, SubspaceConfig(target=target, rank=rank))
    basis = subspace.basis.astype(np.float64)
    assert subspace.basis.dtype == np.float32
    assert (subspace.rank, subspace.width) == (rank, width)
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-6)
    projector = np.eye(width) - basis @ basis.T
    np.testing.assert_allclose(projector @ projector, projector, atol=1e-6)
    largest = np.abs(basis).argmax(axis=0)
    assert (basis[largest, np.arange(rank)] > 0.0).all()
    again = fit_subspace(malicious, benign, SubspaceConfig(target=target, rank=rank))
    assert (again.basis == subspace.basis).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("n", "width"), [(120, 40), (60, 160)])
def test_planted_directions_are_found(target: Target, n: int, width: int) -> None:
    malicious, benign, planted = _classes(n, n, width, planted=2)
    subspace = fit_subspace(malicious, benign, SubspaceConfig(target=target, permutations=60))
    # `mean+cov` spends one more direction on the means, whether or not they differ.
    assert subspace.rank == 2 + (target == "mean+cov")
    assert subspace.significant in (2, subspace.rank)
    assert subspace.null_quantile is not None
    assert np.degrees(principal_angles(subspace.basis, planted).max()) < 25.0


def test_only_targets_with_the_mean_see_a_shift() -> None:
    rng = np.random.default_rng(0)
    malicious, benign = rng.standard_normal((60, 150)), rng.standard_normal((60, 150))
    malicious[:, 3] += 8.0
    moments = Moments(150).fit(malicious), Moments(150).fit(benign)
    found = {t: fit_subspace(*moments, SubspaceConfig(target=t, rank=1)) for t in TARGETS}
    assert abs(found["second_moment"].basis[3, 0]) > 0.9
    assert abs(found["mean+cov"].basis[3, 0]) > 0.9
    assert abs(found["cov"].basis[3, 0]) < 0.5
    np.testing.assert_allclose(found["cov"].mean, benign.mean(0), atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("n", "width"), [(12, 40), (30, 10)])
def test_without_a_difference_the_null_holds_its_level(target: Target, n: int, width: int) -> None:
    # With 39 relabellings the chance of a false find is exactly 2 in 40.
    config = SubspaceConfig(target=target, permutations=39)
    false_finds = 0
    for seed in range(20):
        malicious, benign, _ = _classes(n, n, width, seed)
        subspace = fit_subspace(malicious, benign, config)
        assert subspace.rank >= 1
        false_finds += bool(subspace.significant)
    assert false_finds <= 4  # more has a probability of 0.3 % under 20 draws at 0.05


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("n", "width"), [(40, 300), (700, 290)])
def test_the_null_is_the_fit_of_relabelled_rows(target: Target, n: int, width: int) -> None:
    malicious, benign, _ = _classes(n, n // 2, width, planted=1)
    assert malicious.rows_ is not None and benign.rows_ is not None
    pooled = np.concatenate([malicious.rows_, benign.rows_]) + 5.0
    order = np.random.default_rng(7).permutation(len(pooled))
    config = SubspaceConfig(target=target, rank=1, shrinkage=0.1)
    relabelled = fit_subspace(
        Moments(width).fit(pooled[order[:n]]), Moments(width).fit(pooled[order[n:]]), config
    )
    [ours] = permuted_maxima(
        pooled,
        n,
        lambda spread: (0.9, 0.1 * spread.trace / spread.width),
        target=target,
        permutations=1,
        seed=7,
    )
    expected = relabelled.eigenvalues[:2].max()
    assert ours == pytest.approx(expected, rel=1e-4)


def test_auto_rank_is_capped_and_reproducible() -> None:
    malicious, benign, _ = _classes(80, 80, 200, planted=5, strength=8.0)
    subspace = fit_subspace(malicious, benign, SubspaceConfig(max_rank=3, permutations=40))
    assert subspace.rank == 3
    assert subspace.significant == 5
    config = SubspaceConfig(permutations=40)
    null = permutation_null(malicious, benign, config)
    assert null == permutation_null(malicious, benign, config) == subspace.null_quantile


def test_release_settings_give_unit_columns_that_need_not_be_orthogonal() -> None:
    malicious, benign, _ = _classes(300, 300, 40, planted=2)
    release = SubspaceConfig(target="cov", ridge=1e-6, rank=30, orthonormalise=False)
    subspace = fit_subspace(malicious, benign, release)
    gram = subspace.basis.T @ subspace.basis
    np.testing.assert_allclose(np.diag(gram), 1.0, atol=1e-6)
    assert np.abs(gram - np.eye(30)).max() > 1e-3
    # Official recipe: inverse square root, then eigh, then unit columns.
    values, vectors = np.linalg.eigh(benign.covariance() + 1e-6 * np.eye(40))
    whitener = vectors / np.sqrt(values) @ vectors.T
    turned = whitener @ np.linalg.eigh(whitener @ malicious.covariance() @ whitener)[1][:, ::-1]
    turned /= np.linalg.norm(turned, axis=0)
    cosines = np.abs((turned[:, :30] * subspace.basis).sum(axis=0))
    np.testing.assert_allclose(cosines, 1.0, atol=1e-5)


def test_ridge_floor_and_reported_shrinkage() -> None:
    malicious, benign, _ = _classes(30, 30, 100)
    floored = fit_subspace(malicious, benign, SubspaceConfig(shrinkage=0.0, min_ridge=0.01, rank=1))
    assert floored.shrinkage == pytest.approx(0.01)
    c_benign = 0.99 * benign.covariance()
    c_benign += 0.01 * np.trace(benign.covariance()) / 100 * np.eye(100)
    assert floored.condition == pytest.approx(np.linalg.cond(c_benign), rel=1e-6)
    assert (floored.n_malicious, floored.n_benign) == (30, 30)


def test_controls() -> None:
    drawn = random_subspace(50, 4, mean=np.full(50, 2.0), seed=3)
    np.testing.assert_allclose(drawn.basis.T @ drawn.basis, np.eye(4), atol=1e-6)
    assert (drawn.basis == random_subspace(50, 4, seed=3).basis).all()
    assert drawn.mean.tolist() == [2.0] * 50
    malicious = Moments(3).fit(np.array([[3.0, 4.0, 1.0], [3.0, 4.0, -1.0]]))
    benign = Moments(3).fit(np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]))
    direction: Subspace = difference_of_means(malicious, benign)
    np.testing.assert_allclose(direction.basis[:, 0], [0.6, 0.8, 0.0], atol=1e-7)
    assert direction.eigenvalues.tolist() == [25.0]
    with pytest.raises(FitError, match="means are equal"):
        difference_of_means(benign, benign)
    with pytest.raises(UsageError, match=r"1\.\.5"):
        random_subspace(5, 6)


def test_principal_angles() -> None:
    first = np.eye(4)[:, :2]
    second = np.stack([[1, 0, 0, 0], [0, np.cos(0.3), np.sin(0.3), 0]], axis=1)
    np.testing.assert_allclose(principal_angles(first, second), [0.3, 0.0], atol=1e-7)
    with pytest.raises(UsageError, match="widths 4 and 3"):
        principal_angles(first, np.eye(3))


def test_data_that_allow_no_fit() -> None:
    malicious, benign, _ = _classes(6, 8, 30)
    with pytest.raises(FitError, match="malicious class has 0 rows"):
        fit_subspace(Moments(30), benign)
    with pytest.raises(FitError, match="benign class has 1 rows"):
        fit_subspace(malicious, Moments(30).fit(np.ones((1, 30))))
    with pytest.raises(FitError, match="width 30 and benign rows 4"):
        fit_subspace(malicious, Moments(4).fit(np.eye(4)))
    with pytest.raises(FitError, match="rank 7 is more than the 6 directions"):
        fit_subspace(malicious, benign, SubspaceConfig(rank=7))
    with pytest.raises(FitError, match="rank 6 is more than the 5 directions"):
        fit_subspace(malicious, benign, SubspaceConfig(rank=6, target="cov"))
    with pytest.raises(FitError, match="all benign rows are equal"):
        fit_subspace(malicious, Moments(30).fit(np.ones((5, 30))))
    with pytest.raises(FitError, match="don't vary"):
        constant = Moments(30).fit(np.full((5, 30), 0.1))
        fit_subspace(constant, benign, SubspaceConfig(target="cov", rank=1))
    with pytest.raises(FitError, match="relabels rows"):
        fit_subspace(Moments(30, max_rows=2).fit(malicious.rows_), benign)
    with pytest.raises(FitError, match="ridge must be positive"):
        generalized_eigh(np.eye(3), np.eye(3), 0.0)


def test_repeated_rows_lower_the_rank_that_is_allowed() -> None:
    _, benign, _ = _classes(6, 8, 30)
    repeated = Moments(30).fit(np.repeat(np.random.default_rng(0).standard_normal((2, 30)), 5, 0))
    with pytest.raises(FitError, match="rank 4 is more than"):
        fit_subspace(repeated, benign, SubspaceConfig(rank=4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "mean"},
        {"shrinkage": "lw"},
        {"shrinkage": 1.5},
        {"min_ridge": 0.0},
        {"ridge": -1.0},
        {"rank": 0},
        {"rank": "all"},
        {"max_rank": 0},
        {"permutations": 0},
        {"level": 1.0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SubspaceConfig(**wrong)  # pyright: ignore[reportArgumentType]


def test_directions_and_means_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="mean has width 3, not 4"):
        random_subspace(4, 2, mean=np.zeros(3))
    with pytest.raises(FitError, match="2 directions are dependent"):
        orthonormal(np.array([[1.0, 2.0], [2.0, 4.0], [0.0, 0.0]]))


# -- oblique ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(20, 15, 60), (60, 80, 12)], ids=["few rows", "many rows"])
@pytest.mark.parametrize("orthonormalise", [True, False])
def test_an_oblique_edit_is_the_formula_with_the_whole_covariance(
    sizes: tuple[int, int, int], orthonormalise: bool
) -> None:
    malicious, benign, _ = _classes(*sizes, planted=2)
    config = SubspaceConfig(shrinkage=0.2, rank=3, orthonormalise=orthonormalise)
    fitted = fit_subspace(malicious, benign, config, "oblique")
    plain = fit_subspace(malicious, benign, config)
    assert plain.write is None
    np.testing.assert_array_equal(fitted.basis, plain.basis)
    u, s_b = fitted.basis.astype(np.float64), benign.covariance()
    c_b = 0.8 * s_b + 0.2 * np.trace(s_b) / len(s_b) * np.eye(len(s_b))
    expected = c_b @ u @ np.linalg.inv(u.T @ c_b @ u)
    np.testing.assert_allclose(fitted.write, expected, atol=1e-4)
    np.testing.assert_allclose(u.T @ fitted.write, np.eye(3), atol=1e-5)
    # Of all edits that set the coordinates it is the least in units of C_b.
    h = np.random.default_rng(5).standard_normal(len(u))
    least = np.linalg.solve(c_b, expected @ (u.T @ h)) @ (expected @ (u.T @ h))
    other = u @ np.linalg.solve(u.T @ u, u.T @ h)
    assert least < np.linalg.solve(c_b, other) @ other


def test_a_fold_of_the_rows_leaves_the_oblique_edit() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((30, 8)), rng.standard_normal((40, 8))
    config = SubspaceConfig(rank=2)
    kept, folded = (
        fit_subspace(Moments(8, n).fit(a), Moments(8, n).fit(b), config, "oblique")
        for n in (100, 0)
    )
    np.testing.assert_allclose(kept.write, folded.write, atol=1e-5)
