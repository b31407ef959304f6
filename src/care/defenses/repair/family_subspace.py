"""Families of attacks beside what they are told apart from, and the unsafe subspace of one site.

Families f = 1 … F of attacks that worked have the means m_f, the refused malicious requests the
mean r, and the background (answered benign requests, each family alike, and a little of the
refusals) the mean μ and the shrunk covariance C. The unsafe subspace is that of the generalized
eigenvectors

    C_m u = λ C u,    C_m = Σ_f n_f/n (m_f − r)(m_f − r)ᵀ

(n_f rows of family f, n of all families, so that the noise of each mean counts the same) in the
form of their patterns C u, which is what has to be taken away from an activation for u to see
nothing (Haufe et al. 2014): an orthonormal basis Q of span{C u} about the anchor r. Its rank is the
number of λ above a permutation null, in which attacks and refusals are relabelled at random.
An oblique edit reads along the filters u in place of the patterns, and writes along these.
Taking C_m from single activations instead, and projecting along the u themselves, is the paper's
form (Fu et al. 2026, arXiv 2603.27240); that is in `subspace`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigh

from care.defenses.repair.family_moments import is_large, pooled_in_blocks, relabelled_gaps
from care.defenses.repair.subspace import Projection, Subspace, oblique, orthonormal
from care.errors import FitError
from care.statistics.crossfit import FamilyRows
from care.statistics.moments import towards_diagonal

_LEAST_ROWS = 4


@dataclass(frozen=True, eq=False)
class Classes:
    """What a gate tells apart at one site."""

    attacks: Mapping[str, FamilyRows]
    """Attacks that worked, by family."""
    refused: FamilyRows
    """Malicious requests that were refused."""
    benign: Mapping[str, FamilyRows]
    """Answered benign requests by family; each weighs the same."""

    def __post_init__(self) -> None:
        for name, rows in {**self.attacks, **self.benign, "refused": self.refused}.items():
            if len(rows) < _LEAST_ROWS:
                raise FitError(
                    f"{name!r} has {len(rows)} activations, and at least {_LEAST_ROWS} are "
                    "needed to fit a gate; add examples"
                )
            if bad := sum(int((~np.isfinite(block)).sum()) for _, block in rows.blocks()):
                raise FitError(
                    f"{bad} of the activations of {name!r} aren't "
                    "finite; run the model in float32 or bfloat16"
                )
        if not self.attacks or not self.benign:
            raise FitError("a gate needs attacks that worked and answered benign requests")

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> Classes:
        """The same with `function` of the activations (N, D) in their place."""

        def of(rows: FamilyRows) -> FamilyRows:
            return FamilyRows(rows.source, rows.groups, rows.places, function)

        return Classes(
            {name: of(rows) for name, rows in self.attacks.items()},
            of(self.refused),
            {name: of(rows) for name, rows in self.benign.items()},
        )

    def everything(self) -> list[FamilyRows]:
        """All classes: attacks, refused, benign."""
        return [*self.attacks.values(), self.refused, *self.benign.values()]


def pooled(
    parts: Sequence[np.ndarray], classes: Classes, shrinkage: float, within: float, refusals: float
) -> tuple[np.ndarray, np.ndarray]:
    """μ (D,) and C (D, D), float64, from rows in the order of `Classes.everything`.

    C is the background's scatter about μ, with a share `within` of the scatter within the attack
    families, shrunk towards its own diagonal. `refusals` is the weight of the refused requests in
    the background; the benign families share the rest.
    """
    count, others = len(classes.attacks), len(classes.benign)
    attacks, background = parts[:count], parts[count:]
    weights = np.array([refusals, *[(1 - refusals) / others] * others])
    means = [rows.mean(axis=0, dtype=np.float64) for rows in background]
    mean = np.tensordot(weights, means, 1)
    covariance = np.zeros((len(mean), len(mean)))
    for weight, rows in zip(weights, background, strict=True):
        covariance += (1 - within) * weight * _scatter(rows, mean)
    for rows in attacks:
        covariance += within / count * _scatter(rows, rows.mean(axis=0))
    return mean, towards_diagonal(covariance, shrinkage)


def unsafe_subspace(
    classes: Classes,
    *,
    shrinkage: float = 0.1,
    within: float = 0.3,
    refusals: float = 0.05,
    permutations: int = 200,
    level: float = 0.95,
    seed: int = 0,
    projection: Projection = "orthogonal",
) -> Subspace:
    """The unsafe subspace of one site: basis Q (D, K), K ≤ F, about the mean of the refusals.

    K is at least 1. FitError for classes that can't be told apart at all (equal means).
    """
    sizes = [len(rows) for rows in classes.attacks.values()]
    contrast = _contrast(sizes, len(classes.refused))
    take = _in_blocks if is_large(classes.everything()) else _at_once
    found = take(classes, contrast, (shrinkage, within, refusals))
    covariance, anchor, gaps = found.covariance, found.anchor, found.gaps
    if np.abs(gaps).max() <= 1e-9 * found.largest:  # equal but for rounding
        raise FitError("attacks that worked and refusals have equal means; are they the same rows?")
    factor = cho_factor(covariance, lower=True)
    values, turned = eigh(gaps.T @ cho_solve(factor, gaps))
    largest = found.relabelled(factor, contrast, permutations, seed)
    null = float(np.quantile(largest, level, method="higher"))
    above = int((values > null).sum())
    patterns = gaps @ turned[:, ::-1][:, : max(1, above)]
    ends = eigh(covariance, eigvals_only=True)
    write = None
    if projection == "oblique":
        basis = orthonormal(cho_solve(factor, patterns))
        write = oblique(basis, covariance @ basis)
    else:
        basis = orthonormal(patterns)
    return Subspace(
        basis=basis.astype(np.float32),
        mean=anchor.astype(np.float32),
        eigenvalues=values[::-1].copy(),
        null_quantile=null,
        significant=above,
        shrinkage=shrinkage,
        condition=float(ends[-1] / ends[0]),
        n_malicious=sum(sizes),
        n_benign=len(classes.refused) + sum(map(len, classes.benign.values())),
        write=write,
    )


def _contrast(sizes: Sequence[int], refused: int) -> np.ndarray:
    """Weights (N, F) of the rows, attacks first, that make √(n_f/n) (m_f − r) of each family."""
    weights = np.zeros((sum(sizes) + refused, len(sizes)))
    start = 0
    for family, size in enumerate(sizes):
        weights[start : start + size, family] = 1 / size
        start += size
    weights[start:] = -1 / refused
    return weights * np.sqrt(np.array(sizes) / sum(sizes))


@dataclass(frozen=True, eq=False)
class _Taken:
    """What is taken of the rows before eigenvectors are."""

    covariance: np.ndarray
    """C (D, D)."""
    anchor: np.ndarray
    """r (D,)."""
    gaps: np.ndarray
    """√(n_f/n) (m_f − r) of each family (D, F)."""
    largest: float
    """Greatest |x − r| of attacks and refusals."""
    relabelled: Callable[[Any, np.ndarray, int, int], list[float]]
    """(factor of C, contrast, permutations, seed) -> the largest λ of each relabelling of attacks
    and refusals."""


def _at_once(classes: Classes, contrast: np.ndarray, weights: tuple[float, float, float]) -> _Taken:
    parts = [rows.x for rows in classes.everything()]
    x = np.concatenate([*parts[: len(classes.attacks)], classes.refused.x]).astype(np.float64)
    _, covariance = pooled(parts, classes, *weights)
    anchor = x[-len(classes.refused) :].mean(axis=0)
    x -= anchor

    def relabelled(factor: Any, contrast: np.ndarray, many: int, seed: int) -> list[float]:
        gram = x @ cho_solve(factor, x.T)
        rng = np.random.default_rng(seed)
        mixed = (contrast[rng.permutation(len(contrast))] for _ in range(many))
        return [float(np.linalg.eigvalsh(each.T @ gram @ each)[-1]) for each in mixed]

    return _Taken(covariance, anchor, x.T @ contrast, float(np.abs(x).max()), relabelled)


def _in_blocks(
    classes: Classes, contrast: np.ndarray, weights: tuple[float, float, float]
) -> _Taken:
    [whole] = pooled_in_blocks(classes.everything(), len(classes.attacks), *weights)
    rows, families = [*classes.attacks.values(), classes.refused], len(classes.attacks)
    anchor = whole.means[families]
    sizes = np.array([len(each) for each in rows[:-1]])
    gaps = np.stack([mean - anchor for mean in whole.means[:families]], axis=1)
    blocks = (block for each in rows for _, block in each.blocks())
    largest = max(float(np.abs(block - anchor).max()) for block in blocks)

    def relabelled(factor: Any, contrast: np.ndarray, many: int, seed: int) -> list[float]:
        mixed = relabelled_gaps(rows, contrast, anchor, many, seed)
        return [float(np.linalg.eigvalsh(m.T @ cho_solve(factor, m))[-1]) for m in mixed]

    return _Taken(
        whole.covariance, anchor, gaps * np.sqrt(sizes / sizes.sum()), largest, relabelled
    )


def _scatter(rows: np.ndarray, centre: np.ndarray) -> np.ndarray:
    away = rows.astype(np.float64) - centre
    return away.T @ away / len(away)
