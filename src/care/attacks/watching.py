"""What an attack sees of a defense's monitors: those of answers, and those that see the picture.

Monitors of what is said have no gradient to the picture (but a surrogate of one, `said`), a monitor
of requests has no picture at all. A control reads each request beside its picture, and through it
there is a gradient: added to the loss is the mean over requests, summed over such monitors, of

    max(s − threshold + 0.05, 0)

in nats a token for each unit of score, with s the monitor's own score of the request beside the
picture as it is now.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from care.attacks.loss import Objective, Term
from care.defenses.base import Defense
from care.defenses.monitors.monitor import WINDOW, Monitor
from care.defenses.monitors.results import Pooling
from care.defenses.repair.repair import Repair
from care.models.hooks import read
from care.models.sites import Role

MARGIN = 0.05
"""How far below its threshold a score is pushed."""


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
    """The mean of what scores exceed a threshold by, with a margin."""
    return torch.stack([(score - threshold + MARGIN).clamp_min(0) for score in scores]).mean()


def pooled(scores: Tensor, pooling: Pooling) -> Tensor:
    """The pooled score of token scores (n,), at their end; differentiable."""
    if pooling == "last":
        return scores[-1]
    if pooling == "mean" or len(scores) < WINDOW:
        return scores.mean()
    return scores.unfold(0, WINDOW, 1).mean(dim=-1).max()


def picture_term(objective: Objective, monitors: Sequence[Monitor]) -> Term | None:
    """What is added to the loss for monitors that see the picture; None without any."""
    if not monitors:
        return None

    def term(rows: Sequence[int], pixels: Tensor, features: Tensor) -> Tensor:
        found = [above(scores_beside(objective, m, rows, features), m.threshold) for m in monitors]
        return torch.stack(found).sum()

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
    direction, mean = monitor.detector.on(seen[-1].device)
    scores = (seen[-1].float() - mean) @ direction
    counted = (batch.roles == Role.TEXT).to(scores.device)
    return [pooled(own[told], monitor.pooling) for own, told in zip(scores, counted, strict=True)]


def _monitors(defense: Defense | None) -> Sequence[Monitor]:
    return defense.monitors if isinstance(defense, Repair) else ()
