"""Activations of prompts by a pass that ends at the last site that is asked for.

Who only reads at layer 18 of 30 needs no later layer and no logits: the pass is left there, which
saves two fifths of it. Where weights are moved in and out by the pass itself (offloading), it runs
to its end. Nothing is decoded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from care.models.batches import Batch
from care.models.hooks import hooked
from care.models.passes import Pass
from care.models.sites import Site
from care.models.vlm import VLM

_ORDER = {"mhsa_out": 0, "ffn_neurons": 1, "ffn_out": 2, "layer_out": 3}


class _Enough(Exception):
    """Leaves a pass whose last site has been seen."""


@torch.no_grad()
def activations_of(vlm: VLM, batch: Batch, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Activations (B, T, D) at each site; edits that are active take part. SiteError as `read`."""
    places = vlm.anatomy.check(sites)
    last = max(places, key=lambda site: (site.layer, _ORDER[site.kind]))
    whole = any(hasattr(module, "_hf_hook") for module in vlm.model.modules())
    found: dict[Site, Tensor] = {}

    def keeping(site: Site):
        def visit(h: Tensor, context: Pass) -> None:
            found[site] = h
            if site == last and not whole:
                raise _Enough

        return visit

    visits = {site: keeping(site) for site in places}
    with hooked(vlm, visits), suppress(_Enough):
        vlm.forward(batch, logits_to_keep=1)
    return found
