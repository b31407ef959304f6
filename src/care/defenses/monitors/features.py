"""Activations of labelled examples as monitors read them: pooled to fit on, scored token by token.

All sites are taken in one pass over the examples. It is left after the last of them, unless refusal
log-odds are asked for as well, which the end of the pass gives. Not here: what is fitted
(`detector`) and which site is taken (`fitting`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from care.defenses.monitors.detector import Detector
from care.defenses.monitors.monitor import pooled_rows, read_at
from care.defenses.monitors.reading import (
    Exchange,
    Reads,
    over_batches,
    readable,
    whole_pass,
)
from care.defenses.monitors.results import Pooling
from care.models.short_pass import activations_of
from care.models.sites import Site

if TYPE_CHECKING:
    from care.models.batches import Batch
    from care.models.vlm import VLM

Base = Literal["mean", "last"]
BASES: tuple[Base, ...] = get_args(Base)
"""How activations are pooled to fit a detector: over the counted tokens, or the last of them."""


@dataclass(frozen=True)
class Tag:
    """What an example is like."""

    harmful: bool
    """Of a request, that what it asks for is; of an answer, that it does it."""
    kind: str
    """Family of attacks, or kind of harmless examples."""
    group: str
    """What must not be split between folds: the goal."""


@dataclass(frozen=True)
class Labelled:
    """An exchange, whether it is harmful, and what it is like."""

    exchange: Exchange
    """Request and answer."""
    harmful: bool
    """Of a request, that what it asks for is; of an answer, that it does it."""
    kind: str
    """Family of attacks, or kind of harmless examples."""
    group: str
    """What must not be split between folds: the goal."""

    @property
    def tag(self) -> Tag:
        """What it is like."""
        return Tag(self.harmful, self.kind, self.group)


def only_readable(
    vlm: VLM, reads: Reads, examples: Sequence[Labelled]
) -> tuple[list[int], list[Labelled]]:
    """Places and forms of the examples in which there is something to read."""
    found = [readable(vlm, reads, each.exchange) for each in examples]
    places = [place for place, shown in enumerate(found) if shown is not None]
    shown = [each for each in found if each is not None]
    return places, [
        replace(examples[place], exchange=each) for place, each in zip(places, shown, strict=True)
    ]


Pair = tuple[Site, Base]
"""Where a detector is fitted, and on what."""


@dataclass(frozen=True)
class ReadText:
    """What is made of the n counted tokens of one text."""

    scores: Mapping[Pair, np.ndarray]
    """Score (n,) of each token by every detector."""
    log_odds: float | None
    """Refusal log-odds at its end; None of an exchange."""


def pooled_activations(
    vlm: VLM, reads: Reads, examples: Sequence[Labelled], pairs: Sequence[Pair], batch_size: int
) -> dict[Pair, np.ndarray]:
    """Activations (N, D) of readable examples at each site, the mean or the last counted token."""
    sites = list(dict.fromkeys(site for site, _ in pairs))

    def pool(batch: Batch, counted: Tensor) -> list[dict[Pair, np.ndarray]]:
        h = activations_of(vlm, batch, sites)
        weights = counted.float() / counted.sum(dim=1, keepdim=True)
        ends = counted.long().cumsum(dim=1).argmax(dim=1)
        made = {}
        for site, base in pairs:
            if base == "mean":
                each = h[site].float()
                pooled = torch.einsum("btd,bt->bd", each, weights.to(each.device))
            else:
                pooled = h[site][torch.arange(len(ends)), ends.to(h[site].device)].float()
            made[site, base] = pooled.cpu().numpy()
        return [{pair: part[row] for pair, part in made.items()} for row in range(len(counted))]

    found = over_batches(vlm, reads, [each.exchange for each in examples], pool, batch_size)
    return {pair: np.array([each[pair] for each in found]) for pair in pairs}


def token_scores(
    vlm: VLM,
    reads: Reads,
    examples: Sequence[Labelled],
    detectors: Mapping[Pair, Detector],
    batch_size: int,
) -> list[ReadText]:
    """Scores of the counted tokens of each readable example, and its log-odds if it has any."""
    sites = list(dict.fromkeys(site for site, _ in detectors))

    def score(batch: Batch, counted: Tensor) -> list[ReadText]:
        if reads == "exchange":
            h, odds = activations_of(vlm, batch, sites), [None] * len(batch)
        else:
            h, odds = whole_pass(vlm, batch, sites)
        ends = counted.sum(dim=1).cumsum(dim=0).tolist()[:-1]
        made = {}
        for (site, base), detector in detectors.items():
            scores = detector.of_tokens(h[site][counted.to(h[site].device)])
            made[site, base] = np.split(scores.cpu().numpy(), ends)
        return [
            ReadText({pair: parts[row] for pair, parts in made.items()}, each)
            for row, each in enumerate(odds)
        ]

    return over_batches(vlm, reads, [each.exchange for each in examples], score, batch_size)


def reading_rows(
    vlm: VLM,
    reads: Reads,
    examples: Sequence[Labelled],
    site: Site,
    pooling: Pooling,
    batch_size: int,
) -> list[np.ndarray]:
    """Pooled activations (R, D) float32 of the R readings of each readable example."""

    def take(batch: Batch, counted: Tensor) -> list[np.ndarray]:
        h = activations_of(vlm, batch, [site])[site].float().cpu().numpy()
        own = [rows[kept] for rows, kept in zip(h, counted.cpu().numpy(), strict=True)]
        return [
            pooled_rows(rows, pooling, read_at(len(rows), reads)).astype(np.float32) for rows in own
        ]

    return over_batches(vlm, reads, [each.exchange for each in examples], take, batch_size)


def read_odds(vlm: VLM, reads: Reads, examples: Sequence[Labelled], batch_size: int) -> np.ndarray:
    """Refusal log-odds (N, 1) float32 at the ends of readable examples."""

    def read(batch: Batch, counted: Tensor) -> list[float]:
        return whole_pass(vlm, batch, [])[1]

    found = over_batches(vlm, reads, [each.exchange for each in examples], read, batch_size)
    return np.array(found, np.float32).reshape(-1, 1)
