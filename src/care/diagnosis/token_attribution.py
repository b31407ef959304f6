"""Which visual and text tokens carry the attack: RBF kernel scores, without gradients.

Visual tokens are scored by how unevenly they relate to the text tokens, text tokens by how unevenly
they relate to each other:

    K_ij = exp(−d_ij² / median d²),   visual s_i = ‖(K H)_i‖²,   text s_i = ‖(H K H)_i‖²

with H = I − 11ᵀ/T, and s scaled to [0, 1]. In width ~4000 raw distances concentrate, and a few
massive channels decide them; so tokens are standardised by channel and set to unit length first.
The official variants leave that out. Pads must not be passed; template sinks are found by
`sink_mask`. A score is a ranking for showing and pooling, not a causal effect.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from care.errors import FitError, UsageError
from care.statistics.moments import as_rows

_MEAN_DISTANCE_WEIGHT, _KERNEL_WEIGHT = 0.7, 0.3


def visual_scores(visual: Any, text: Any) -> np.ndarray:
    """Scores in [0, 1] of visual tokens (V, D) against text tokens (T, D); (V,) float64.

    Source: CARE (arXiv 2603.27240), one-sided centred cross kernel, on standardised tokens.

    Raises:
        FitError: fewer than two text tokens, different widths, or NaN.
    """
    v, t = _both(visual, text)
    scale = np.sqrt((v.var(axis=0) * len(v) + t.var(axis=0) * len(t)) / (len(v) + len(t)))
    return _cross_energy(_standardise(v, scale), _standardise(t, scale))


def official_visual_scores(visual: Any, text: Any) -> np.ndarray:
    """As `visual_scores` on raw tokens, which is what CARE's released code computes; (V,)."""
    return _cross_energy(*_both(visual, text))


def text_scores(text: Any) -> np.ndarray:
    """Scores in [0, 1] of text tokens (T, D) by the energy of their row of H K H; (T,) float64.

    Source: CARE (arXiv 2603.27240), two-sided centred kernel, on standardised tokens.

    Raises:
        FitError: fewer than two tokens, or NaN.
    """
    t = _enough(as_rows(text, "text tokens"))
    squared = _squared_distances(*(2 * [_standardise(t, t.std(axis=0))]))
    kernel = _rbf(squared, squared[~np.eye(len(t), dtype=bool)])
    return _min_max((_centre_both(kernel) ** 2).sum(axis=1))


def official_text_scores(text: Any) -> np.ndarray:
    """CARE's released "self_hsic" score of text tokens (T, D); (T,) float64.

    0.7 × mean squared distance to the other tokens + 0.3 × |diag(H K H)|, then min–max. The
    distances are unscaled, so the furthest token wins whatever the kernel says.
    """
    t = _enough(as_rows(text, "text tokens"))
    squared = _squared_distances(t, t)
    kernel = _rbf(squared, squared)
    distance = squared.sum(axis=1) / (len(t) - 1)
    centred = np.abs(np.diagonal(_centre_both(kernel)))
    return _min_max(_MEAN_DISTANCE_WEIGHT * distance + _KERNEL_WEIGHT * centred)


def sink_mask(tokens: Any, factor: float = 4.0) -> np.ndarray:
    """True for tokens (T, D) whose norm exceeds `factor` times the median norm; (T,) bool.

    Such attention sinks (the first token, some template tokens) carry massive activations that
    don't depend on the content; leave them out before scoring and pooling.
    """
    if factor <= 1.0:
        raise UsageError(f"the factor must exceed 1, got {factor}")
    lengths = np.linalg.norm(as_rows(tokens, "tokens"), axis=1)
    return lengths > factor * np.median(lengths)


def top_fraction(scores: Any, q: float) -> np.ndarray:
    """Mask (T,) bool of the ⌈q T⌉ highest scores, at least one; ties go to the earlier token."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise UsageError(f"scores must be a non-empty list of finite numbers, got {values.shape}")
    if not 0.0 < q <= 1.0:
        raise UsageError(f"the fraction must lie in (0, 1], got {q}")
    # The tiny margin keeps ceil(0.2 * 10 + rounding) from becoming 3.
    count = max(1, int(np.ceil(q * len(values) - 1e-9)))
    mask = np.zeros(len(values), dtype=bool)
    mask[np.argsort(-values, kind="stable")[:count]] = True
    return mask


def _both(visual: Any, text: Any) -> tuple[np.ndarray, np.ndarray]:
    v, t = as_rows(visual, "visual tokens"), _enough(as_rows(text, "text tokens"))
    if v.shape[1] != t.shape[1]:
        raise FitError(
            f"visual tokens have width {v.shape[1]} and text tokens {t.shape[1]}; take both at "
            "the same site"
        )
    return v, t


def _enough(text: np.ndarray) -> np.ndarray:
    if len(text) < 2:
        raise FitError(f"scores need at least 2 text tokens, got {len(text)}")
    return text


def _standardise(tokens: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Centred tokens in units of `scale` (D,), each of length one (or zero)."""
    centred = (tokens - tokens.mean(axis=0)) / np.where(scale > 0.0, scale, 1.0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(lengths > 0.0, lengths, 1.0)


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return cdist(first, second, "sqeuclidean")


def _rbf(squared: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """exp(−d²/median), that is σ² = median / 2; all ones when the median is zero."""
    median = float(np.median(reference))
    return np.exp(-squared / median) if median > 0.0 else np.ones_like(squared)


def _cross_energy(visual: np.ndarray, text: np.ndarray) -> np.ndarray:
    squared = _squared_distances(visual, text)
    kernel = _rbf(squared, squared)
    return _min_max(((kernel - kernel.mean(axis=1, keepdims=True)) ** 2).sum(axis=1))


def _centre_both(kernel: np.ndarray) -> np.ndarray:
    return kernel - kernel.mean(axis=0) - kernel.mean(axis=1, keepdims=True) + kernel.mean()


def _min_max(scores: np.ndarray) -> np.ndarray:
    low, high = scores.min(), scores.max()
    # Scores that differ by rounding alone are equal, and are all zero.
    if high - low <= 1e-12 * max(abs(high), 1.0):
        return np.zeros_like(scores)
    return (scores - low) / (high - low)
