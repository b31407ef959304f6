"""A monitor as an artefact holds it: facts as JSON, its detector as named arrays, and their checks.

Both ways, as for channels (`artefact_channels`). Not here: the files (`artefact`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from care.defenses.monitors.detector import Detector
from care.defenses.monitors.monitor import Monitor
from care.defenses.monitors.results import Pooling, Reads
from care.errors import ArtefactError
from care.models.sites import Site
from care.typed import WHEN_SET, Share

_PARTS = ("direction", "mean")

MAX_ENTRY = 1e9
"""Greatest entry of a detector that is taken, far above any activation."""


@dataclass(frozen=True, kw_only=True)
class MonitorFacts:
    """What repair.json says of a monitor, as `Monitor` has it."""

    reads: Reads
    """What it reads."""
    threshold: float
    """The score above which it alarms."""
    site: Site | None
    """Where the activations are taken; none for the refusal log-odds."""
    pooling: Pooling
    """How the scores of the tokens are made one."""
    alarmed: Mapping[str, Share]
    """Share of each validation suite's requests or bare answers that raise the alarm."""
    with_picture: Annotated[bool, WHEN_SET] = False
    """Whether a request is read beside its picture: a control."""


def monitor_to(monitor: Monitor) -> MonitorFacts:
    """The facts of a monitor."""
    return MonitorFacts(
        reads=monitor.reads,
        threshold=monitor.threshold,
        site=monitor.site,
        pooling=monitor.pooling,
        alarmed=dict(monitor.alarmed),
        with_picture=monitor.with_picture,
    )


def monitor_arrays(monitor: Monitor, place: int) -> dict[str, np.ndarray]:
    """The arrays of monitor number `place` by name; ArtefactError for what isn't read again."""
    detector = monitor.detector
    if detector is None:
        return {}
    with np.errstate(over="ignore"):  # what overflows is refused for not being finite
        parts = {name: np.ascontiguousarray(getattr(detector, name), np.float32) for name in _PARTS}
    _check(place, parts)
    return parts


def monitor_names(monitors: Sequence[MonitorFacts]) -> set[str]:
    """Names of all arrays that monitors with these facts use."""
    return {
        f"monitors.{place}.{name}"
        for place, facts in enumerate(monitors)
        for name in _PARTS
        if facts.site is not None
    }


def monitor_from(facts: MonitorFacts, tensors: dict[str, np.ndarray], place: int) -> Monitor:
    """The monitor number `place` of an artefact from its facts and the artefact's arrays.

    Raises ArtefactError for numbers that make no detector, KeyError for an array that isn't there,
    and UsageError for facts that a monitor refuses.
    """
    detector = None
    if facts.site is not None:
        parts = {name: tensors[f"monitors.{place}.{name}"] for name in _PARTS}
        _check(place, parts)
        detector = Detector(parts["direction"], parts["mean"])
    return Monitor(
        facts.reads,
        facts.threshold,
        facts.site,
        detector,
        facts.pooling,
        facts.alarmed,
        facts.with_picture,
    )


def _check(place: int, parts: dict[str, np.ndarray]) -> None:
    width = parts["mean"].shape[:1]
    for name, part in parts.items():
        if part.dtype != np.float32 or part.shape != width or not np.isfinite(part).all():
            raise ArtefactError(
                f"monitor {place} of the artefact has {part.dtype} numbers of shape {part.shape} "
                f"as its {name} where finite ones of type float32 and shape {width} belong; fit "
                "the repair again"
            )
        largest = np.abs(part).max(initial=0.0)
        if largest > MAX_ENTRY:
            raise ArtefactError(
                f"monitor {place} of the artefact has the number {largest:g} in its {name}, where "
                f"at most {MAX_ENTRY:g} is taken; fit the repair again"
            )
