"""Activations that defenses are fitted on: one vector of each request, with or without an answer.

    decisions            at the last position of prompts that have been read
    read_decisions       the same of requests that are read in the same way
    at_decision          the same in one pass over the whole request, which rounds otherwise
    pooled_activations   any pooling of a pass over requests, with answers appended or without

In the order of the requests, float32, whatever the batches were. Not here: which requests
(`material`), and which tokens carry an attack (`care.defenses.repair.attribution`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from care.data.example import Example
from care.errors import FitError
from care.models.hooks import read
from care.models.prompt_cache import PromptCache, first_logits
from care.models.short_pass import activations_of
from care.models.sites import Scope, Site, scope_mask
from care.models.vlm import VLM

Pooling = Callable[[Tensor, Tensor], Tensor]
"""(h (B, T, D), roles (B, T)) -> one vector of each row (B, D)."""


def decisions(vlm: VLM, prefill: PromptCache, sites: Sequence[Site]) -> dict[Site, np.ndarray]:
    """Activations (N, D) at the decision position, from prompts that have been read."""
    found = {
        site: np.zeros((len(prefill.examples), vlm.anatomy.site_width(site)), np.float32)
        for site in sites
    }
    for indices, start in prefill.parts:
        with read(vlm, list(sites)) as recorder:
            first_logits(vlm.model, vlm.roles, start)
        for site in sites:
            rows = recorder.rows(site, ("decision",))  # answers may have been begun after it
            found[site][indices] = rows.float().cpu().numpy()
    return found


def read_decisions(
    vlm: VLM, examples: Sequence[Example], sites: Sequence[Site], batch_size: int = 16
) -> dict[Site, np.ndarray]:
    """Activations (N, D) at the decision position, of prompts that are read batch by batch."""

    def work(chunk: list[int]) -> list[dict[Site, np.ndarray]]:
        prefill = vlm.prefill([examples[place] for place in chunk], batch_size=len(chunk))
        rows = decisions(vlm, prefill, sites)
        return [{site: rows[site][row] for site in sites} for row in range(len(chunk))]

    return _by_site(vlm, sites, vlm.in_batches(list(examples), batch_size, work))


def at_decision(
    vlm: VLM, examples: Sequence[Example], sites: Sequence[Site], batch_size: int = 16
) -> dict[Site, np.ndarray]:
    """Activations (N, D) at the decision position of requests, in their order."""
    return pooled_activations(
        vlm, examples, sites, lambda h, roles: pool(h, roles, "decision"), batch_size=batch_size
    )


def pool(h: Tensor, roles: Tensor, scope: Scope) -> Tensor:
    """Mean activation of each row over the tokens in scope: (B, T, D), (B, T) -> (B, D)."""
    weights = scope_mask(roles, (scope,)).to(torch.float32)
    counts = weights.sum(1, keepdim=True)
    if bool((counts == 0).any()):
        raise FitError(f"an example has no token in scope {scope!r}; fit on examples that have one")
    return torch.einsum("btd,bt->bd", h.float(), weights) / counts


def pooled_activations(
    vlm: VLM,
    examples: Sequence[Example],
    sites: Sequence[Site],
    pooling: Pooling,
    *,
    answers: Sequence[str] | None = None,
    batch_size: int = 16,
) -> dict[Site, np.ndarray]:
    """Pooled activations (N, D) at each site, in the order of `examples`."""

    def work(chunk: list[int]) -> list[dict[Site, np.ndarray]]:
        said = None if answers is None else [answers[place] for place in chunk]
        batch = vlm.batch([examples[place] for place in chunk], said)
        found = activations_of(vlm, batch, sites)
        rows = {site: pooling(h, batch.roles.to(h.device)).cpu() for site, h in found.items()}
        return [
            {site: rows[site][row].float().numpy() for site in sites} for row in range(len(chunk))
        ]

    return _by_site(vlm, sites, vlm.in_batches(list(examples), batch_size, work, extra=answers))


def _by_site(
    vlm: VLM, sites: Sequence[Site], rows: Sequence[dict[Site, np.ndarray]]
) -> dict[Site, np.ndarray]:
    """Activations (N, D) at each site, of N rows that hold one of each (D,)."""
    if not rows:
        return {site: np.zeros((0, vlm.anatomy.site_width(site)), np.float32) for site in sites}
    return {site: np.array([each[site] for each in rows]) for site in sites}
