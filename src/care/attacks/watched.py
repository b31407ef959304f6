"""What attacks see of a defense's monitors, and what these add to a loss.

Of suffixes: a pass over a request in words with an answer to it is what monitors of requests and of
exchanges read, token by token, so their scores come out of the search's own pass, with a gradient
to every token of the request. Added to the loss of a request is `WEIGHT` times

    Σ over the monitors of max(s − threshold + 0.05, 0)

with s read once, at the end of the request or of the wished answer. A monitor of answers alone
reads what is said and nothing of the request: no suffix changes it but by what is said. Refusal
log-odds of the request need no term: what makes the wished answer's first token likely lowers them.

Of pictures: a monitor of requests has no picture to read, and one of what is said has no gradient
but a surrogate of it (`said`). A control that reads each request beside its picture has one: of it
the mean over requests of max(s − threshold + 0.05, 0) is added to the loss, with s its own score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    from care.attacks.loss import Objective, Term
    from care.defenses.base import Defense
    from care.models.vlm import VLM

WEIGHT = 4.0
"""Of what monitors' scores exceed their thresholds by, in nats a token for each unit of score."""
MARGIN = 0.05
"""How far below its threshold a score is pushed."""


class Watching:
    """The monitors of a defense that see what is asked, in passes while they are `reading`."""

    def __init__(self, defense: Defense | None) -> None:
        self.monitors = of_texts(defense)
        self._seen: dict[Site, tuple[Tensor, Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self.monitors)

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
        scores = monitor.detector.of_tokens(h)
        counted = roles == (Role.TEXT if monitor.reads == "request" else Role.RESPONSE)
        each = [pooled(scores[row][own], monitor.pooling) for row, own in enumerate(counted)]
        return above(each, monitor.threshold)


def of_texts(defense: Defense | None) -> list[Monitor]:
    """The monitors that read the request, alone or with the answer, by a detector."""
    return [m for m in _monitors(defense) if m.detector is not None and m.reads != "answer"]


def of_answers(defense: Defense | None) -> list[Monitor]:
    """The monitors of what is said."""
    return [monitor for monitor in _monitors(defense) if monitor.reads != "request"]


def of_pictures(defense: Defense | None) -> list[Monitor]:
    """The monitors that see the picture."""
    return [monitor for monitor in _monitors(defense) if monitor.with_picture]


def digest_of_monitors(monitors: Sequence[Monitor]) -> str | None:
    """SHA-256 of all that monitors do, in whatever defense they are; None of none."""
    return Repair((), name="monitors", monitors=tuple(monitors)).digest() if monitors else None


def above(scores: Sequence[Tensor], threshold: float) -> Tensor:
    """What each of B scores exceeds a threshold by, with a margin (B,)."""
    return (torch.stack(list(scores)) - threshold + MARGIN).clamp_min(0)


def picture_term(objective: Objective, monitors: Sequence[Monitor]) -> Term | None:
    """What is added to the loss for monitors that see the picture; None without any."""
    if not monitors:
        return None

    def term(rows: Sequence[int], pixels: Tensor, features: Tensor) -> Tensor:
        found = [above(scores_beside(objective, m, rows, features), m.threshold) for m in monitors]
        return torch.stack(found).mean(dim=1).sum()

    return term


def scores_beside(
    objective: Objective, monitor: Monitor, rows: Sequence[int], features: Tensor
) -> list[Tensor]:
    """The monitor's score of each request beside the picture with these features (V, D)."""
    assert monitor.site is not None and monitor.detector is not None
    batch = objective.batch(rows, features)
    seen: list[Tensor] = []
    with read(objective.vlm, [monitor.site], sink=lambda site, h, roles: seen.append(h)):
        objective.vlm.forward(batch, logits_to_keep=1, grad=True)
    scores = monitor.detector.of_tokens(seen[-1])
    counted = (batch.roles == Role.TEXT).to(scores.device)
    return [pooled(own[told], monitor.pooling) for own, told in zip(scores, counted, strict=True)]


def _monitors(defense: Defense | None) -> Sequence[Monitor]:
    return defense.monitors if isinstance(defense, Repair) else ()


def pooled(scores: Tensor, pooling: Pooling) -> Tensor:
    """The pooled score of token scores (n,), at their end; differentiable."""
    if pooling == "last":
        return scores[-1]
    if pooling == "mean" or len(scores) < WINDOW:
        return scores.mean()
    return scores.unfold(0, WINDOW, 1).mean(dim=-1).max()
