"""RBF kernel scores of tokens: which visual and text tokens stand out, without gradients.

Visual tokens are scored by how unevenly they relate to the text tokens, text tokens by how unevenly
they relate to each other:

    K_ij = exp(−D_ij / 2σ²) = exp(−D_ij / median D),  D_ij = ‖x_i − x_j‖²,  σ = √(0.5 median D)
    visual s_i = ‖(K H)_i‖²  (one-sided centring),    text s_i = ‖(H K H)_i‖²  (two-sided)

with H = I − 11ᵀ/T, and s scaled to [0, 1]; a token's distance to itself is no part of the median.
Source: CARE (arXiv 2603.27240). In width ~4000 raw distances concentrate, and a few massive
channels decide them. `standardised` tokens don't have that fault, and `sink_mask` finds the tokens
with massive activations. Pads must not be passed. A score is a ranking for showing and pooling, not
a causal effect.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from scipy.spatial.distance import cdist

from care.errors import FitError, UsageError
from care.statistics.moments import Array, Rows, as_rows

RELEASE_WEIGHTS = (0.7, 0.3)
"""Of the mean squared distance and of |diag(HKH)| in the release's score of text tokens."""


def cross_scores(visual: Rows, text: Rows) -> Array:
    """Scores in [0, 1] of visual tokens (V, D) against text tokens (T, D); (V,) float64.

    Raises:
        FitError: fewer than two text tokens, different widths, or NaN.
    """
    v, t = _both(visual, text)
    squared = _squared_distances(v, t)
    kernel = _rbf(squared, squared)
    return _min_max(((kernel - kernel.mean(axis=1, keepdims=True)) ** 2).sum(axis=1))


def self_scores(text: Rows) -> Array:
    """Scores in [0, 1] of text tokens (T, D) by the energy of their row of H K H; (T,) float64.

    Raises:
        FitError: fewer than two tokens, or NaN.
    """
    return _min_max((_centred_kernel(_enough(as_rows(text, "text tokens"))) ** 2).sum(axis=1))


def release_scores(text: Rows) -> Array:
    """Scores in [0, 1] of text tokens (T, D) as the released code has them; (T,) float64.

        s_i = 0.7 · mean over j of D_ij + 0.3 · |(H K H)_ii|

    Distances are raw, 10 to 100 000 in a language model, and |(H K H)_ii| is at most 1: the kernel
    decides nothing, and the token that lies furthest from the others wins, which is one of massive
    activations or of the template.

    Raises:
        FitError: fewer than two tokens, or NaN.
    """
    t = _enough(as_rows(text, "text tokens"))
    far, inert = RELEASE_WEIGHTS
    distances = _squared_distances(t, t).mean(axis=1)
    return _min_max(far * distances + inert * np.abs(np.diagonal(_centred_kernel(t))))


def standardised(*groups: Rows) -> tuple[Array, ...]:
    """Groups of tokens (N, D), each centred, in units of the spread that they share, and then each
    token of length one (or zero)."""
    rows = [as_rows(group, "tokens") for group in groups]
    total = sum(len(group) for group in rows)
    variance = cast(Array, sum(group.var(axis=0) * len(group) for group in rows)) / total
    scale = np.where(variance > 0.0, np.sqrt(variance), 1.0)
    found: list[Array] = []
    for group in rows:
        centred = (group - group.mean(axis=0)) / scale
        lengths = np.linalg.norm(centred, axis=1, keepdims=True)
        found.append(centred / np.where(lengths > 0.0, lengths, 1.0))
    return tuple(found)


def sink_mask(tokens: Rows, factor: float = 4.0) -> np.ndarray:
    """True for tokens (T, D) whose norm exceeds `factor` times the median norm; (T,) bool.

    Such attention sinks (the first token, some template tokens) carry massive activations that
    don't depend on the content.
    """
    if factor <= 1.0:
        raise UsageError(f"the factor must exceed 1, got {factor}")
    lengths = np.linalg.norm(as_rows(tokens, "tokens"), axis=1)
    return lengths > factor * np.median(lengths)


def _both(visual: Rows, text: Rows) -> tuple[Array, Array]:
    v, t = as_rows(visual, "visual tokens"), _enough(as_rows(text, "text tokens"))
    if v.shape[1] != t.shape[1]:
        raise FitError(
            f"visual tokens have width {v.shape[1]} and text tokens {t.shape[1]}; take both at "
            "the same site"
        )
    return v, t


def _enough(text: Array) -> Array:
    if len(text) < 2:
        raise FitError(f"scores need at least 2 text tokens, got {len(text)}")
    return text


def _squared_distances(first: Array, second: Array) -> Array:
    return cast(Array, cdist(first, second, "sqeuclidean"))


def _centred_kernel(tokens: Array) -> Array:
    """H K H (T, T) of tokens (T, D)."""
    squared = _squared_distances(tokens, tokens)
    kernel = _rbf(squared, squared[~np.eye(len(tokens), dtype=bool)])
    return kernel - kernel.mean(axis=0) - kernel.mean(axis=1, keepdims=True) + kernel.mean()


def _rbf(squared: Array, reference: Array) -> Array:
    """exp(−D/median), that is σ² = median / 2; all ones when the median is zero."""
    median = float(np.median(reference))
    return np.exp(-squared / median) if median > 0.0 else np.ones_like(squared)


def _min_max(scores: Array) -> Array:
    low, high = float(scores.min()), float(scores.max())
    # Scores that differ by rounding alone are equal, and are all zero.
    if high - low <= 1e-12 * max(abs(high), 1.0):
        return np.zeros_like(scores)
    return (scores - low) / (high - low)
