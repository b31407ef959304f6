"""Streaming, mergeable moments of activations, in float64.

`Moments` takes batches of rows (N, D) in any dtype and keeps what a subspace fit needs. Up to
`max_rows` rows it keeps the rows themselves (the exact low-rank solver wants them when N < D);
beyond that it folds them into the mean and the scatter matrix, and memory no longer grows with N:

    n = n_a + n_b,   μ = μ_a + δ n_b / n,   S = S_a + S_b + δ δᵀ n_a n_b / n,   δ = μ_b − μ_a

(Chan, Golub, LeVeque 1983). Σ‖x − μ‖² (x − μ) and Σ‖x − μ‖⁴ are carried along in the same way, so
that the Ledoit–Wolf intensity stays exact after the rows are gone. Nothing is weighted or
standardised here, and no covariance is ever inverted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from care.errors import FitError

Array = NDArray[np.float64]
Saved = NDArray[np.float64] | NDArray[np.int64]

_CHUNK = 1024
_MIN_MAX_ROWS = 2048


@runtime_checkable
class Tensor(Protocol):
    """What is asked of a torch tensor, so that torch need not be imported here."""

    def detach(self) -> Tensor: ...
    def cpu(self) -> Tensor: ...
    def double(self) -> Tensor: ...
    def numpy(self) -> Array: ...


Rows = ArrayLike | Tensor
"""Activations (N, D): a tensor of any dtype, or an array."""


def as_rows(values: Rows, what: str = "activations") -> Array:
    """Return `values` (N, D), a tensor of any dtype or an array, as finite C-ordered float64.

    Raises:
        FitError: not two-dimensional, empty, or with NaN or infinite entries (counted).
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    rows = np.ascontiguousarray(values, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0:
        raise FitError(
            f"The {what} must be a non-empty (rows, width) array, got shape {tuple(rows.shape)}; "
            "pool each example to one row first."
        )
    finite = np.isfinite(rows)
    if not finite.all():
        nan = int(np.isnan(rows).sum())
        bad_rows = int((~finite).any(axis=1).sum())
        raise FitError(
            f"There are {nan} NaN and {int((~finite).sum()) - nan} infinite entries in {bad_rows} "
            f"of {len(rows)} rows of the {what}; run the model in float32 or bfloat16, or drop "
            "those examples."
        )
    return rows


class Spread(NamedTuple):
    """The scalars of a covariance (divided by n) that shrinkage needs."""

    n: int
    """Number of rows."""
    width: int
    """D."""
    trace: float
    """tr C."""
    frobenius: float
    """‖C‖_F², squared."""
    fourth: float
    """Σ_i ‖x_i − μ‖⁴ / n."""


def spread_of_gram(gram: Array, width: int) -> Spread:
    """Spread of the covariance whose centred rows have the Gram matrix `gram` (N, N)."""
    n = len(gram)
    lengths = np.diagonal(gram)
    frobenius = float(np.vdot(gram, gram)) / n**2
    return Spread(n, width, float(lengths.sum()) / n, frobenius, float(lengths @ lengths) / n)


def towards_diagonal(scatter: Array, share: float) -> Array:
    """(1 − share) scatter + share diag(scatter), in the place of a scatter (D, D).

    FitError for coordinates that never vary.
    """
    spread = np.diagonal(scatter).copy()
    if not (spread > 0).all():
        raise FitError(
            f"{int((spread <= 0).sum())} of {len(spread)} coordinates never vary; fit on examples "
            "that differ."
        )
    scatter *= 1 - share
    scatter[np.diag_indices(len(spread))] = spread
    return scatter


def ledoit_wolf(spread: Spread) -> float:
    """Ledoit–Wolf intensity ρ of (1 − ρ) C + ρ (tr C / D) I.

    Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
    matrices" (2004); the same value as scikit-learn's `ledoit_wolf_shrinkage`, here from four
    scalars instead of the rows.
    """
    distance = spread.frobenius - spread.trace**2 / spread.width
    noise = (spread.fourth - spread.frobenius) / spread.n
    if distance <= 0.0 or noise <= 0.0:
        return 1.0 if distance <= 0.0 else 0.0
    return min(noise / distance, 1.0)


def oas(spread: Spread) -> float:
    """Oracle-approximating shrinkage intensity ρ, for Gaussian rows.

    Source: Chen, Wiesel, Eldar and Hero (2010), eq. 23 as scikit-learn's `OAS` implements it.
    """
    alpha = spread.frobenius / spread.width**2
    mean_variance = (spread.trace / spread.width) ** 2
    denominator = (spread.n + 1.0) * (alpha - mean_variance / spread.width)
    return 1.0 if denominator <= 0.0 else min((alpha + mean_variance) / denominator, 1.0)


@dataclass
class _Central:
    """Central moments of n rows, up to what the variance of the covariance needs."""

    n: int
    mean: Array
    scatter: Array
    third: Array
    fourth: float

    @classmethod
    def of(cls, rows: Array) -> _Central:
        mean = rows.mean(axis=0)
        centred = rows - mean
        squared = np.einsum("nd,nd->n", centred, centred)
        return cls(
            len(rows), mean, centred.T @ centred, squared @ centred, float(squared @ squared)
        )

    def recentre(self, mean: Array) -> None:
        """Express the sums about another mean, in place."""
        shift = mean - self.mean
        length = float(shift @ shift)
        trace = float(np.trace(self.scatter))
        turned = self.scatter @ shift
        self.fourth += (
            4.0 * float(shift @ turned)
            - 4.0 * float(shift @ self.third)
            + 2.0 * length * trace
            + self.n * length**2
        )
        self.third -= 2.0 * turned + (trace + self.n * length) * shift
        self.scatter += np.outer(self.n * shift, shift)
        self.mean = mean

    def add(self, other: _Central) -> None:
        """Absorb `other`, which is changed too (both are moved to the common mean)."""
        n = self.n + other.n
        mean = self.mean + (other.mean - self.mean) * (other.n / n)
        self.recentre(mean)
        other.recentre(mean)
        self.n = n
        self.scatter += other.scatter
        self.third += other.third
        self.fourth += other.fourth


class Moments:
    """Mean, scatter and (while few) the rows of activations at one site, scope and class.

    Parameters:
        width: D.
        max_rows: rows kept exactly before they are folded into a (D, D) scatter;
            default max(D, 2048).

    Attributes:
        n_: rows seen.
        mean_: (D,) float64.
        rows_: (n_, D) float64, or None once n_ has passed `max_rows`.
    """

    def __init__(self, width: int, max_rows: int | None = None) -> None:
        if width < 1 or (max_rows is not None and max_rows < 0):
            raise FitError(
                f"Moments need width >= 1 and max_rows >= 0, got {width} and {max_rows}."
            )
        self.width = width
        self.max_rows = max(width, _MIN_MAX_ROWS) if max_rows is None else max_rows
        self._blocks: list[Array] = []
        self._kept = 0
        self._central: _Central | None = None

    def __repr__(self) -> str:
        kind = "scatter" if self._central is not None else "rows"
        return f"Moments(n={self.n_}, width={self.width}, {kind})"

    @property
    def n_(self) -> int:
        return self._kept if self._central is None else self._central.n

    @property
    def mean_(self) -> Array:
        self._require_rows()
        return self.rows_.mean(axis=0) if self.rows_ is not None else self._folded().mean.copy()

    @property
    def rows_(self) -> Array | None:
        if self._central is not None or not self._blocks:
            return None
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0]

    @property
    def scatter_(self) -> Array:
        """Σ (x − μ)(x − μ)ᵀ, (D, D) float64."""
        self._require_rows()
        rows = self.rows_
        if rows is None:
            return self._folded().scatter
        centred = rows - rows.mean(axis=0)
        return centred.T @ centred

    def fit(self, values: Rows) -> Moments:
        """Forget everything and take the rows of `values` (N, D)."""
        self._blocks, self._kept, self._central = [], 0, None
        return self.partial_fit(values)

    def partial_fit(self, values: Rows) -> Moments:
        """Add the rows of `values` (N, D), of any dtype; FitError if unusable, nothing added."""
        rows = as_rows(values)
        self._check_width(rows.shape[1])
        if self._central is None and self._kept + len(rows) <= self.max_rows:
            # A copy, because the caller may reuse its buffer for the next batch.
            self._blocks.append(np.array(rows))
            self._kept += len(rows)
        else:
            self._fold()
            self._absorb(rows)
        return self

    def merge(self, other: Moments) -> Moments:
        """Add everything `other` has seen; `other` is left as it was."""
        self._check_width(other.width)
        rows = other.rows_
        if other.n_ == 0:
            return self
        if rows is not None:
            return self.partial_fit(rows)
        self._fold()
        theirs = other._folded()
        copied = _Central(
            theirs.n, theirs.mean, theirs.scatter.copy(), theirs.third.copy(), theirs.fourth
        )
        if self._central is None:
            self._central = copied
        else:
            self._central.add(copied)
        return self

    def covariance(self) -> Array:
        """Covariance (D, D) about the mean, divided by n."""
        return self.scatter_ / self.n_

    def spread(self) -> Spread:
        """The scalars for shrinkage, by the Gram matrix while there are fewer rows than width."""
        self._require_rows()
        rows = self.rows_
        if rows is not None and len(rows) < self.width:
            centred = rows - rows.mean(axis=0)
            return spread_of_gram(centred @ centred.T, self.width)
        central = _Central.of(rows) if rows is not None else self._folded()
        n, scatter = central.n, central.scatter
        frobenius = float(np.vdot(scatter, scatter)) / n**2
        return Spread(n, self.width, float(np.trace(scatter)) / n, frobenius, central.fourth / n)

    def to_dict(self) -> dict[str, Saved]:
        """Arrays that `from_dict` restores exactly; they can be saved as safetensors."""
        header: dict[str, Saved] = {"sizes": np.array([self.width, self.max_rows, self.n_])}
        if self._central is None:
            rows = self.rows_
            kept: Array = np.empty((0, self.width)) if rows is None else rows.copy()
            return header | {"rows": kept}
        central = self._central
        return header | {
            "mean": central.mean.copy(),
            "scatter": central.scatter.copy(),
            "third": central.third.copy(),
            "fourth": np.array(central.fourth),
        }

    @classmethod
    def from_dict(cls, arrays: Mapping[str, Saved]) -> Moments:
        """Restore what `to_dict` gave; FitError when arrays are missing or don't fit together."""
        try:
            width, max_rows, n = (int(size) for size in arrays["sizes"].tolist())
            moments = cls(width, max_rows)
            if "rows" in arrays:
                if n:
                    moments.partial_fit(arrays["rows"])
            else:
                names = ("mean", "scatter", "third")
                mean, scatter, third = (np.array(arrays[name], np.float64) for name in names)
                moments._central = _Central(n, mean, scatter, third, float(arrays["fourth"].item()))
        except (KeyError, ValueError) as error:
            raise FitError(f"Saved moments are incomplete: {error}; gather them again.") from error
        central = moments._central
        if central is not None and (
            central.mean.shape != (width,)
            or central.scatter.shape != (width, width)
            or not np.isfinite(central.scatter).all()
        ):
            raise FitError(f"Saved moments don't have width {width}; gather them again.")
        if moments.n_ != n:
            raise FitError(f"Saved moments hold {moments.n_} rows, not {n}; gather them again.")
        return moments

    def _fold(self) -> None:
        """Replace kept rows by their sums."""
        blocks, self._blocks, self._kept = self._blocks, [], 0
        for block in blocks:
            self._absorb(block)

    def _absorb(self, rows: Array) -> None:
        for start in range(0, len(rows), _CHUNK):
            shard = _Central.of(rows[start : start + _CHUNK])
            if self._central is None:
                self._central = shard
            else:
                self._central.add(shard)

    def _folded(self) -> _Central:
        if self._central is None:
            raise FitError("These moments have seen no rows; call fit or partial_fit first.")
        return self._central

    def _require_rows(self) -> None:
        if self.n_ == 0:
            raise FitError("These moments have seen no rows; call fit or partial_fit first.")

    def _check_width(self, width: int) -> None:
        if width != self.width:
            raise FitError(
                f"Got rows of width {width} for moments of width {self.width}; "
                "use activations of the same site and model."
            )
