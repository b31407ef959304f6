"""A monitor: one detector on what is read again as text, and the threshold above which it alarms.

Every counted token i has the score s_i = wᵀ(h_i − μ) of the detector at the monitor's site. Of the
first t of them is made, by the monitor's pooling,

    mean     (s_1 + … + s_t) / t
    window   the greatest mean of 8 tokens that follow each other: it can't be thinned out
    last     s_t; of a request that is where its answer is decided

and the score at t is compared with the threshold. A request is read at its end, an answer at 16,
32, 64, … tokens and at its end. Each reading is a pass of its own over what was there then, so that
an answer that is read while it is made raises the same alarm, to the bit, as one that is finished;
all of them together read less than three times its tokens. Where the request has raised an alarm
already, an answer does so at ½: from there on it is nearer to the mean of what is harmful (1) than
of what is harmless (0), and neither is the likelier to begin with. Without a detector the score is
the refusal log-odds of the text, in nats: the baseline that needs no fit, read at the end. One pass
over a request gives the scores of all monitors that read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from care.defenses.monitors.detector import Detector
from care.defenses.monitors.reading import (
    Exchange,
    beginning,
    over_batches,
    readable,
    whole_pass,
)
from care.defenses.monitors.results import POOLINGS, READS, Pooling, Reads
from care.errors import NotFiniteError, UsageError
from care.models.alarms import PICTURED, Alarm
from care.models.finite import not_finite
from care.models.short_pass import activations_of
from care.models.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

    from care.models.batches import Batch
    from care.models.vlm import VLM

FIRST = 16
"""Tokens of an answer after which it is read for the first time; then after twice as many."""
WINDOW = 8
"""Tokens of a window."""
SUSPECTED = 0.5
"""Score above which the answer to a request that has raised an alarm raises one."""


@dataclass(frozen=True, eq=False)
class Monitor:
    """One reading of requests, answers or exchanges, with its detector and threshold."""

    reads: Reads
    """What is read (`care.defenses.monitors.reading`)."""
    threshold: float
    """The score above which it alarms."""
    site: Site | None = None
    """Where the activations are taken; None for the refusal log-odds."""
    detector: Detector | None = None
    """What scores them; None for the refusal log-odds."""
    pooling: Pooling = "mean"
    """How the scores of the tokens are made one."""
    alarmed: Mapping[str, float] = field(default_factory=dict)
    """Share of each harmless suite's requests or bare answers, of those that the threshold rests
    on, that raise the alarm."""
    with_picture: bool = False
    """Whether a request is read beside its picture, which can then move the score: a control."""

    def __post_init__(self) -> None:
        if self.reads not in READS or self.pooling not in POOLINGS:
            raise UsageError(
                f"A monitor reads one of {', '.join(READS)} and pools by one of "
                f"{', '.join(POOLINGS)}, got {self.reads!r:.40} and {self.pooling!r:.40}."
            )
        if not np.isfinite(self.threshold):
            raise UsageError(f"The threshold of a monitor must be finite, got {self.threshold}.")
        if (self.site is None) != (self.detector is None):
            raise UsageError("A monitor has a site and a detector, or neither.")
        if self.with_picture and (self.reads != "request" or self.detector is None):
            raise UsageError("Beside its picture a request alone is read, and with a detector.")
        if self.detector is None and self.reads == "exchange":
            raise UsageError("An exchange has no refusal log-odds; fit a detector for it.")

    def scores(
        self, vlm: VLM, exchanges: Sequence[Exchange], batch_size: int = 32
    ) -> list[list[tuple[int, float]]]:
        """Of each exchange the (tokens read, score) of every reading; none of what has no text.

        Raises NotFiniteError where the model computes NaN or infinity.
        """
        readings = [self._readings(vlm, each) for each in exchanges]
        return self._read(vlm, readings, [np.inf] * len(readings), batch_size)

    def alarms(
        self,
        vlm: VLM,
        exchanges: Sequence[Exchange],
        batch_size: int = 32,
        suspected: Sequence[bool] | None = None,
        *,
        after: int = 0,
        ended: bool = True,
    ) -> list[Alarm | None]:
        """The first alarm that each exchange raises, if any.

        `suspected` says of each whether its request has raised one. Of answers that were read
        before, `after` so many tokens, later readings alone are made, and none at the end of those
        that haven't `ended`.
        """
        limits = [self.limit(before) for before in suspected or [False] * len(exchanges)]
        readings = [self._readings(vlm, each, after, ended) for each in exchanges]
        found = self._read(vlm, readings, limits, batch_size)
        return [
            self.alarm(*scores[-1], limit) if scores else None
            for scores, limit in zip(found, limits, strict=True)
        ]

    @property
    def called(self) -> str:
        """What its alarms are told by."""
        return PICTURED if self.with_picture else self.reads

    def limit(self, suspected: bool) -> float:
        """What a score has to exceed; less where the request has raised an alarm."""
        lowered = suspected and self.reads != "request" and self.detector is not None
        return min(self.threshold, SUSPECTED) if lowered else self.threshold

    def alarm(self, tokens: int, score: float, limit: float) -> Alarm | None:
        """The alarm that a score of so many tokens is, if it exceeds the limit."""
        if score <= limit:
            return None
        return Alarm(self.called, score, limit, 0 if self.reads == "request" else tokens)

    def _readings(
        self, vlm: VLM, exchange: Exchange, after: int = 0, ended: bool = True
    ) -> list[_Reading]:
        """What is read of an exchange, in turn; nothing of one that has no text."""
        whole = readable(vlm, self.reads, exchange, self.with_picture)
        if whole is None:
            return []
        if self.reads == "request" or self.detector is None:
            return [(None, whole)] if ended else []
        *begun, _ = checkpoints(len(vlm.response_ids(whole.answer)))
        found: list[_Reading] = [
            (tokens, beginning(vlm, self.reads, whole, tokens))
            for tokens in begun
            if tokens > after
        ]
        return [*found, (None, whole)] if ended else found

    def _read(
        self,
        vlm: VLM,
        readings: Sequence[Sequence[_Reading]],
        limits: Sequence[float],
        batch_size: int,
    ) -> list[list[tuple[int, float]]]:
        """(tokens, score) of the readings of each exchange, to the first above its limit."""
        found: list[list[tuple[int, float]]] = [[] for _ in readings]
        for turn in range(max(map(len, readings), default=0)):
            places = [
                place
                for place, scores in enumerate(found)
                if len(readings[place]) > turn and all(s <= limits[place] for _, s in scores)
            ]
            # A turn's readings alone share batches: of one answer each is read for itself.
            scored = self._scored(vlm, [readings[place][turn][1] for place in places], batch_size)
            for place, (tokens, score) in zip(places, scored, strict=True):
                found[place].append((readings[place][turn][0] or tokens, score))
        return found

    def _scored(
        self, vlm: VLM, exchanges: Sequence[Exchange], batch_size: int
    ) -> list[tuple[int, float]]:
        """(tokens, score) of each exchange as it stands."""
        return [score for (score,) in _scored(vlm, [self], exchanges, batch_size)]

    def of_tokens(self, vlm: VLM, h: Tensor, counted: Tensor) -> list[tuple[int, float]]:
        """(tokens, score) of B texts, of activations h (B, T, D) at its site and those (B, T) of
        their tokens that count. NotFiniteError."""
        assert self.detector is not None
        scores = self.detector.of_tokens(h).cpu().numpy()
        rows = [s[own] for s, own in zip(scores, counted.cpu().numpy(), strict=True)]
        if not all(np.isfinite(row).all() for row in rows):
            raise NotFiniteError(not_finite(vlm.name, vlm.dtype))
        return [(len(row), float(pooled(row, self.pooling, [len(row)])[0])) for row in rows]


def first_alarms(
    vlm: VLM,
    monitors: Sequence[Monitor],
    exchanges: Sequence[Exchange],
    batch_size: int,
    suspected: Sequence[bool] | None = None,
    **read: Any,
) -> list[Alarm | None]:
    """The earliest alarm that each exchange raises with any monitor; as `Monitor.alarms`."""
    texts = [each for each in monitors if each.reads == "request" and not each.with_picture]
    apart = [each for each in monitors if each not in texts] if len(texts) > 1 else monitors
    each = [monitor.alarms(vlm, exchanges, batch_size, suspected, **read) for monitor in apart]
    if len(texts) > 1:
        each += _request_alarms(vlm, texts, exchanges, batch_size)
    return [
        min((alarm for alarm in alarms if alarm), key=lambda a: a.tokens, default=None)
        for alarms in (zip(*each, strict=True) if each else [()] * len(exchanges))
    ]


def _request_alarms(
    vlm: VLM, monitors: Sequence[Monitor], exchanges: Sequence[Exchange], batch_size: int
) -> list[list[Alarm | None]]:
    """Alarms of each monitor that reads the text of requests; all share a pass over it."""
    shown = [readable(vlm, "request", each) for each in exchanges]
    places = [place for place, each in enumerate(shown) if each is not None]
    scored = _scored(vlm, monitors, [each for each in shown if each is not None], batch_size)
    found: list[list[Alarm | None]] = [[None] * len(exchanges) for _ in monitors]
    for place, scores in zip(places, scored, strict=True):
        for alarms, monitor, score in zip(found, monitors, scores, strict=True):
            alarms[place] = monitor.alarm(*score, monitor.threshold)
    return found


def _scored(
    vlm: VLM, monitors: Sequence[Monitor], exchanges: Sequence[Exchange], batch_size: int
) -> list[tuple[tuple[int, float], ...]]:
    """(tokens, score) by each of monitors that read the same of readable exchanges.

    A pass is left after the last of their sites, unless refusal log-odds are read at its end.
    """
    sites = [each.site for each in monitors if each.site is not None]

    def score(batch: Batch, counted: Tensor) -> list[tuple[tuple[int, float], ...]]:
        if len(sites) == len(monitors):
            h, odds = activations_of(vlm, batch, sites), []
        else:
            h, odds = whole_pass(vlm, batch, sites)
        columns = [
            [(0, each) for each in odds]
            if monitor.site is None
            else monitor.of_tokens(vlm, h[monitor.site], counted)
            for monitor in monitors
        ]
        return list(zip(*columns, strict=True))

    return over_batches(vlm, monitors[0].reads, exchanges, score, batch_size)


_Reading = tuple[int | None, Exchange]
"""After how many tokens of an answer, None for its end, and what is there to read."""


def read_at(tokens: int, reads: Reads) -> list[int]:
    """After how many of its tokens something is read: a request at its end alone."""
    return [tokens] if reads == "request" else checkpoints(tokens)


def checkpoints(tokens: int) -> list[int]:
    """After how many tokens an answer of so many is read: 16, 32, 64, …, and at its end."""
    at: list[int] = []
    while FIRST << len(at) < tokens:
        at.append(FIRST << len(at))
    return [*at, tokens]


def pooled(scores: np.ndarray, pooling: Pooling, at: Sequence[int]) -> np.ndarray:
    """The pooled score of the first t of n token scores (n,), for each t of `at`."""
    ends = np.asarray(at) - 1
    if pooling == "last":
        return scores[ends]
    sums = np.cumsum(scores, dtype=np.float64)
    counts = np.arange(1, len(scores) + 1)
    if pooling == "mean":
        return (sums / counts)[ends]
    before = np.concatenate([np.zeros(WINDOW), sums])[: len(scores)]
    windows = (sums - before) / np.minimum(counts, WINDOW)
    # Shorter windows stand in until there are 8 tokens, and then no longer count.
    full = np.maximum.accumulate(windows[WINDOW - 1 :]) if len(scores) >= WINDOW else windows[:0]
    return np.concatenate([windows[: WINDOW - 1], full])[ends]


def pooled_rows(h: np.ndarray, pooling: Pooling, at: Sequence[int]) -> np.ndarray:
    """What the scores of `pooled` are of, (R, D) float64 of activations h (n, D).

    The greatest score of the rows is that of the readings; of windows that are full there is one
    row each, whenever they were read.
    """
    ends = np.asarray(at) - 1
    if pooling == "last":
        return h[ends].astype(np.float64)
    sums = np.cumsum(h, axis=0, dtype=np.float64)
    if pooling == "mean" or len(h) < WINDOW:
        return sums[ends] / (ends + 1)[:, None]
    before = np.concatenate([np.zeros((1, h.shape[1])), sums])[: len(h) - WINDOW + 1]
    return (sums[WINDOW - 1 :] - before) / WINDOW
