"""Which visual and text tokens carry the attack: RBF kernel scores, without gradients.

Visual tokens are scored by how unevenly they relate to the text tokens, text tokens by how unevenly
they relate to each other:

    K_ij = exp(−d_ij² / median d²),   visual s_i = ‖(K H)_i‖²,   text s_i = ‖(H K H)_i‖²

with H = I − 11ᵀ/T, and s scaled to [0, 1]. In width ~4000 raw distances concentrate, and a few
massive channels decide them; so tokens are standardised by channel and set to unit length first,
which the released code leaves out. Pads must not be passed; template sinks are found by
`sink_mask`. A score is a ranking for showing and pooling, not a causal effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from torch import Tensor

from care.data.example import Example
from care.errors import FitError, UsageError
from care.models.hooks import read
from care.models.sites import Role, Site
from care.models.vlm import VLM
from care.statistics.moments import as_rows


@dataclass(frozen=True)
class TokenScores:
    """Scores of the tokens of one example with a picture."""

    example: Example
    """The example."""
    grid: tuple[int, int] | None
    """Rows and columns of the picture's tokens; None where they are no square."""
    visual_scores: tuple[float, ...]
    """Score of each visual token, row by row; none where there is no grid."""
    tokens: tuple[str, ...]
    """The text tokens."""
    text_scores: tuple[float, ...]
    """Score of each; 0 for sinks."""


def token_scores(
    vlm: VLM, examples: Sequence[Example], site: Site, each: int = 2
) -> list[TokenScores]:
    """Scores at `site` of the first `each` attacks with pictures of every suite."""
    wanted: dict[str, list[Example]] = {}
    for example in examples:
        if example.images and example.kind == "malicious":
            wanted.setdefault(example.suite, []).append(example)
    found = []
    for example in [e for group in wanted.values() for e in group[:each]]:
        batch = vlm.batch([example])
        with read(vlm, [site]) as recorder:
            vlm.forward(batch, logits_to_keep=1)
            h, roles = recorder[site]
        found.append(_scores(vlm, example, batch.inputs["input_ids"][0], h[0].float(), roles[0]))
    return found


def _scores(vlm: VLM, example: Example, ids: Tensor, h: Tensor, roles: Tensor) -> TokenScores:
    """Scores of one example from h (T, D); sinks among the text tokens score 0."""
    visual, text = h[roles == Role.IMAGE].cpu().numpy(), h[roles == Role.TEXT].cpu().numpy()
    sinks = sink_mask(text)
    words = np.zeros(len(text))
    words[~sinks] = text_scores(text[~sinks])
    side = round(len(visual) ** 0.5)
    square = side * side == len(visual)
    return TokenScores(
        example=example,
        grid=(side, side) if square else None,
        visual_scores=tuple(visual_scores(visual, text[~sinks]).tolist()) if square else (),
        tokens=tuple(vlm.tokenizer.decode([int(i)]) for i in ids[roles == Role.TEXT]),
        text_scores=tuple(words.tolist()),
    )


def visual_scores(visual: Any, text: Any) -> np.ndarray:
    """Scores in [0, 1] of visual tokens (V, D) against text tokens (T, D); (V,) float64.

    Source: CARE (arXiv 2603.27240), one-sided centred cross kernel, on standardised tokens.

    Raises:
        FitError: fewer than two text tokens, different widths, or NaN.
    """
    v, t = _both(visual, text)
    scale = np.sqrt((v.var(axis=0) * len(v) + t.var(axis=0) * len(t)) / (len(v) + len(t)))
    return _cross_energy(_standardise(v, scale), _standardise(t, scale))


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


def sink_mask(tokens: Any, factor: float = 4.0) -> np.ndarray:
    """True for tokens (T, D) whose norm exceeds `factor` times the median norm; (T,) bool.

    Such attention sinks (the first token, some template tokens) carry massive activations that
    don't depend on the content; leave them out before scoring and pooling.
    """
    if factor <= 1.0:
        raise UsageError(f"the factor must exceed 1, got {factor}")
    lengths = np.linalg.norm(as_rows(tokens, "tokens"), axis=1)
    return lengths > factor * np.median(lengths)


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
