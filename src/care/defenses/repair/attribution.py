"""Attributed tokens: the top share of an example's tokens, whose mean is what a fit gets of it.

An example has one row of activations per site, the mean over tokens. Without attribution these are
all tokens of a scope; with it those with the greatest kernel scores
(`care.statistics.token_kernels`) among the

    image   tokens of the picture, against the text tokens of the request
    text    tokens of the answer, against each other; in the release's form the tokens after the
            last picture, those of the request and of the answer

n tokens leave the ⌊share · n⌋ greatest, at least one; of equal scores the first. They are chosen
for each site by the activations there, as in the release, and padding is never among them, so that
a row doesn't depend on what an example is batched with. One token can't be compared with others and
is taken as it is. Scores are of raw activations, as the formula is printed; `standardise` takes
them as the report does. Source: CARE (Fu et al. 2026, arXiv 2603.27240).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from care.errors import FitError, UsageError
from care.models.sites import Role
from care.statistics.token_kernels import (
    cross_scores,
    release_scores,
    self_scores,
    sink_mask,
    standardised,
)

TextScore = Literal["kernel", "release"]


@dataclass(frozen=True)
class AttributionConfig:
    """Which tokens the moments are taken over."""

    visual_share: float = 0.125
    """Share of the visual tokens that is kept, those of the greatest scores; the paper keeps the
    top k, and the release an eighth."""
    text_share: float = 0.2
    """The same of text tokens; a fifth in the release."""
    text_score: TextScore = "kernel"
    """Of text tokens: `kernel`, the energy of a row of the centred self-kernel, on the tokens of
    the answer; `release`, what the released code computes, in which raw distances drown the kernel,
    on those of the request as well."""
    standardise: bool = False
    """Standardise channels and set tokens to unit length before they are scored, and leave out
    attention sinks; otherwise raw activations are compared, of which a few massive channels
    decide."""

    def __post_init__(self) -> None:
        for name in ("visual_share", "text_share"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise UsageError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        if self.text_score not in get_args(TextScore):
            raise UsageError(f"text_score must be kernel or release, got {self.text_score!r}")


def attributed(
    h: Tensor, roles: Tensor, modality: Literal["image", "text"], config: AttributionConfig
) -> Tensor:
    """Mean activation of each row over its attributed tokens: (B, T, D), (B, T) -> (B, D).

    Without answers in the rows, the text tokens are those of the request. Raises FitError for a row
    without a token of the modality, or with a picture and fewer than two text tokens.
    """
    rows: list[Tensor] = []
    for own, role in zip(h.float(), roles, strict=True):
        places = _places(role, modality, config)
        if len(places) == 0:
            raise FitError(f"an example has no {modality} token; fit on examples that have one")
        found = own[places]
        share = config.visual_share if modality == "image" else config.text_share
        count = max(1, math.floor(share * len(places) + 1e-9))
        if count < len(places):
            others = own[role == Role.TEXT] if modality == "image" else None
            best = _best(found, others, count, config)
            found = found[torch.from_numpy(best).to(found.device)]
        rows.append(found.mean(dim=0))
    return torch.stack(rows)


def _places(roles: Tensor, modality: str, config: AttributionConfig) -> Tensor:
    """Indices of the tokens (T,) that are scored."""
    if modality == "image":
        return (roles == Role.IMAGE).nonzero()[:, 0]
    answer = roles == Role.RESPONSE
    if config.text_score == "kernel" and bool(answer.any()):
        return answer.nonzero()[:, 0]
    worded = (roles == Role.TEXT) | answer
    pictured = (roles == Role.IMAGE).nonzero()[:, 0]
    if len(pictured):
        worded[: int(pictured[-1]) + 1] = False
    return worded.nonzero()[:, 0]


def _best(
    tokens: Tensor, others: Tensor | None, count: int, config: AttributionConfig
) -> np.ndarray:
    """Places (count,) in order of the tokens (N, D) with the greatest scores; `others` (T, D) are
    what visual tokens are compared with."""
    x = tokens.double().cpu().numpy()
    if others is not None:
        y = others.double().cpu().numpy()
        if config.standardise:
            x, y = standardised(x, y[~sink_mask(y)])
        scores = cross_scores(x, y)
    else:
        scorer = self_scores if config.text_score == "kernel" else release_scores
        scores = _without_sinks(x, scorer) if config.standardise else scorer(x)
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _without_sinks(x: np.ndarray, scorer: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Scores of standardised tokens (N, D); sinks come last."""
    sinks = sink_mask(x)
    scores = np.full(len(x), -1.0)
    scores[~sinks] = scorer(*standardised(x[~sinks])) if (~sinks).sum() > 1 else 0.0
    return scores
