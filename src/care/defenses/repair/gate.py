"""Gates: how surely an activation is that of a working attack.

For families f = 1 … F of attacks that worked (means m_f) and a background of answered benign
requests with a little of the refused malicious ones (mean μ, shrunk covariance C),

    u_f = C⁻¹ (m_f − μ) / (m_f − μ)ᵀ C⁻¹ (m_f − μ),      z_f = u_fᵀ (h − μ)
    g(h) = max_f clamp((z_f − low_f) / (high_f − low_f), 0, 1)

z_f is 0 at the mean of the background and 1 at that of the family. The u_f span the solutions of
C_m u = λ C u with C_m the scatter of the family means, and are Fisher's discriminants. An attack
differs by its harm from benign requests, but not from refused ones: refusals in the background
teach a gate the disguise of the attacks that it has seen, and it misses those in another.

low_f is the greatest over the families of benign requests of a high quantile of their scores, so
that of each kind a share known beforehand is left alone, at least, split evenly between the
families of attacks; high_f lies a part of the way to the median of family f. Both are taken from
scores that are cross-fitted: by discriminants that haven't seen the goal (or, where a picture
serves many goals, the picture). What is done where it is open is the repair's business.

With `features` the same is done with φ(h) in place of h, M random Fourier features whose inner
products approximate a Gaussian kernel (Rahimi and Recht 2007),

    φ(h) = √(2/M) cos(Ωᵀ h + b),    φ(h)ᵀ φ(h') ≈ exp(−‖(h − h') / s‖² / 2σ²)

with s the standard deviation of each channel and σ² half the median squared distance, both of the
benign rows (of many, of some that are evenly spaced). The u_f are then kernel discriminants, and
span the unsafe subspace of feature space. A step there has no preimage among activations, so what
is taken away where the gate is open stays a linear pattern: what activations have, on average,
where the coordinates z_f are high (the means of the families less a refusal; Haufe et al. 2014).
Fisher 1936; gating of interventions as in Lee et al. 2024 (arXiv 2409.05907).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import pdist

from care.defenses.repair.family_moments import LARGE, crossfitted_in_blocks, is_large
from care.defenses.repair.family_subspace import Classes, pooled
from care.errors import UsageError
from care.statistics.crossfit import folds_of

_LEAST_RAMP = 0.01
_MOST_DISTANCES = 512
"""Rows of which the median distance is taken at most, evenly spaced."""


@dataclass(frozen=True)
class GateConfig:
    """How a gate is fitted."""

    quantile: float = 0.97
    """Share of the activations of each benign family for which the gate stays shut, at least: each
    of the F families of attacks gets a part (1 − quantile) / F of the rest."""
    ramp: float = 0.5
    """Where between low_f (0) and the family's median (1) the gate is fully open."""
    shrinkage: float = 0.1
    """Weight of the diagonal in C."""
    within: float = 0.3
    """Weight of the scatter within the attack families in C; the rest is the background's."""
    refusals: float = 0.05
    """Weight of refused malicious requests in the background; benign families share the rest."""
    folds: int = 5
    """Parts of the cross-fit."""
    features: int = 0
    """M, random Fourier features that discriminants are linear in; 0: in the activations."""

    def __post_init__(self) -> None:
        for name in ("quantile", "ramp", "shrinkage"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise UsageError(f"{name} must lie in (0, 1), got {getattr(self, name)}")
        if self.features < 0:
            raise UsageError(f"features must be at least 0, got {self.features}")
        if not (0.0 <= self.within < 1.0 and 0.0 <= self.refusals < 1.0) or self.folds < 2:
            raise UsageError(
                "within and refusals must lie in [0, 1) and folds be at least 2, got "
                f"{self.within}, {self.refusals} and {self.folds}"
            )


@dataclass(frozen=True, eq=False)
class FourierFeatures:
    """φ(h) of the module's header."""

    weights: np.ndarray
    """Ω (D, M) float32."""
    phases: np.ndarray
    """b (M,) float32."""

    def __call__(self, h: np.ndarray) -> np.ndarray:
        """φ(h) (N, M) of activations h (N, D)."""
        return np.sqrt(2 / len(self.phases)) * np.cos(h @ self.weights + self.phases)

    @classmethod
    def drawn(cls, rows: np.ndarray, count: int, seed: int = 0) -> FourierFeatures:
        """`count` features for the scale of rows (N, D); channels that never vary count nothing."""
        x = rows.astype(np.float64)
        spread = x.std(axis=0)
        inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
        some = x[:: max(1, len(x) // _MOST_DISTANCES)] * inverse
        sigma = np.sqrt(0.5 * np.median(pdist(some, "sqeuclidean")))
        rng = np.random.default_rng(seed)
        weights = inverse[:, None] * rng.standard_normal((x.shape[1], count)) / sigma
        # About the mean, so that a large one doesn't cost the cosine its digits.
        phases = (rng.uniform(0, 2 * np.pi, count) - x.mean(axis=0) @ weights) % (2 * np.pi)
        return cls(weights.astype(np.float32), phases.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Gate:
    """F discriminants with their thresholds; g(h) is in the module's header."""

    filters: np.ndarray
    """u_f (D, F) float32, or (M, F) with features."""
    mean: np.ndarray
    """μ (D,) float32, or (M,) with features."""
    low: np.ndarray
    """Scores (F,) float32 up to which the gate is shut."""
    high: np.ndarray
    """Scores (F,) float32 from which it is fully open."""
    families: tuple[str, ...] = ()
    """Names of the F families of attacks; empty if unknown."""
    opened: Mapping[str, float] = field(default_factory=dict)
    """Share of each family's attacks for which the gate opens at all, cross-fitted."""
    opened_benign: float | None = None
    """The same of benign requests."""
    quantile: float | None = None
    """What `low` was chosen by."""
    features: FourierFeatures | None = None
    """φ, of which the filters are; None: they are of activations."""

    @property
    def width(self) -> int:
        """D, of activations."""
        return len(self.filters if self.features is None else self.features.weights)

    def __post_init__(self) -> None:
        width, count = self.filters.shape if self.filters.ndim == 2 else (0, 0)
        shapes = self.mean.shape == (width,) and self.low.shape == self.high.shape == (count,)
        if not shapes or count == 0:
            raise UsageError(
                f"a gate needs filters (D, F), a mean (D,) and thresholds (F,), (F,), got "
                f"{self.filters.shape}, {self.mean.shape}, {self.low.shape}, {self.high.shape}"
            )
        parts = (self.filters, self.mean, self.low, self.high)
        if not all(np.isfinite(part).all() for part in parts) or (self.low >= self.high).any():
            raise UsageError("a gate needs finite numbers, and low below high for every filter")
        with np.errstate(over="ignore"):
            slopes = self.filters / (self.high - self.low)
        if not np.isfinite(slopes).all():
            raise UsageError(
                "a gate needs low so far below high that its filters over the distance are finite, "
                f"got {(self.high - self.low).min():g}"
            )
        if self.families and len(self.families) != count:
            raise UsageError(
                f"a gate with {count} filters needs the names of {count} families or none, got "
                f"{len(self.families)}: {', '.join(map(str, self.families))}"
            )

    def openness(self, h: np.ndarray) -> np.ndarray:
        """g(h) (N,) of activations h (N, D), in [0, 1]."""
        x = h if self.features is None else self.features(h)
        z = (x - self.mean) @ self.filters
        return np.clip((z - self.low) / (self.high - self.low), 0.0, 1.0).max(axis=1)


@dataclass(frozen=True, eq=False)
class Crossfit:
    """Discriminants and what they say about rows that they haven't seen."""

    families: tuple[str, ...]
    """Names of the F families."""
    filters: np.ndarray
    """u_f (D, F), from all rows."""
    mean: np.ndarray
    """μ (D,)."""
    own: tuple[np.ndarray, ...]
    """Cross-fitted scores z (N, F) of each family's attacks."""
    benign: tuple[np.ndarray, ...]
    """Cross-fitted scores z (N, F) of each family of answered benign requests."""
    features: FourierFeatures | None = None
    """φ of which they are, if not of activations."""

    def gate(self, config: GateConfig) -> Gate:
        """The gate with thresholds by `config.quantile` and `config.ramp`."""
        medians = np.array([np.median(z[:, place]) for place, z in enumerate(self.own)])
        each = 1 - (1 - config.quantile) / len(self.own)
        low = np.max([np.quantile(z, each, axis=0) for z in self.benign], axis=0)
        high = low + np.maximum(config.ramp * (medians - low), _LEAST_RAMP)
        numbers = (part.astype(np.float32) for part in (self.filters, self.mean, low, high))
        scores = (*self.own, np.concatenate(self.benign))
        opened = [float((z > low).any(axis=1).mean()) for z in scores]
        return Gate(
            *numbers,
            families=self.families,
            opened=dict(zip(self.families, opened, strict=False)),
            opened_benign=opened[-1],
            quantile=config.quantile,
            features=self.features,
        )


def crossfit(classes: Classes, config: GateConfig | None = None) -> Crossfit:
    """Discriminants from all rows, and scores of each row by those that haven't seen its group."""
    config = config or GateConfig()
    features = None
    if config.features:
        some = classes.benign.values()
        step = max(1, sum(map(len, some)) // LARGE)
        benign = np.concatenate([rows.every(step) for rows in some])
        features = FourierFeatures.drawn(benign, config.features)
        classes = classes.mapped(features)
    everything = classes.everything()
    if is_large(everything):
        weights = (config.shrinkage, config.within, config.refusals)
        filters, mean, scores = crossfitted_in_blocks(
            everything, len(classes.attacks), *weights, config.folds
        )
    else:
        filters, mean = discriminants([rows.x for rows in everything], classes, config)
        scores = crossfit_scores(classes, config)
    count = len(classes.attacks)
    return Crossfit(
        tuple(classes.attacks),
        filters,
        mean,
        tuple(scores[:count]),
        tuple(scores[count + 1 :]),
        features,
    )


def fit_gate(classes: Classes, config: GateConfig | None = None) -> Gate:
    """The gate of one site; FitError for too few rows or coordinates that never vary."""
    return crossfit(classes, config).gate(config or GateConfig())


def discriminants(
    parts: Sequence[np.ndarray], classes: Classes, config: GateConfig
) -> tuple[np.ndarray, np.ndarray]:
    """u (D, F) and μ (D,), float64, from rows in the order of `Classes.everything`."""
    mean, covariance = pooled(parts, classes, config.shrinkage, config.within, config.refusals)
    attacks = parts[: len(classes.attacks)]
    gaps = np.stack([rows.mean(axis=0, dtype=np.float64) - mean for rows in attacks], axis=1)
    found = cho_solve(cho_factor(covariance, lower=True, overwrite_a=True), gaps)
    return found / (gaps * found).sum(axis=0), mean


def crossfit_scores(classes: Classes, config: GateConfig) -> list[np.ndarray]:
    """z (N, F) of every class, each row scored without its group; order of `everything`."""
    everything = classes.everything()
    folds = folds_of(everything, config.folds)
    scores = [np.zeros((len(rows.x), len(classes.attacks))) for rows in everything]
    for fold in range(config.folds):
        inside = [each == fold for each in folds]
        kept = [rows.outside(part) for rows, part in zip(everything, inside, strict=True)]
        filters, mean = discriminants(kept, classes, config)
        for z, rows, part in zip(scores, everything, inside, strict=True):
            z[part] = (rows.x[part] - mean) @ filters
    return scores
