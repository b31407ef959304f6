"""Unsafe subspaces: fitting C_m u = λ C_b u, its shrinkage, and the choice of rank.

C_m is the scatter of malicious activations, C_b the shrunk covariance of benign ones,
C_b = (1 − ρ) S_b + ρ (tr S_b / D) I. The leading u are the directions in which malicious
activations vary (or are displaced) most for each unit of benign variance; after QR and a fixed
sign they are the basis Q (D, K). What is then taken away along them is orthogonal, or oblique: of
all edits after which Uᵀ h' = Uᵀ μ the least in units of C_b,

    h' = h − C_b U (Uᵀ C_b U)⁻¹ Uᵀ (h − μ),

which goes along the patterns C_b U of the filters U (Haufe et al. 2014; the same in spirit as
LEACE, Belrose et al. 2023) and doesn't depend on the basis of their span. The two controls, a
random subspace and the difference of means, are here too. The solver is in
`care.defenses.repair.eigensolver`, the null in `care.defenses.repair.permutation_test`; nothing
here edits activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from scipy.linalg import eigvalsh, qr, solve, subspace_angles

from care.defenses.repair.eigensolver import Eigenpairs, benign_solve, dense_eigh, generalized_eigh
from care.defenses.repair.permutation_test import permuted_maxima
from care.errors import FitError, UsageError
from care.statistics.moments import Moments, Spread, as_rows, ledoit_wolf, oas

__all__ = [
    "Projection",
    "Subspace",
    "SubspaceConfig",
    "difference_of_means",
    "fit_subspace",
    "generalized_eigh",
    "oblique",
    "orthonormal",
    "permutation_null",
    "principal_angles",
    "random_subspace",
]

Target = Literal["cov", "second_moment", "mean+cov"]
Projection = Literal["orthogonal", "oblique"]

_MIN_ROWS = 2


@dataclass(frozen=True)
class SubspaceConfig:
    """How a subspace is fitted."""

    target: Target = "second_moment"
    """Malicious scatter about its own mean (`cov`), about the benign mean (`second_moment`), or
    `cov` with the Fisher direction C_b⁻¹ (μ_m − μ_b) put first (`mean+cov`)."""
    shrinkage: Literal["ledoit-wolf", "oas"] | float = "ledoit-wolf"
    """Intensity ρ of the benign covariance towards (tr S_b / D) I, or how to estimate it."""
    min_ridge: float = 1e-3
    """Least ρ, that is, least ridge relative to tr S_b / D."""
    ridge: float | None = None
    """Absolute ridge in place of any shrinkage, C_b = S_b + ridge I (the release uses 1e-6)."""
    rank: int | Literal["auto"] = "auto"
    """K; `auto` keeps the eigenvalues above the permutation null, at least one."""
    max_rank: int = 16
    """Cap on K under `auto`; a K asked for as a number is not capped."""
    permutations: int = 200
    """Relabellings of the pooled rows that make the null under `auto`."""
    level: float = 0.95
    """Quantile of the null's largest eigenvalue that an eigenvalue has to exceed."""
    orthonormalise: bool = True
    """QR of the directions; without it they are only scaled to unit length."""
    seed: int = 0
    """Seed of the relabellings."""

    def __post_init__(self) -> None:
        if self.target not in ("cov", "second_moment", "mean+cov"):
            raise UsageError(f"target must be cov, second_moment or mean+cov, got {self.target!r}")
        if isinstance(self.shrinkage, str):
            if self.shrinkage not in ("ledoit-wolf", "oas"):
                raise UsageError(
                    f"shrinkage must be ledoit-wolf, oas or a number, got {self.shrinkage!r}"
                )
        elif not 0.0 <= self.shrinkage <= 1.0:
            raise UsageError(f"shrinkage must lie in [0, 1], got {self.shrinkage}")
        if not 0.0 < self.min_ridge <= 1.0:
            raise UsageError(f"min_ridge must lie in (0, 1], got {self.min_ridge}")
        if self.ridge is not None and not 0.0 < self.ridge < np.inf:
            raise UsageError(f"ridge must be positive and finite, got {self.ridge}")
        if self.rank != "auto" and (not isinstance(self.rank, int) or self.rank < 1):
            raise UsageError(f"rank must be 'auto' or at least 1, got {self.rank!r}")
        if self.max_rank < 1 or self.permutations < 1 or not 0.0 < self.level < 1.0:
            raise UsageError(
                "max_rank and permutations must be at least 1 and level in (0, 1), got "
                f"{self.max_rank}, {self.permutations} and {self.level}"
            )


@dataclass(frozen=True, eq=False)
class Subspace:
    """K directions at one site, with what they were estimated from."""

    basis: np.ndarray
    """Q (D, K) float32; orthonormal unless fitted with `orthonormalise=False`."""
    mean: np.ndarray
    """Benign mean μ (D,) float32."""
    eigenvalues: np.ndarray
    """Positive λ, largest first, float64; the first K belong to `basis`. Under `mean+cov` the
    first entry is the Fisher statistic of the mean direction instead."""
    null_quantile: float | None = None
    """What an eigenvalue had to exceed; None when the rank was given."""
    significant: int | None = None
    """Eigenvalues above the null (K is at least 1 even if this is 0); None without a null."""
    shrinkage: float = 0.0
    """Ridge of C_b relative to tr S_b / D, after the floor."""
    condition: float = 1.0
    """Condition number of C_b."""
    n_malicious: int = 0
    """Malicious rows used."""
    n_benign: int = 0
    """Benign rows used."""
    write: np.ndarray | None = None
    """W (D, K) float32 of an oblique edit h' = h − a W Qᵀ (h − μ), with Qᵀ W = I; None: Q."""

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    @property
    def width(self) -> int:
        return self.basis.shape[0]


def fit_subspace(
    malicious: Moments,
    benign: Moments,
    config: SubspaceConfig | None = None,
    projection: Projection = "orthogonal",
) -> Subspace:
    """Directions in which malicious activations exceed benign ones.

    Source: CARE (Fu et al. 2026, arXiv 2603.27240), C_m u = λ C_b u; the shrinkage, the targets
    with a mean shift, QR and the permutation null are this project's.

    Raises:
        FitError: a class is missing or has fewer than two rows, the widths differ, a class
            doesn't vary, the rank exceeds what the rows allow, or `auto` is asked for after the
            rows were folded away.
    """
    config = config or SubspaceConfig()
    _check_classes(malicious, benign)
    spread = benign.spread()
    weight, ridge = _regularise(spread, config)
    limit = min(malicious.width, malicious.n_ - (config.target == "cov"))
    if config.rank != "auto" and config.rank > limit:
        raise FitError(_too_large(config.rank, limit, malicious))
    quantile = permutation_null(malicious, benign, config) if config.rank == "auto" else None
    wanted = min(limit, config.max_rank if config.rank == "auto" else config.rank)
    pairs, condition = _solve(malicious, benign, config, weight, ridge, wanted)
    rank, significant = _choose_rank(pairs.values, quantile, config)
    if rank > pairs.vectors.shape[1]:
        raise FitError(_too_large(rank, pairs.vectors.shape[1], malicious))
    basis = _tidy(pairs.vectors[:, :rank], config.orthonormalise)
    write = None
    if projection == "oblique":
        write = oblique(basis, weight * _spread_along(benign, basis) + ridge * basis)
    return Subspace(
        basis=basis.astype(np.float32),
        mean=benign.mean_.astype(np.float32),
        eigenvalues=pairs.values,
        null_quantile=quantile,
        significant=significant,
        shrinkage=ridge * spread.width / spread.trace,
        condition=condition,
        n_malicious=malicious.n_,
        n_benign=benign.n_,
        write=write,
    )


def oblique(basis: np.ndarray, image: np.ndarray) -> np.ndarray:
    """W = C U (Uᵀ C U)⁻¹ (D, K) float32 from U (D, K) and C U (D, K), C positive definite."""
    return solve(basis.T @ image, image.T, assume_a="pos").T.astype(np.float32)


def _spread_along(moments: Moments, basis: np.ndarray) -> np.ndarray:
    """S U (D, K) of the covariance S of `moments`, without S where the rows are there."""
    rows = moments.rows_
    if rows is None:
        return moments.covariance() @ basis
    centred = rows - rows.mean(axis=0)
    return centred.T @ (centred @ basis) / len(rows)


def permutation_null(
    malicious: Moments, benign: Moments, config: SubspaceConfig | None = None
) -> float:
    """The `level` quantile of the largest λ when the pooled rows are relabelled at random.

    See `care.defenses.repair.permutation_test`. FitError when rows were folded away, as relabelling
    needs them.
    """
    config = config or SubspaceConfig()
    _check_classes(malicious, benign)
    if malicious.rows_ is None or benign.rows_ is None:
        raise FitError(
            f"rank 'auto' relabels rows, but only sums are left of {malicious.n_} + {benign.n_} "
            "rows; give the rank as a number or gather with a larger max_rows"
        )
    largest = permuted_maxima(
        np.concatenate([malicious.rows_, benign.rows_]),
        malicious.n_,
        lambda spread: _regularise(spread, config),
        target=config.target,
        permutations=config.permutations,
        seed=config.seed,
    )
    return float(np.quantile(largest, config.level, method="higher"))


def principal_angles(first: Any, second: Any) -> np.ndarray:
    """Angles between the spans of (D, K₁) and (D, K₂), in radians, largest first (min K,)."""
    left, right = as_rows(first, "basis"), as_rows(second, "basis")
    if left.shape[0] != right.shape[0]:
        raise UsageError(f"bases have widths {left.shape[0]} and {right.shape[0]}; they must agree")
    return cast(np.ndarray, subspace_angles(left, right))


def random_subspace(width: int, rank: int, mean: Any = None, seed: int = 0) -> Subspace:
    """Uniformly random orthonormal K directions about `mean` (D,); the control of equal rank."""
    if not 1 <= rank <= width:
        raise UsageError(f"rank must lie in 1..{width}, got {rank}")
    drawn = np.random.default_rng(seed).standard_normal((width, rank))
    centre = np.zeros(width) if mean is None else as_rows(np.asarray(mean)[None], "mean")[0]
    if len(centre) != width:
        raise UsageError(f"mean has width {len(centre)}, not {width}")
    basis = _tidy(drawn, orthonormalise=True).astype(np.float32)
    return Subspace(basis=basis, mean=centre.astype(np.float32), eigenvalues=np.empty(0))


def difference_of_means(malicious: Moments, benign: Moments) -> Subspace:
    """The single direction μ_m − μ_b about the benign mean; the eigenvalue is its squared length.

    Source: Arditi et al. 2024 (arXiv 2406.11717), refusal as a difference of means.
    """
    _check_classes(malicious, benign)
    gap = malicious.mean_ - benign.mean_
    length = float(gap @ gap)
    if length == 0.0:
        raise FitError("malicious and benign means are equal; are both classes the same rows?")
    return Subspace(
        basis=_tidy(gap[:, None], orthonormalise=True).astype(np.float32),
        mean=benign.mean_.astype(np.float32),
        eigenvalues=np.array([length]),
        n_malicious=malicious.n_,
        n_benign=benign.n_,
    )


def _check_classes(malicious: Moments, benign: Moments) -> None:
    for name, moments in (("malicious", malicious), ("benign", benign)):
        if moments.n_ < _MIN_ROWS:
            raise FitError(
                f"the {name} class has {moments.n_} rows, and at least {_MIN_ROWS} are needed; "
                f"add {name} examples"
            )
    if malicious.width != benign.width:
        raise FitError(
            f"malicious rows have width {malicious.width} and benign rows {benign.width}; "
            "gather both at the same site of the same model"
        )


def _too_large(rank: int, limit: int, malicious: Moments) -> str:
    return (
        f"rank {rank} is more than the {limit} directions that {malicious.n_} malicious rows of "
        f"width {malicious.width} allow; lower the rank or add examples"
    )


def _regularise(spread: Spread, config: SubspaceConfig) -> tuple[float, float]:
    """(weight, ridge) of C_b = weight S_b + ridge I."""
    scale = spread.trace / spread.width
    if not scale > 0.0:
        raise FitError("all benign rows are equal, so nothing can be compared with their variance")
    if config.ridge is not None:
        return 1.0, config.ridge
    if config.shrinkage == "ledoit-wolf":
        rho = ledoit_wolf(spread)
    elif config.shrinkage == "oas":
        rho = oas(spread)
    else:
        rho = float(config.shrinkage)
    rho = max(rho, config.min_ridge)
    return 1.0 - rho, rho * scale


def _solve(
    malicious: Moments,
    benign: Moments,
    config: SubspaceConfig,
    weight: float,
    ridge: float,
    wanted: int,
) -> tuple[Eigenpairs, float]:
    """Eigenpairs (`wanted` vectors) and the condition number of C_b."""
    gap = malicious.mean_ - benign.mean_
    centre = benign.mean_ if config.target == "second_moment" else malicious.mean_
    fisher = config.target == "mean+cov"
    a, b = malicious.rows_, benign.rows_
    if a is not None and b is not None and len(a) + len(b) <= malicious.width:
        a, b = a - centre, b - benign.mean_
        pairs = generalized_eigh(a, b, ridge, weight=weight, k=wanted)
        stretch = weight * float(eigvalsh(b @ b.T)[-1]) / len(b)
        condition = (stretch + ridge) / ridge
        leading = benign_solve(b, gap, ridge, weight) if fisher else None
    else:
        c_malicious = malicious.covariance()
        if config.target == "second_moment":
            c_malicious += np.outer(gap, gap)
        c_benign = benign.covariance() * weight
        c_benign[np.diag_indices(len(gap))] += ridge
        rank = malicious.n_ - (config.target != "second_moment")
        pairs = dense_eigh(c_malicious, c_benign, wanted, max_rank=rank)
        ends = eigvalsh(c_benign)
        condition = float(ends[-1] / ends[0])
        leading = solve(c_benign, gap, assume_a="pos") if fisher else None
    if leading is not None:
        values = np.concatenate([[float(gap @ leading)], pairs.values])
        vectors = np.column_stack([leading, pairs.vectors])[:, :wanted]
        pairs = Eigenpairs(values, vectors)
    return pairs, condition


def _choose_rank(
    values: np.ndarray, quantile: float | None, config: SubspaceConfig
) -> tuple[int, int | None]:
    """(K, eigenvalues above the null)."""
    if config.rank != "auto" or quantile is None:
        return int(config.rank), None
    above = values > quantile
    # The Fisher direction is first whatever its statistic, and is always kept.
    kept = 1 + int(above[1:].sum()) if config.target == "mean+cov" else int(above.sum())
    return min(max(1, kept), config.max_rank, len(values)), int(above.sum())


def orthonormal(vectors: np.ndarray) -> np.ndarray:
    """An orthonormal basis (D, K) of the span of columns (D, K), signs fixed; FitError if K is too
    large for it."""
    basis, upper = cast(
        tuple[np.ndarray, np.ndarray],
        qr(vectors / np.linalg.norm(vectors, axis=0), mode="economic"),
    )
    if np.abs(np.diagonal(upper)).min() < 1e-9:
        raise FitError(f"the {basis.shape[1]} directions are dependent; lower the rank")
    return _with_signs(basis)


def _tidy(vectors: np.ndarray, orthonormalise: bool) -> np.ndarray:
    """Unit columns with fixed signs, orthonormal if asked for."""
    if orthonormalise:
        return orthonormal(vectors)
    return _with_signs(vectors / np.linalg.norm(vectors, axis=0))


def _with_signs(columns: np.ndarray) -> np.ndarray:
    """Columns, each with its largest-magnitude entry positive."""
    largest = np.abs(columns).argmax(axis=0)
    return columns * np.where(columns[largest, np.arange(columns.shape[1])] < 0.0, -1.0, 1.0)
