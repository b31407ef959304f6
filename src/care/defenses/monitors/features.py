"""Activations of labelled examples as monitors read them: pooled to fit on, scored token by token.

All sites are taken in one pass over the examples, which is left after the last of them. Not here:
what is fitted (`detector`) and which site is taken (`fitting`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from care.defenses.monitors.detector import Detector
from care.defenses.monitors.reading import Exchange, Reads, over_batches, readable
from care.models.short_pass import activations_of
from care.models.sites import Site

if TYPE_CHECKING:
    from care.models.batches import Batch
    from care.models.vlm import VLM

Base = Literal["mean", "last"]
BASES: tuple[Base, ...] = get_args(Base)
"""How activations are pooled to fit a detector: over the counted tokens, or the last of them."""


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


def pooled_activations(
    vlm: VLM, reads: Reads, examples: Sequence[Labelled], sites: Sequence[Site], batch_size: int
) -> dict[tuple[Site, Base], np.ndarray]:
    """Activations (N, D) of readable examples at each site, the mean and the last counted token."""
    pairs: list[tuple[Site, Base]] = list(product(sites, BASES))

    def work(h: Mapping[Site, Tensor], counted: Tensor) -> list[dict[Any, np.ndarray]]:
        weights = counted.float() / counted.sum(dim=1, keepdim=True)
        ends = counted.long().cumsum(dim=1).argmax(dim=1)
        made = {}
        for site, base in pairs:
            each = h[site].float()
            if base == "mean":
                made[site, base] = torch.einsum("btd,bt->bd", each, weights.to(each.device))
            else:
                made[site, base] = each[torch.arange(len(each)), ends.to(each.device)]
        arrays = {pair: part.cpu().numpy() for pair, part in made.items()}
        return [{pair: part[row] for pair, part in arrays.items()} for row in range(len(counted))]

    found = _over(vlm, reads, examples, sites, work, batch_size)
    return {pair: np.array([each[pair] for each in found]) for pair in pairs}


def token_scores(
    vlm: VLM,
    reads: Reads,
    examples: Sequence[Labelled],
    detectors: Mapping[tuple[Site, Base], Detector],
    batch_size: int,
) -> list[dict[tuple[Site, Base], np.ndarray]]:
    """Scores (n,) of the n counted tokens of each readable example, by every detector."""

    def work(h: Mapping[Site, Tensor], counted: Tensor) -> list[dict[Any, np.ndarray]]:
        made = {}
        for (site, base), detector in detectors.items():
            direction, mean = detector.on(h[site].device)
            made[site, base] = ((h[site].float() - mean) @ direction).cpu().numpy()
        own = counted.cpu().numpy()
        return [{pair: s[row][mask] for pair, s in made.items()} for row, mask in enumerate(own)]

    sites = list(dict.fromkeys(site for site, _ in detectors))
    return _over(vlm, reads, examples, sites, work, batch_size)


def _over(
    vlm: VLM,
    reads: Reads,
    examples: Sequence[Labelled],
    sites: Sequence[Site],
    work: Callable[[Mapping[Site, Tensor], Tensor], list[dict[Any, np.ndarray]]],
    batch_size: int,
) -> list[dict[Any, np.ndarray]]:
    """`work` on the activations at `sites` and the tokens that count, batch by batch."""

    def read(batch: Batch, counted: Tensor) -> list[dict[Any, np.ndarray]]:
        return work(activations_of(vlm, batch, sites), counted)

    return over_batches(vlm, reads, [each.exchange for each in examples], read, batch_size)
