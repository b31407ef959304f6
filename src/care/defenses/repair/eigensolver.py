"""The generalized eigenproblem C_m u = λ C_b u for λ > 0, exact and fast with few rows.

With fewer rows than dimensions every u with λ > 0 lies in the span of the rows, and the problem is
solved exactly there: with A the malicious and B the benign centred rows, α = 1/n_m,
β = weight/n_b and ridge g,

    M = α A C_b⁻¹ Aᵀ = (α/g) (A Aᵀ − A Bᵀ (g/β I + B Bᵀ)⁻¹ B Aᵀ)     (n_m, n_m)
    M v = λ v,   u = C_b⁻¹ Aᵀ v

costs O(D n² + n³) in place of O(D³), and never forms a (D, D) matrix, an inverse or a root. With
more rows than dimensions LAPACK's dense solver is used. Centring, shrinkage and the choice of rank
are the caller's.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
from scipy.linalg import (
    LinAlgError,
    cholesky,
    eigh,
    get_blas_funcs,
    solve,
    solve_triangular,
)

from care.errors import FitError

_gemm, _syrk = cast(Any, get_blas_funcs(("gemm", "syrk"), dtype=np.float64))


class Eigenpairs(NamedTuple):
    """Positive part of a generalized eigenproblem."""

    values: np.ndarray
    """(R,) float64, largest first, R the numerical rank of C_m."""
    vectors: np.ndarray
    """(D, k) float64 with uᵀ C_b u = 1."""


def generalized_eigh(
    malicious: np.ndarray,
    benign: np.ndarray,
    ridge: float,
    *,
    weight: float = 1.0,
    k: int | None = None,
) -> Eigenpairs:
    """Solve (AᵀA / n_m) u = λ (weight BᵀB / n_b + ridge I) u for λ > 0.

    Exact in the span of the rows while n_m + n_b <= D, dense otherwise.

    Parameters:
        malicious: A (n_m, D) float64, centred as the caller wants it.
        benign: B (n_b, D) float64, centred.
        ridge: g > 0, absolute.
        weight: 1 − ρ.
        k: how many vectors to return (the values are all returned); default all.

    Raises:
        FitError: ridge not positive, or C_m is zero.
    """
    if not ridge > 0.0:
        raise FitError(f"the ridge must be positive, got {ridge}; do the benign rows vary?")
    malicious, benign = (np.ascontiguousarray(rows, np.float64) for rows in (malicious, benign))
    n_m, width = malicious.shape
    if n_m + len(benign) <= width:
        return _dual(malicious, benign, ridge, weight, k)
    c_benign = benign.T @ benign
    c_benign *= weight / len(benign)
    c_benign[np.diag_indices(width)] += ridge
    return dense_eigh(malicious.T @ malicious / n_m, c_benign, k, max_rank=n_m)


def dense_eigh(
    c_malicious: np.ndarray,
    c_benign: np.ndarray,
    k: int | None = None,
    max_rank: int | None = None,
) -> Eigenpairs:
    """Solve C_m u = λ C_b u for λ > 0 with LAPACK; (D, D) float64, C_b positive definite.

    `max_rank` bounds the rank of C_m where the caller knows it.
    """
    try:
        values, vectors = eigh(c_malicious, c_benign, check_finite=False)
    except LinAlgError as error:
        raise FitError(
            "the benign covariance isn't positive definite; raise min_ridge or add rows"
        ) from error
    scale = float(np.trace(c_malicious)) / float(np.diagonal(c_benign).min())
    keep = _positive(values[::-1], scale, max_rank)
    return Eigenpairs(values[::-1][:keep], vectors[:, ::-1][:, : min(keep, k or keep)])


def _dual(a: np.ndarray, b: np.ndarray, ridge: float, weight: float, k: int | None) -> Eigenpairs:
    """The low-rank path; symmetric matrices are filled in their lower triangle only.

    All heavy calls go to scipy's BLAS. numpy's wheel brings a second BLAS with its own threads,
    and alternating between the two makes each wait for the other's spinning threads. A C-ordered
    (n, D) array is a Fortran-ordered (D, n) one transposed, so nothing is copied.
    """
    n_m, n_b = len(a), len(b)
    gram = _syrk(1.0, a.T, trans=1, lower=1)
    scale = float(np.trace(gram)) / (n_m * ridge)
    factor, half = np.empty((0, 0)), np.empty((0, n_m))
    if weight > 0.0:
        benign = _syrk(1.0, b.T, trans=1, lower=1)
        benign[np.diag_indices(n_b)] += ridge * n_b / weight
        factor = cholesky(benign, lower=True, overwrite_a=True, check_finite=False)
        half = _gemm(1.0, b.T, a.T, trans_a=1)
        half = solve_triangular(factor, half, lower=True, overwrite_b=True, check_finite=False)
        gram = _syrk(-1.0, half, beta=1.0, c=gram, trans=1, lower=1, overwrite_c=1)
    gram /= n_m * ridge
    values, v = eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
    keep = _positive(values[::-1], scale, n_m)
    count = min(keep, k or keep)
    v = v[:, n_m - count :]
    u = _gemm(1.0, a.T, v)
    if weight > 0.0:
        inner = _gemm(1.0, half, v)
        inner = solve_triangular(
            factor, inner, lower=True, trans=1, overwrite_b=True, check_finite=False
        )
        u = _gemm(-1.0, b.T, inner, beta=1.0, c=u, overwrite_c=1)
    u /= ridge * np.sqrt(n_m * values[n_m - count :])
    return Eigenpairs(values[::-1][:keep], u[:, ::-1])


def benign_solve(b: np.ndarray, x: np.ndarray, ridge: float, weight: float = 1.0) -> np.ndarray:
    """(weight BᵀB / n_b + ridge I)⁻¹ x for B (n_b, D) and x (D,), by Woodbury's identity."""
    if weight == 0.0:
        return x / ridge
    gram = b @ b.T
    gram[np.diag_indices(len(b))] += ridge * len(b) / weight
    return (x - b.T @ solve(gram, b @ x, assume_a="pos")) / ridge


def _positive(values: np.ndarray, scale: float, max_rank: int | None) -> int:
    """How many of the descending `values` are above the rounding error of terms of size `scale`."""
    noise = len(values) * np.finfo(np.float64).eps * scale
    keep = int((values > noise).sum())
    if keep == 0:
        raise FitError("the malicious rows don't vary, so they have no directions to fit")
    return keep if max_rank is None else min(keep, max_rank)
