"""What is told of monitors that were chosen: the sites and poolings tried, what else might watch.

A run's monitors.json and a report hold these as they are, so torch isn't imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from care.models.sites import Site
from care.typed import Share

Reads = Literal["request", "answer", "exchange"]
READS: tuple[Reads, ...] = get_args(Reads)
"""What a monitor reads (`care.defenses.monitors.reading`)."""

Pooling = Literal["mean", "window", "last"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
"""How the scores of tokens are made one (`care.defenses.monitors.monitor`)."""


@dataclass(frozen=True)
class MonitorTrial:
    """One site and pooling that was tried for a monitor, and what it does on validation."""

    site: Site | None
    """Where it would read; none for the refusal log-odds."""
    pooling: Pooling
    """How it would pool."""
    caught: Mapping[str, Share]
    """Family of harmful examples → share above the threshold."""
    auc: Share
    """Area under the ROC curve, harmful against harmless."""


@dataclass(frozen=True)
class Choice:
    """What might watch answers, and what it would do to the answers that it was chosen on."""

    reads: tuple[Reads, ...]
    """What its monitors read."""
    missed: Mapping[str, Share]
    """Attack suite → share of its requests that are answered harmfully without an alarm."""
    alarmed: Mapping[str, Share]
    """Harmless suite → share of its answers that raise an alarm."""


@dataclass(frozen=True)
class MonitorsTold:
    """What monitors were chosen between, without the numbers of detectors."""

    choices: tuple[Choice, ...]
    """All choices of what watches answers, best first: the first was taken."""
    tried: Mapping[Reads, tuple[MonitorTrial, ...]]
    """The sites and poolings tried for each reading, best first."""


def shares(told: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """Of each name the share of what is true."""
    by_name: dict[str, list[bool]] = {}
    for name, holds in told:
        by_name.setdefault(name, []).append(holds)
    return {name: float(np.mean(part)) for name, part in by_name.items()}


def mean_share(found: Mapping[str, float]) -> float:
    """Mean over the names; 0 without any."""
    return float(np.mean(list(found.values()))) if found else 0.0
