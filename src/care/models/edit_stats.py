"""What was edited at the sites of a model: how many positions, and by how much.

A decode step has few positions, and to measure what was done to them takes as long as the edit
itself. Small passes are therefore copied (one operation) and measured together, when there are
enough of them or someone asks. Everything stays on the device until it is asked for.

Positions are counted as often as they are edited: a guess of lookup decoding that is thrown away
was edited as well, and without a cache every pass edits the whole sequence again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from care.models.sites import Role, Site

_TOGETHER = 2**20
"""Entries of h that are measured together: 2 MiB a site in bfloat16, and as much of h'."""


class SiteStats:
    """How much was edited at one site; padding doesn't count."""

    def __init__(self) -> None:
        self.calls = 0
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        """h, h' (B, T, D) and roles (B, T) of passes."""
        self._held = 0
        self._idle = False
        self._sums: Tensor | None = None
        self._last: Tensor | None = None

    def add(
        self, before: Tensor, after: Tensor, roles: Tensor, stream: Tensor | None = None
    ) -> None:
        """Accumulate the number of changed positions, their ‖Δh‖/‖h‖ and ‖Δh‖/‖x‖.

        All are (B, T, D), with `roles` (B, T); x is `stream`, the residual stream that entered
        the layer, if it is given.
        """
        self.calls += 1
        self._idle = after is before
        if self._idle:
            return
        size = after.numel()
        if stream is not None or size >= _TOGETHER or torch.is_grad_enabled():
            self._measure()
            with torch.no_grad():
                self._count(before, after, roles, stream)
            return
        # A copy of h', which what comes later in the model may change in place.
        self._waiting.append((before, after.clone(), roles))
        self._held += size
        if self._held >= _TOGETHER:
            self._measure()

    @torch.no_grad()
    def _measure(self) -> None:
        """Count what waits."""
        if not self._waiting:
            return
        last = self._waiting[-1][-1].shape
        passes = ((part.flatten(0, 1) for part in each) for each in self._waiting)
        before, after, roles = (torch.cat(column)[None] for column in zip(*passes, strict=True))
        self._waiting, self._held = [], 0
        self._count(before, after, roles, last=last)

    def _count(
        self,
        before: Tensor,
        after: Tensor,
        roles: Tensor,
        stream: Tensor | None = None,
        last: torch.Size | None = None,
    ) -> None:
        if after.dtype == torch.float16:  # where the difference may overflow
            after = after.float()
        exact = torch.promote_types(before.dtype, torch.float32)
        change = _lengths(after - before, exact)
        changed = (change > 0) & (roles != Role.PAD)
        tiny = torch.finfo(torch.float32).tiny
        ratios = [
            torch.where(changed, change / _lengths(base, exact).to(change).clamp_min(tiny), 0.0)
            for base in (before, stream)
            if base is not None
        ]
        found = torch.stack([changed, *ratios, *ratios][:3]).double()  # (3, B, T)
        ending = found if last is None else found[..., -last.numel() :].reshape(3, *last)
        self._last = ending.sum(dim=2)
        sums = found.sum(dim=(1, 2))
        self._sums = sums if self._sums is None else self._sums + sums.to(self._sums.device)

    @property
    def last(self) -> Tensor | None:
        """Of the last pass, for each row: changed positions, and the sums of their ‖Δh‖/‖h‖ and
        ‖Δh‖/‖x‖ (3, B), float64 on the device; None if nothing was done."""
        self._measure()
        return None if self._idle else self._last

    @property
    def tokens(self) -> int:
        """Number of positions that an edit changed."""
        return int(self._sum(0))

    @property
    def relative_norm(self) -> float:
        """Mean of ‖Δh‖/‖h‖ over the changed positions; 0 if there are none."""
        return self._sum(1) / max(self.tokens, 1)

    @property
    def residual_norm(self) -> float:
        """Mean of ‖Δh‖/‖x‖ over the changed positions, x the residual stream entering the layer.

        `relative_norm` where the stream wasn't given (edits, `ffn_neurons`).
        """
        return self._sum(2) / max(self.tokens, 1)

    def _sum(self, row: int) -> float:
        self._measure()
        return 0.0 if self._sums is None else float(self._sums[row])


def _lengths(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Norms (B, T) of the vectors of x (B, T, D)."""
    return torch.linalg.vector_norm(x.detach(), dim=-1, dtype=dtype)


class EditStats(dict[Site, SiteStats]):
    """Statistics per site; filled while the context is open, readable afterwards."""

    @property
    def tokens(self) -> int:
        """Number of changed (site, position) pairs."""
        return sum(stats.tokens for stats in self.values())

    @property
    def relative_norm(self) -> float:
        """Mean of ‖Δh‖/‖h‖ over all changed (site, position) pairs."""
        total = sum(stats.relative_norm * stats.tokens for stats in self.values())
        return total / self.tokens if self.tokens else 0.0
