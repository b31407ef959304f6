"""What monitors make of a request and of a wished answer to it, in the passes of a search.

A pass over a request in words with an answer to it is what monitors of requests and of exchanges
read, token by token, so their scores come out of the search's own pass, with a gradient to every
token of the request. Added to the loss of a request is `WEIGHT` times

    Σ over the monitors of max(s − threshold + 0.05, 0)

with s read once, at the end of the request or of the wished answer. A monitor of answers alone
reads what is said and nothing of the request: no suffix changes it but by what is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from care.defenses.monitors.monitor import WINDOW, Monitor
from care.defenses.monitors.results import Pooling
from care.defenses.repair.repair import Repair
from care.models.hooks import read
from care.models.sites import Role, Site

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.models.vlm import VLM

WEIGHT = 4.0
"""Of what monitors' scores exceed their thresholds by, in nats a token for each unit of score."""
MARGIN = 0.05
"""How far below its threshold a score is pushed."""


class Watching:
    """The monitors of a defense that see what is asked, in passes while they are `reading`."""

    def __init__(self, defense: Defense | None) -> None:
        monitors = defense.monitors if isinstance(defense, Repair) else ()
        self.monitors = [m for m in monitors if m.detector is not None and m.reads != "answer"]
        self._seen: dict[Site, tuple[Tensor, Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self.monitors)

    def digest(self) -> str | None:
        """SHA-256 of the monitors; None where there are none."""
        return Repair((), name="monitors", monitors=tuple(self.monitors)).digest() if self else None

    @contextmanager
    def reading(self, vlm: VLM) -> Iterator[None]:
        """Keep the activations that they read of each pass."""

        def see(site: Site, h: Tensor, roles: Tensor) -> None:
            self._seen[site] = (h, roles)

        sites = list(dict.fromkeys(m.site for m in self.monitors if m.site is not None))
        with read(vlm, sites, sink=see):
            yield

    def excess(self) -> Tensor | None:
        """`WEIGHT` times what the scores of the last pass's rows exceed thresholds by (B,)."""
        if not self.monitors:
            return None
        parts = [self._excess(monitor) for monitor in self.monitors]
        return WEIGHT * torch.stack(parts).sum(dim=0)

    def _excess(self, monitor: Monitor) -> Tensor:
        assert monitor.site is not None and monitor.detector is not None
        h, roles = self._seen[monitor.site]
        direction, mean = monitor.detector.on(h.device)
        scores = (h.float() - mean) @ direction
        counted = roles == (Role.TEXT if monitor.reads == "request" else Role.RESPONSE)
        each = [pooled(scores[row][own], monitor.pooling) for row, own in enumerate(counted)]
        return (torch.stack(each) - monitor.threshold + MARGIN).clamp_min(0)


def pooled(scores: Tensor, pooling: Pooling) -> Tensor:
    """The pooled score of token scores (n,), at their end; differentiable."""
    if pooling == "last":
        return scores[-1]
    if pooling == "mean" or len(scores) < WINDOW:
        return scores.mean()
    return scores.unfold(0, WINDOW, 1).mean(dim=-1).max()
