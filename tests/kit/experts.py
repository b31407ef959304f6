"""What must hold of the neurons of an FFN of experts, on any model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from care.models.blocks import ffn
from care.models.hooks import edit, read
from care.models.sites import Site
from care.models.vlm import VLM


def check_experts(vlm: VLM, batch: Any, layer: int, sites: Sequence[Site]) -> None:
    """Edited without a change, the layer writes what it did; without neurons, nothing; and without
    one neuron, what it writes with a column of that expert's last map at zero."""
    before = written(vlm, batch, layer)
    assert before.any()
    with edit(vlm, {site: lambda h, roles: h + 0 for site in sites}):
        torch.testing.assert_close(written(vlm, batch, layer), before, rtol=1e-4, atol=1e-5)
    with edit(vlm, {site: lambda h, roles: torch.zeros_like(h) for site in sites}):
        assert not written(vlm, batch, layer).any()
    with read(vlm, sites) as recorder:
        vlm.forward(batch)
    for site in {busiest(recorder, sites), sites[-1]}:
        neuron = int(recorder[site][0].abs().sum((0, 1)).argmax())
        with edit(vlm, {site: lambda h, roles, at=neuron: without(h, at)}):
            edited = written(vlm, batch, layer)
        assert not torch.equal(edited, before)
        column = vlm.anatomy.output_columns(site)[:, neuron]  # a view of the weights themselves
        kept = column.clone()
        with torch.no_grad():
            column.zero_()
            zeroed = written(vlm, batch, layer)
            column.copy_(kept)
        torch.testing.assert_close(edited, zeroed, rtol=1e-4, atol=1e-5)


def busiest(recorder: Any, sites: Sequence[Site]) -> Site:
    """The expert whose neurons were most active."""
    return max(sites, key=lambda site: float(recorder[site][0].abs().sum()))


def without(h: Tensor, neuron: int) -> Tensor:
    """h (B, T, F) with one neuron at zero."""
    new = h.clone()
    new[..., neuron] = 0
    return new


def written(vlm: VLM, batch: Any, layer: int) -> Tensor:
    """What the layer's FFN returns, before any norm that follows it."""
    found = []
    part = ffn(vlm.anatomy.layers[layer])
    handle = part.register_forward_hook(lambda module, args, out: found.append(out))
    try:
        vlm.forward(batch)
    finally:
        handle.remove()
    return (found[0][0] if isinstance(found[0], tuple) else found[0]).detach().clone()
