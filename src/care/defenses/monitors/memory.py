"""What a monitor remembers of its fit: the rows that its detector and threshold rest on.

    fitted   pooled activations of the examples to fit on, with kind, group and whether harmful
    held     of each harmless example to choose on the pooled activations at every reading

The detector is solved from the first, as in `fitting`; the threshold is the stated quantile of
their cross-fitted scores and of the greatest score of each held example: pooling is linear, so that
the score of a reading is that of its pooled activations,

    mean     those of the first t tokens
    window   those of every 8 tokens that follow each other
    last     those of the last token

and a new detector scores the held examples anew without the model. Rows are float32, as read; the
thresholds of a fit are of scores that are summed token by token, and differ by rounding. New
examples join those to fit on; of the refusal log-odds, to which nothing is fitted, the harmless
ones join those that are held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from care.data.digests import text_digest
from care.defenses.monitors.detector import Detector
from care.defenses.monitors.features import (
    Labelled,
    Tag,
    only_readable,
    pooled_activations,
    read_odds,
    reading_rows,
)
from care.defenses.monitors.fitting import (
    MonitorConfig,
    MonitorFit,
    base_of,
    detector_of,
    harmless_of,
    stated_threshold,
)
from care.defenses.monitors.monitor import Monitor
from care.defenses.monitors.results import Pooling, Reads, shares
from care.models.sites import Site

if TYPE_CHECKING:
    from care.models.vlm import VLM


@dataclass(frozen=True, eq=False)
class FittedRows:
    """Examples to fit on."""

    x: np.ndarray
    """Pooled activations (N, D) float32."""
    tags: tuple[Tag, ...]
    """What each is like; groups as digests."""

    def joined(self, x: np.ndarray, tags: Sequence[Tag]) -> FittedRows:
        """The same with further rows."""
        return FittedRows(np.concatenate([self.x, x]), (*self.tags, *tags))


@dataclass(frozen=True, eq=False)
class HeldRows:
    """Harmless examples that a threshold rests on besides."""

    x: np.ndarray
    """Pooled activations (R, D) float32 of all readings, or log-odds (R, 1)."""
    of: np.ndarray
    """To which example each reading belongs (R,) int32."""
    kinds: tuple[str, ...]
    """Kind of each example."""

    def scores(self, detector: Detector | None) -> list[float]:
        """The greatest score of each example."""
        scores = self.x[:, 0].astype(np.float64) if detector is None else detector(self.x)
        best = np.full(len(self.kinds), -np.inf)
        np.maximum.at(best, self.of, scores)
        return best.tolist()

    def joined(self, x: np.ndarray, kinds: Sequence[str]) -> HeldRows:
        """The same with further examples of one reading each."""
        places = np.arange(len(self.kinds), len(self.kinds) + len(kinds), dtype=np.int32)
        both = np.concatenate([self.x, x]), np.concatenate([self.of, places])
        return HeldRows(*both, (*self.kinds, *kinds))


@dataclass(frozen=True, eq=False)
class MonitorMemory:
    """What one monitor rests on."""

    reads: Reads
    """What it reads."""
    site: Site | None
    """Where; None for the refusal log-odds."""
    pooling: Pooling
    """How it pools."""
    fitted: FittedRows
    """Examples to fit on; of log-odds none."""
    held: HeldRows
    """Harmless examples that the threshold rests on besides."""
    shrinkage: float
    """Weight of the diagonal in a detector's covariance."""
    hard: float
    """Share of harmless scores that tells how hard the kinds are."""
    share: float
    """Greatest share of each harmless kind that may raise the alarm."""

    @property
    def key(self) -> tuple[Reads, Site | None, Pooling]:
        """Which monitor it belongs to."""
        return self.reads, self.site, self.pooling

    def monitor(self) -> Monitor:
        """The monitor that is fitted on what is remembered; FitError as of `DetectorFit`."""
        detector, harmless = None, ()
        if self.site is not None:
            tags = self.fitted.tags
            detector, crossed = detector_of(self.fitted.x, tags, self.shrinkage, self.hard)
            # Cross-fitted scores are those of single tokens or of their mean; a window has none.
            harmless = harmless_of(tags, crossed) if self.pooling != "window" else ()
        held = self.held.scores(detector)
        harmless += tuple(zip(self.held.kinds, held, strict=True))
        threshold = stated_threshold(harmless, self.share)
        alarmed = shares((kind, score > threshold) for kind, score in harmless)
        return Monitor(self.reads, threshold, self.site, detector, self.pooling, alarmed)

    def joined(self, vlm: VLM, examples: Sequence[Labelled], batch_size: int = 32) -> MonitorMemory:
        """The same with further examples to fit on, which the model reads."""
        _, shown = only_readable(vlm, self.reads, examples)
        if self.site is None:
            shown = [each for each in shown if not each.harmful]
        if not shown:
            return self
        if self.site is None:
            odds = read_odds(vlm, self.reads, shown, batch_size)
            return replace(self, held=self.held.joined(odds, [each.kind for each in shown]))
        pair = (self.site, base_of(self.pooling))
        x = pooled_activations(vlm, self.reads, shown, [pair], batch_size)[pair]
        return replace(self, fitted=self.fitted.joined(x, digested(shown)))


def remembered(
    vlm: VLM, fit: MonitorFit, config: MonitorConfig, share: float, batch_size: int = 32
) -> MonitorMemory:
    """What the monitor that a fit has taken rests on, with `share` of false alarms; its held
    examples are read once more."""
    best, held = fit.best, [each for each in fit.held if not each.harmful]
    if best.site is None:
        rows = [row[None] for row in read_odds(vlm, best.reads, held, batch_size)]
    elif held:
        rows = reading_rows(vlm, best.reads, held, best.site, best.pooling, batch_size)
    else:
        rows = []
    width = 1 if best.x is None else best.x.shape[1]
    empty = np.zeros((0, width), np.float32)
    return MonitorMemory(
        best.reads,
        best.site,
        best.pooling,
        FittedRows(empty, ()) if best.x is None else FittedRows(best.x, digested(fit.fitted)),
        HeldRows(
            np.concatenate([empty, *rows]),
            np.array([place for place, row in enumerate(rows) for _ in row], np.int32),
            tuple(each.kind for each in held),
        ),
        config.shrinkage,
        config.share(),
        share,
    )


def digested(examples: Sequence[Labelled]) -> tuple[Tag, ...]:
    """What examples are like, without a goal in words."""
    return tuple(Tag(each.harmful, each.kind, text_digest(each.group)) for each in examples)
