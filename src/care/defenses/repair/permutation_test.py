"""Null distribution of the largest generalized eigenvalue when class labels mean nothing.

The pooled rows are relabelled at random, class sizes kept, and the largest λ of C_m u = λ C_b u is
taken each time with the same target and shrinkage rule as in the fit; the inflation of λ by few
rows and many dimensions is thereby part of the null. While n < D everything is read off one Gram
matrix of the pooled rows, so a relabelling costs O(n³) whatever D is. Rows are taken as
independent: tokens of one example have to be pooled first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from scipy.linalg import cholesky, eigvalsh, get_blas_funcs, solve_triangular
from scipy.sparse.linalg import LinearOperator, eigsh

from care.statistics.moments import Spread, spread_of_gram

Regularise = Callable[[Spread], tuple[float, float]]
"""From the benign spread to (weight, ridge) of C_b = weight S_b + ridge I."""

_DENSE_TOP = 256
"""Size up to which LAPACK beats Lanczos."""
_TOLERANCE = 1e-5
"""Relative, of the Lanczos eigenvalue; the null's own sampling error is far larger."""

(_gemm,) = cast(Any, get_blas_funcs(("gemm",), dtype=np.float64))


def permuted_maxima(
    pooled: np.ndarray,
    n_malicious: int,
    regularise: Regularise,
    *,
    target: str,
    permutations: int,
    seed: int = 0,
) -> np.ndarray:
    """Largest λ under each of `permutations` relabellings, (permutations,) float64.

    Parameters:
        pooled: rows of both classes (n, D) float64.
        n_malicious: how many rows are called malicious each time.
        regularise: the shrinkage rule.
        target: `cov`, `second_moment` or `mean+cov` (where the Fisher statistic counts too).
    """
    pooled = pooled - pooled.mean(axis=0)
    n, width = pooled.shape
    rng = np.random.default_rng(seed)
    gram = pooled @ pooled.T if n < width else None
    largest = np.empty(permutations)
    for index in range(permutations):
        order = rng.permutation(n)
        if gram is None:
            statistics = _top_of_rows(pooled[order], n_malicious, regularise, target)
        else:
            relabelled = gram[np.ix_(order, order)]
            statistics = _top_of_gram(relabelled, n_malicious, width, regularise, target)
        largest[index] = max(statistics) if target == "mean+cov" else statistics[0]
    return largest


def _top_of_gram(
    gram: np.ndarray, n_m: int, width: int, regularise: Regularise, target: str
) -> tuple[float, float]:
    """(largest λ, Fisher statistic) from the pooled Gram matrix, malicious rows first."""
    towards = gram[:, n_m:].mean(axis=1)
    gram = gram - towards[:, None] - towards[None, :] + towards[n_m:].mean()
    mm, bm, bb = gram[:n_m, :n_m], gram[n_m:, :n_m], gram[n_m:, n_m:]
    weight, ridge = regularise(spread_of_gram(bb, width))
    gap_length, gap_benign = float(mm.mean()), bm.mean(axis=1)
    if target != "second_moment":
        mm = mm - mm.mean(axis=0) - mm.mean(axis=1)[:, None] + gap_length
        bm = bm - gap_benign[:, None]
    if weight > 0.0:
        shifted = bb + np.eye(len(bb)) * (ridge * len(bb) / weight)
        factor = cholesky(shifted, lower=True, overwrite_a=True, check_finite=False)
        both = np.column_stack([bm, gap_benign])
        half = solve_triangular(factor, both, lower=True, check_finite=False)
        mm = mm - _squared(half[:, :-1])
        gap_length -= float(half[:, -1] @ half[:, -1])
    top = _largest_eigenvalue(mm.__matmul__, n_m, mm)
    return top / (n_m * ridge), gap_length / ridge


def _top_of_rows(
    rows: np.ndarray, n_m: int, regularise: Regularise, target: str
) -> tuple[float, float]:
    """(largest λ, Fisher statistic) from pooled rows (n, D), malicious rows first."""
    centre = rows[n_m:].mean(axis=0)
    a, b = rows[:n_m] - centre, rows[n_m:] - centre
    gap = a.mean(axis=0)
    if target != "second_moment":
        a = a - gap
    n_b, width = b.shape
    c_benign = b.T @ b / n_b
    lengths = np.einsum("nd,nd->n", b, b)
    frobenius = float(np.vdot(c_benign, c_benign))
    trace, fourth = float(lengths.sum()) / n_b, float(lengths @ lengths) / n_b
    weight, ridge = regularise(Spread(n_b, width, trace, frobenius, fourth))
    c_benign *= weight
    c_benign[np.diag_indices(width)] += ridge
    factor = cholesky(c_benign, lower=True, overwrite_a=True, check_finite=False)

    def whitened(x: np.ndarray) -> np.ndarray:
        outer = solve_triangular(factor, x, lower=True, trans=1, check_finite=False)
        return solve_triangular(factor, a.T @ (a @ outer), lower=True, check_finite=False)

    shift = solve_triangular(factor, gap, lower=True, check_finite=False)
    return _largest_eigenvalue(whitened, width) / n_m, float(shift @ shift)


def _squared(half: np.ndarray) -> np.ndarray:
    """halfᵀ half, by the BLAS of the calls around it (see `care.defenses.repair.eigensolver`)."""
    return _gemm(1.0, half, half, trans_a=1)


def _largest_eigenvalue(
    matvec: Callable[[np.ndarray], np.ndarray], n: int, matrix: np.ndarray | None = None
) -> float:
    """Largest eigenvalue of a symmetric (n, n) operator, densely where it is small."""
    if n <= _DENSE_TOP:
        matrix = matvec(np.eye(n)) if matrix is None else matrix
        return float(eigvalsh(matrix, subset_by_index=[n - 1, n - 1], check_finite=False)[0])
    # Lanczos from a fixed random start: a constant one can be orthogonal to the answer.
    start = np.random.default_rng(0).standard_normal(n)
    # scipy chooses the class in __new__ and infers integer defaults, which hides the signatures.
    operator = cast(Any, LinearOperator)((n, n), matvec=matvec, dtype=np.float64)
    found = cast(Any, eigsh)(
        operator, k=1, which="LA", v0=start, tol=_TOLERANCE, return_eigenvectors=False
    )
    return float(found[0])
