"""What a fit by families needs of its rows, from passes over them in blocks.

Rows of one class k outside of fold j have the count n_kj, the mean m_kj and the scatter S_kj about
it, merged from those of the other folds in float64 (`care.statistics.moments`). Background classes
with weights w_k have the mean μ_j = Σ_k w_k m_kj, and a discriminant without fold j needs

    C_j = (1 − a) Σ_k w_k (S_kj / n_kj + (m_kj − μ_j)(m_kj − μ_j)ᵀ) + a/F Σ_f S_fj / n_fj

which is added up class by class. The permutation null of a subspace needs the weighted sums of all
rows under each relabelling. So with J folds 2 J + 3 matrices (D, D) and P sums (D, F) are held at
once, and of every row only its F scores and P / 16 numbers of its relabellings: memory doesn't grow
with N × D. The rows themselves may lie in a file (`care.defenses.material.load_decisions`). Fits of
up to `LARGE` rows take them at once instead, which is faster; both give the same to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from care.statistics.crossfit import FamilyRows, folds_of
from care.statistics.moments import Moments, towards_diagonal

LARGE = 8192
"""Rows of all classes together, from which on they are taken in blocks."""

_TOGETHER = 16
"""Relabellings that are summed in one pass over the rows."""


@dataclass(frozen=True, eq=False)
class Pooled:
    """Moments of all classes, with or without a fold."""

    mean: np.ndarray
    """μ (D,) of the background."""
    covariance: np.ndarray
    """C (D, D), shrunk."""
    means: list[np.ndarray]
    """m_k (D,) of every class, in the order of `Classes.everything`."""

    def discriminants(self, families: int) -> tuple[np.ndarray, np.ndarray]:
        """u (D, F) and μ (D,) of the first classes, which are the attacks."""
        gaps = np.stack([mean - self.mean for mean in self.means[:families]], axis=1)
        found = cho_solve(cho_factor(self.covariance, lower=True, overwrite_a=True), gaps)
        return found / (gaps * found).sum(axis=0), self.mean


def is_large(everything: Sequence[FamilyRows]) -> bool:
    """Whether rows are taken in blocks."""
    return sum(map(len, everything)) > LARGE


def pooled_in_blocks(
    everything: Sequence[FamilyRows],
    families: int,
    shrinkage: float,
    within: float,
    refusals: float,
    folds: Sequence[np.ndarray] | None = None,
) -> list[Pooled]:
    """Moments without each fold, and of all rows, which come last; of these alone without folds.

    Of the classes the first are the `families` of attacks, then come refusals, then benign ones.
    """
    count, others = families, len(everything) - families - 1
    weights = np.array([refusals, *[(1 - refusals) / others] * others])
    shares = [within / count] * count + [(1 - within) * weight for weight in weights]
    parts = 0 if folds is None else 1 + max(int(own.max()) for own in folds)
    width = everything[0].width
    totals = [np.zeros((width, width)) for _ in range(parts + 1)]
    means: list[list[np.ndarray]] = [[] for _ in totals]
    for place, (rows, share) in enumerate(zip(everything, shares, strict=True)):
        own = _by_fold(rows, None if folds is None else folds[place], max(1, parts))
        for left_out, total in enumerate(totals):
            kept = Moments(width, max_rows=0)
            for fold, each in enumerate(own):
                if fold != left_out or left_out == parts:
                    kept.merge(each)
            total += share / kept.n_ * kept.scatter_
            means[left_out].append(kept.mean_)
    found = []
    for total, own in zip(totals, means, strict=True):
        mean = np.tensordot(weights, own[count:], 1)
        for share, each in zip(shares[count:], own[count:], strict=True):
            total += share * np.outer(each - mean, each - mean)
        found.append(Pooled(mean, towards_diagonal(total, shrinkage), own))
    return found


def crossfitted_in_blocks(
    everything: Sequence[FamilyRows],
    families: int,
    shrinkage: float,
    within: float,
    refusals: float,
    folds: int,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """u (D, F) and μ (D,) from all rows, and z (N, F) of every class, each row scored without its
    group."""
    placed = folds_of(everything, folds)
    *without, whole = pooled_in_blocks(everything, families, shrinkage, within, refusals, placed)
    found = [each.discriminants(families) for each in without]
    scores = []
    for rows, own in zip(everything, placed, strict=True):
        z = np.zeros((len(rows), families))
        for start, block in rows.blocks():
            here = own[start : start + len(block)]
            for fold in np.unique(here):
                filters, mean = found[fold]
                z[start : start + len(block)][here == fold] = (block[here == fold] - mean) @ filters
        scores.append(z)
    return *whole.discriminants(families), scores


def relabelled_gaps(
    rows: Sequence[FamilyRows],
    contrast: np.ndarray,
    anchor: np.ndarray,
    permutations: int,
    seed: int,
) -> Iterator[np.ndarray]:
    """Σ_i (x_i − anchor) c_π(i) (D, F) of each random relabelling π of the rows, whose weights are
    the `contrast` (N, F)."""
    rng = np.random.default_rng(seed)
    for start in range(0, permutations, _TOGETHER):
        many = min(_TOGETHER, permutations - start)
        drawn = [rng.permutation(len(contrast)).astype(np.int32) for _ in range(many)]
        sums = np.zeros((many, len(anchor), contrast.shape[1]))
        first = 0
        for part in rows:
            for _, block in part.blocks():
                away = (block - anchor).T
                for total, order in zip(sums, drawn, strict=True):
                    total += away @ contrast[order[first : first + len(block)]]
                first += len(block)
        yield from sums


def _by_fold(rows: FamilyRows, folds: np.ndarray | None, count: int) -> list[Moments]:
    """Moments of the rows of each fold."""
    found = [Moments(rows.width, max_rows=0) for _ in range(count)]
    for start, block in rows.blocks():
        own = np.zeros(len(block), int) if folds is None else folds[start : start + len(block)]
        for fold in np.unique(own):
            found[fold].partial_fit(block[own == fold])
    return found
