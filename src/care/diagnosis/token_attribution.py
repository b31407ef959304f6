"""Which visual and text tokens carry the attack, shown on examples of a report.

Scores are those of `care.statistics.token_kernels`, of tokens that are standardised by channel and
set to unit length, with template sinks left out: the paper's formula on tokens of which no massive
channel decides. What a fit makes of scores is in `care.defenses.repair.attribution`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from care.data.example import Example
from care.models.hooks import read
from care.models.sites import Role, Site
from care.models.vlm import VLM
from care.statistics.token_kernels import cross_scores, self_scores, sink_mask, standardised


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
    words[~sinks] = self_scores(*standardised(text[~sinks]))
    side = round(len(visual) ** 0.5)
    square = side * side == len(visual)
    return TokenScores(
        example=example,
        grid=(side, side) if square else None,
        visual_scores=_visual(visual, text[~sinks]) if square else (),
        tokens=tuple(vlm.tokenizer.decode([int(i)]) for i in ids[roles == Role.TEXT]),
        text_scores=tuple(words.tolist()),
    )


def _visual(visual: np.ndarray, text: np.ndarray) -> tuple[float, ...]:
    return tuple(cross_scores(*standardised(visual, text)).tolist())
