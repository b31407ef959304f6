"""Fitting a monitor: at which site, by which pooling, and from which score on it alarms.

Harmful are, of requests, malicious ones whose goal stands in their text; of answers and exchanges,
those of attacks that worked. Harmless is the rest, by kind: refusals are one. At each candidate
site a detector is fitted in closed form (`detector`); of requests and answers the refusal log-odds,
to which nothing is fitted, are a candidate too. The threshold is the least score that, of *each*
kind of harmless validation examples and cross-fitted examples to fit on, at most the stated share
exceeds,

    threshold = max over kinds k of the (1 − α) quantile of s in k

The candidate is taken that then catches most, meaned over the families of harmful validation
examples; where several are alike, the one with the larger area under the ROC curve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from care.defenses.monitors.detector import (
    SHRINKAGE,
    Detector,
    DetectorFit,
    Families,
)
from care.defenses.monitors.features import (
    BASES,
    Base,
    Labelled,
    Pair,
    Tag,
    only_readable,
    pooled_activations,
    token_scores,
)
from care.defenses.monitors.monitor import Monitor, pooled, read_at
from care.defenses.monitors.results import (
    POOLINGS,
    MonitorTrial,
    Pooling,
    Reads,
    mean_share,
    shares,
)
from care.errors import FitError, UsageError
from care.models.sites import Site, SiteKind
from care.statistics.crossfit import FamilyRows

if TYPE_CHECKING:
    from care.models.vlm import VLM

_LEAST = 8
"""Families and kinds with fewer examples are taken together."""


@dataclass(frozen=True)
class MonitorConfig:
    """How monitors are fitted."""

    kinds: tuple[SiteKind, ...] = ("ffn_out", "mhsa_out", "layer_out")
    """Kinds of sites that are tried."""
    depths: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    """Relative depths that are tried."""
    poolings: tuple[Pooling, ...] = POOLINGS
    """Ways to pool that are tried, `last` of requests alone."""
    most: int = 150
    """Answers of each suite, harmful and harmless ones each, that detectors are fitted on, evenly
    spread over those there are: more cost time and change little."""
    shrinkage: float = SHRINKAGE
    """Weight of the diagonal in a detector's covariance."""
    false_alarms: float = 0.05
    """Greatest share of each kind of harmless examples that may raise an alarm: half of it by their
    requests, half by what is answered. The refusal log-odds of requests may raise half as many
    besides, of which the model would refuse the text."""

    def __post_init__(self) -> None:
        if not (0 < self.false_alarms < 1 and 0 < self.shrinkage <= 1):
            raise UsageError(
                "false_alarms must lie in (0, 1) and shrinkage in (0, 1], got "
                f"{self.false_alarms} and {self.shrinkage}."
            )
        pooled = any(pooling != "last" for pooling in self.poolings)
        if not (self.kinds and self.depths and pooled and self.most >= _LEAST):
            raise UsageError(
                "A monitor needs at least one kind of site, depth and pooling besides `last` to "
                f"try, and at least {_LEAST} examples of each kind; got most = {self.most}."
            )

    def share(self, monitors: int = 1) -> float:
        """The false alarms of one monitor of requests, or of each of several that share a half."""
        return self.false_alarms / 2 / monitors

    def pooled(self, reads: Reads) -> list[Pooling]:
        """The ways to pool that are tried for what is read."""
        return [each for each in self.poolings if each != "last" or reads == "request"]

    def sites(self, layers: int) -> list[Site]:
        """The sites that are tried in a decoder of so many layers."""
        found = dict.fromkeys(round(depth * (layers - 1)) for depth in self.depths)
        return [Site(layer, kind) for layer in found for kind in self.kinds]


Kinds = tuple[tuple[str, float], ...]
"""(kind, score) of harmless examples."""


@dataclass(frozen=True, eq=False)
class MonitorCandidate:
    """A detector at a site with a pooling, and its scores of the examples it is judged on."""

    reads: Reads
    """What it reads."""
    site: Site | None
    """Where; None for the refusal log-odds."""
    detector: Detector | None
    """What scores it; None for the refusal log-odds."""
    pooling: Pooling
    """How it pools."""
    scores: Mapping[int, float]
    """Greatest score of each example that can be read, by its place among those judged."""
    harmless: Kinds
    """Of all harmless examples that thresholds rest on."""
    x: np.ndarray | None = None
    """Pooled activations (N, D) of the examples to fit on; None for the refusal log-odds."""

    def monitor(self, false_alarms: float) -> Monitor:
        """The monitor at which at most this share of every harmless kind raises the alarm."""
        threshold = stated_threshold(self.harmless, false_alarms)
        alarmed = shares((kind, score > threshold) for kind, score in self.harmless)
        return Monitor(self.reads, threshold, self.site, self.detector, self.pooling, alarmed)

    def tried(self, judged: Sequence[Labelled], false_alarms: float) -> MonitorTrial:
        """What it catches of the examples it is judged on."""
        threshold = stated_threshold(self.harmless, false_alarms)
        scored = [(judged[place], score) for place, score in self.scores.items()]
        caught = shares((each.kind, score > threshold) for each, score in scored if each.harmful)
        harmful, harmless = (
            np.array([score for each, score in scored if each.harmful is side])
            for side in (True, False)
        )
        return MonitorTrial(self.site, self.pooling, caught, auc(harmful, harmless))


@dataclass(frozen=True, eq=False)
class MonitorFit:
    """The candidate that was taken, and what all do on what they were judged on, best first."""

    best: MonitorCandidate
    """The one that was taken."""
    tried: tuple[MonitorTrial, ...]
    """All of them; the first is the one that was taken."""
    fitted: tuple[Labelled, ...]
    """The examples to fit on, as they are read."""
    held: tuple[Labelled, ...]
    """The examples to choose on, as they are read; none where those to fit on took their place,
    but for refusal log-odds."""
    odds: MonitorFit | None = None
    """The same with the refusal log-odds taken, where they are a candidate and weren't taken."""


def fit_monitor(
    vlm: VLM,
    reads: Reads,
    examples: Sequence[Labelled],
    validation: Sequence[Labelled] = (),
    config: MonitorConfig | None = None,
    *,
    batch_size: int = 32,
) -> MonitorFit:
    """Fit a monitor on labelled examples, and choose its site and pooling on others.

    Without `validation` the cross-fitted scores of the examples to fit on take its place. FitError
    where harmful or harmless examples are missing or too few.
    """
    config = config or MonitorConfig()
    judged, share = validation or examples, config.share()
    for harmful, what in ((True, "harmful"), (False, "harmless")):
        if not any(each.harmful is harmful for each in judged):
            raise FitError(f"There is no {what} example to choose a monitor of the {reads} on.")
    fit, held = (only_readable(vlm, reads, part) for part in (examples, validation))
    found = _fitted(
        vlm, reads, fit, held if validation else fit, bool(validation), config, batch_size
    )
    tried = [(candidate.tried(judged, share), candidate) for candidate in found]
    tried.sort(key=lambda pair: (-mean_share(pair[0].caught), -pair[0].auc))
    trials = tuple(trial for trial, _ in tried)

    def taking(candidate: MonitorCandidate, odds: MonitorFit | None = None) -> MonitorFit:
        rests = held[1] if validation or candidate.site is not None else fit[1]
        return MonitorFit(candidate, trials, tuple(fit[1]), tuple(rests), odds)

    best = tried[0][1]
    others = (candidate for _, candidate in tried[1:] if candidate.site is None)
    return taking(best, next((taking(other) for other in others), None))


Readable = tuple[list[int], list[Labelled]]
"""Places and forms of the examples that can be read."""


def _fitted(
    vlm: VLM,
    reads: Reads,
    examples: Readable,
    judged: Readable,
    apart: bool,
    config: MonitorConfig,
    batch_size: int,
) -> list[MonitorCandidate]:
    """A candidate for each site and pooling, and the one that nothing is fitted to.

    `apart`: those that are judged on are others than those to fit on.
    """
    (_, fit), (held_places, held) = examples, judged
    sites, poolings = config.sites(vlm.anatomy.n_layers), config.pooled(reads)
    bases: list[Base] = [base for base in BASES if base in map(base_of, poolings)]
    rows = pooled_activations(vlm, reads, fit, list(product(sites, bases)), batch_size)
    detectors: dict[Pair, Detector] = {}
    crossed: dict[Pair, np.ndarray] = {}
    for pair, x in rows.items():
        tags = [each.tag for each in fit]
        detectors[pair], crossed[pair] = detector_of(x, tags, config.shrinkage, config.share())
    read = apart or reads != "exchange"
    tokens = token_scores(vlm, reads, held, detectors, batch_size) if read else []

    def candidate(
        site: Site | None, pooling: Pooling, scores: Sequence[float], harmless: Kinds
    ) -> MonitorCandidate:
        pair = None if site is None else (site, base_of(pooling))
        detector, x = (None, None) if pair is None else (detectors[pair], rows[pair])
        by_place = dict(zip(held_places, map(float, scores), strict=True))
        return MonitorCandidate(reads, site, detector, pooling, by_place, harmless, x)

    found = []
    for site, pooling in product(sites, poolings):
        pair = (site, base_of(pooling))
        # Cross-fitted scores are those of single tokens or of their mean; a window has none.
        harmless = harmless_of(fit, crossed[pair]) if pooling != "window" else ()
        if apart:
            scores = [highest(each.scores[pair], reads, pooling) for each in tokens]
            found.append(candidate(site, pooling, scores, harmless + harmless_of(held, scores)))
        elif harmless:
            found.append(candidate(site, pooling, list(crossed[pair]), harmless))
    odds = [each.log_odds for each in tokens if each.log_odds is not None]
    return [*found, candidate(None, "last", odds, harmless_of(held, odds))] if odds else found


def detector_of(
    x: np.ndarray, tags: Sequence[Tag], shrinkage: float, share: float
) -> tuple[Detector, np.ndarray]:
    """The detector of rows x (N, D), and the cross-fitted score of each row (N,).

    How hard the harmless kinds are is told by `share` of their scores. FitError as of
    `DetectorFit`.
    """
    harmful, harmless, order = _sides(x, tags)
    fit = DetectorFit(harmful, harmless, shrinkage)
    weights = fit.hardness(share)
    parts = fit.crossfit(weights)
    return fit.detector(weights), np.concatenate(list(parts.values()))[np.argsort(order)]


# -- scores ----------------------------------------------------------------------------------------


def highest(scores: np.ndarray, reads: Reads, pooling: Pooling) -> float:
    """The greatest pooled score of all readings of one example."""
    return float(pooled(scores, pooling, read_at(len(scores), reads)).max())


def stated_threshold(harmless: Kinds, share: float) -> float:
    """The least score that at most `share` of every kind of (kind, score) exceeds.

    Kinds of fewer than 8 are taken together, and with the largest where they are few even so; that
    one is held to the share by itself too.
    """
    names = [kind for kind, _ in harmless]
    scores = np.array([score for _, score in harmless])
    large = [name for name, count in Counter(names).items() if count >= _LEAST]
    together = np.array(_merged(names))
    parts = [scores[together == name] for name in dict.fromkeys(together)]
    parts += [scores[np.array(names) == name] for name in large]
    return max(float(np.quantile(part, 1 - share, method="higher")) for part in parts)


def auc(harmful: np.ndarray, harmless: np.ndarray) -> float:
    """Area under the ROC curve: how often a harmful score exceeds a harmless one; ties count half.

    0.5 where a side is empty.
    """
    n, m = len(harmful), len(harmless)
    if n == 0 or m == 0:
        return 0.5
    ranks = rankdata(np.concatenate([harmful, harmless]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def _sides(x: np.ndarray, examples: Sequence[Tag]) -> tuple[Families, Families, np.ndarray]:
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


def harmless_of(
    examples: Sequence[Tag] | Sequence[Labelled], scores: Sequence[float] | np.ndarray
) -> Kinds:
    """Kinds and scores of the harmless ones."""
    return tuple(
        (each.kind, float(score))
        for each, score in zip(examples, scores, strict=True)
        if not each.harmful
    )


def base_of(pooling: Pooling) -> Base:
    """What the detectors of a pooling are fitted on."""
    return "last" if pooling == "last" else "mean"
