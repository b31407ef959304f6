"""Fitting monitors: at which site, by which pooling, and from which score on they alarm.

Harmful are, of requests, malicious ones whose goal stands in their text; of answers and exchanges,
those of attacks that worked. Harmless is the rest, by kind: refusals are one. At each candidate
site a detector is fitted in closed form (`detector`). Its threshold is the least score that, of
*each* kind of harmless validation examples and cross-fitted examples to fit on, at most the stated
share exceeds,

    threshold = max over kinds k of the (1 − false_alarms) quantile of s in k

The candidate is taken that then catches most, meaned over the families of harmful validation
examples; where several are alike, the one with the larger area under the ROC curve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from care.defenses.monitors.detector import SHRINKAGE, Detector, Families, crossfit, fit_detector
from care.defenses.monitors.monitor import POOLINGS, Monitor, Pooling, checkpoints, pooled
from care.defenses.monitors.reading import Exchange, Reads, encoded, readable
from care.errors import UsageError
from care.models.short_pass import activations_of
from care.models.sites import Site, SiteKind
from care.statistics.crossfit import FamilyRows

if TYPE_CHECKING:
    from care.models.vlm import VLM

Base = Literal["mean", "last"]
BASES: tuple[Base, ...] = get_args(Base)
"""How activations are pooled to fit a detector; a window is scored by that of the mean."""

_LEAST = 8
"""Families and kinds with fewer examples are taken together."""


@dataclass(frozen=True)
class MonitorConfig:
    """How monitors are fitted."""

    kinds: tuple[SiteKind, ...] = ("ffn_out", "mhsa_out", "layer_out")
    """Kinds of sites that are tried."""
    depths: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8)
    """Relative depths that are tried."""
    poolings: tuple[Pooling, ...] = POOLINGS
    """Ways to pool that are tried."""
    shrinkage: float = SHRINKAGE
    """Weight of the diagonal in a detector's covariance."""
    false_alarms: float = 0.04
    """Greatest share of each kind of harmless examples that may raise the alarm."""

    def __post_init__(self) -> None:
        if not (0 < self.false_alarms < 1 and 0 < self.shrinkage <= 1):
            raise UsageError(
                "false_alarms must lie in (0, 1) and shrinkage in (0, 1], got "
                f"{self.false_alarms} and {self.shrinkage}."
            )
        if not (self.kinds and self.depths and self.poolings):
            raise UsageError("A monitor needs at least one kind of site, depth and pooling to try.")


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


Placed = tuple[int, Labelled]
"""An example and its place among those that were passed."""


@dataclass(frozen=True)
class Tried:
    """One candidate and what it does on validation."""

    site: Site
    """Where it reads."""
    pooling: Pooling
    """How it pools."""
    caught: Mapping[str, float]
    """Share of each family of harmful examples above the threshold."""
    auc: float
    """Area under the ROC curve, harmful against harmless."""


@dataclass(frozen=True, eq=False)
class MonitorFit:
    """The best candidate, what it makes of what it was chosen on, and all that were tried."""

    reads: Reads
    """What it reads."""
    detector: Detector
    """Its detector."""
    scores: Mapping[int, float]
    """Greatest score of each example that can be read, by its place among those judged."""
    harmless: tuple[tuple[str, float], ...]
    """(kind, score) of every harmless example that thresholds rest on."""
    tried: tuple[Tried, ...]
    """All candidates, best first; this is the first."""

    def monitor(self, false_alarms: float) -> Monitor:
        """The monitor at which at most this share of every harmless kind raises the alarm."""
        threshold = stated_threshold(self.harmless, false_alarms)
        best = self.tried[0]
        return Monitor(self.reads, threshold, best.site, self.detector, best.pooling)


def sites_of(vlm: VLM, config: MonitorConfig) -> list[Site]:
    """The sites that are tried."""
    last = vlm.anatomy.n_layers - 1
    layers = dict.fromkeys(round(depth * last) for depth in config.depths)
    return [Site(layer, kind) for layer in layers for kind in config.kinds]


def fit_monitor(
    vlm: VLM,
    reads: Reads,
    examples: Sequence[Labelled],
    validation: Sequence[Labelled] = (),
    config: MonitorConfig | None = None,
    *,
    batch_size: int = 32,
) -> MonitorFit:
    """Fit a monitor on labelled examples, and choose its site, pooling and threshold on others.

    Without `validation` the cross-fitted scores of the examples to fit on take its place. FitError
    where harmful or harmless examples are missing or too few.
    """
    config = config or MonitorConfig()
    fit, held = (_readable(vlm, reads, part) for part in (examples, validation))
    bases: list[Base] = [base for base in BASES if base in _bases(config.poolings)]
    sites = sites_of(vlm, config)
    rows = pooled_activations(vlm, reads, [each for _, each in fit], sites, batch_size)
    detectors: dict[tuple[Site, Base], Detector] = {}
    crossed: dict[tuple[Site, Base], np.ndarray] = {}
    for site, base in product(sites, bases):
        harmful, harmless, order = _sides(rows[site, base], [each for _, each in fit])
        detectors[site, base] = fit_detector(harmful, harmless, config.shrinkage)
        parts = crossfit(harmful, harmless, config.shrinkage)
        crossed[site, base] = np.concatenate(list(parts.values()))[np.argsort(order)]
    scores = token_scores(vlm, reads, [each for _, each in held], detectors, batch_size)
    judged = held or fit
    found: list[tuple[Tried, np.ndarray, list[tuple[str, float]]]] = []
    for site, pooling in product(sites, config.poolings):
        pair = (site, _base(pooling))
        if held:
            known = np.array([highest(each[pair], reads, pooling) for each in scores])
        else:
            known = crossed[pair]
        # Cross-fitted scores are those of single tokens or of their mean; a window has none.
        also = [(fit, crossed[pair])] if held and pooling != "window" else []
        if not held and pooling == "window":
            continue
        harmless = _harmless([(judged, known), *also])
        threshold = stated_threshold(harmless, config.false_alarms)
        found.append((_tried(site, pooling, judged, known, threshold), known, harmless))
    found.sort(key=lambda each: (-_mean(each[0].caught), -each[0].auc))
    best, known, harmless = found[0]
    return MonitorFit(
        reads,
        detectors[best.site, _base(best.pooling)],
        {place: float(score) for (place, _), score in zip(judged, known, strict=True)},
        tuple(harmless),
        tuple(tried for tried, _, _ in found),
    )


# -- activations -----------------------------------------------------------------------------------


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
    shown = [each.exchange.request for each in examples]
    after = [each.exchange.answer for each in examples] if reads == "exchange" else None

    def read(chunk: list[int]) -> list[dict[Any, np.ndarray]]:
        batch, counted = encoded(vlm, reads, [examples[place].exchange for place in chunk])
        return work(activations_of(vlm, batch, sites), counted)

    return vlm.in_batches(shown, batch_size, read, extra=after) if shown else []


# -- candidates ------------------------------------------------------------------------------------


def _tried(
    site: Site, pooling: Pooling, judged: Sequence[Placed], scores: np.ndarray, threshold: float
) -> Tried:
    harmful = np.array([each.harmful for _, each in judged])
    caught: dict[str, list[bool]] = {}
    for (_, each), score in zip(judged, scores, strict=True):
        if each.harmful:
            caught.setdefault(each.kind, []).append(bool(score > threshold))
    shares = {kind: float(np.mean(part)) for kind, part in caught.items()}
    return Tried(site, pooling, shares, auc(scores[harmful], scores[~harmful]))


def _harmless(parts: Sequence[tuple[Sequence[Placed], np.ndarray]]) -> list[tuple[str, float]]:
    return [
        (each.kind, float(score))
        for examples, scores in parts
        for (_, each), score in zip(examples, scores, strict=True)
        if not each.harmful
    ]


def highest(scores: np.ndarray, reads: Reads, pooling: Pooling) -> float:
    """The greatest pooled score of all readings of one example."""
    at = [len(scores)] if reads == "request" else checkpoints(len(scores))
    return float(pooled(scores, pooling, at).max())


def stated_threshold(harmless: Sequence[tuple[str, float]], share: float) -> float:
    """The least score that at most `share` of every kind of (kind, score) exceeds.

    Kinds of fewer than 8 are taken together.
    """
    kinds = _merged([kind for kind, _ in harmless])
    scores = np.array([score for _, score in harmless])
    return max(
        float(np.quantile(scores[[kind == name for kind in kinds]], 1 - share, method="higher"))
        for name in dict.fromkeys(kinds)
    )


def auc(harmful: np.ndarray, harmless: np.ndarray) -> float:
    """Area under the ROC curve: how often a harmful score exceeds a harmless one; ties count half.

    0.5 where a side is empty.
    """
    n, m = len(harmful), len(harmless)
    if n == 0 or m == 0:
        return 0.5
    ranks = rankdata(np.concatenate([harmful, harmless]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def _sides(x: np.ndarray, examples: Sequence[Labelled]) -> tuple[Families, Families, np.ndarray]:
    """Rows of the harmful by family and of the harmless by kind, and the order of both."""
    sides: list[dict[str, FamilyRows]] = []
    order: list[int] = []
    for harmful in (True, False):
        places = [n for n, each in enumerate(examples) if each.harmful is harmful]
        kinds = _merged([examples[n].kind for n in places])
        side = {}
        for name in dict.fromkeys(kinds):
            own = [n for n, kind in zip(places, kinds, strict=True) if kind == name]
            side[f"{name} ({'harmful' if harmful else 'harmless'})"] = FamilyRows(
                x[own], [examples[n].group for n in own]
            )
            order += own
        sides.append(side)
    return sides[0], sides[1], np.array(order)


def _merged(kinds: Sequence[str]) -> list[str]:
    """Names of the kinds, small ones together, and with the largest where they are still few."""
    counts = Counter(kinds)
    few = sum(n for n in counts.values() if n < _LEAST)
    rest = "others" if few >= _LEAST or few == len(kinds) else counts.most_common(1)[0][0]
    return [kind if counts[kind] >= _LEAST else rest for kind in kinds]


def _readable(vlm: VLM, reads: Reads, examples: Sequence[Labelled]) -> list[Placed]:
    found = [readable(vlm, reads, each.exchange) for each in examples]
    return [
        (place, replace(each, exchange=shown))
        for place, (each, shown) in enumerate(zip(examples, found, strict=True))
        if shown is not None
    ]


def _mean(caught: Mapping[str, float]) -> float:
    return float(np.mean(list(caught.values()))) if caught else 0.0


def _bases(poolings: Sequence[Pooling]) -> set[Base]:
    return {_base(pooling) for pooling in poolings}


def _base(pooling: Pooling) -> Base:
    return "last" if pooling == "last" else "mean"
