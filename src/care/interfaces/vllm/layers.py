"""Edits as forward hooks on vLLM's decoder layers, traced by torch.compile and CUDA graphs.

vLLM compiles the decoder once and drops what would make it compile again, and a CUDA graph runs no
Python at all: so whatever differs between steps lies in buffers, the branches that there are follow
from the repair alone, and the mathematics is `ChannelEdit.computed`, the same as in transformers.

    vLLM's own models   a layer gives (f, r): what the FFN adds, and the residual stream before it
        ffn_out         f' = edit(f)
        layer_out       f' = f + (edit(h) − h),  h = f + r;  exactly f where nothing is edited
    of transformers     a layer gives the residual stream, and the FFN's last module what it adds

Hooks, not modules around modules: parameters keep their names, so that loading, LoRA and quantised
weights find them. A layer that gives anything else is a SiteError when it is first called, and that
is before the first request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from care.defenses.repair.channel import RepairData
from care.defenses.repair.edit import ChannelEdit, Features, InTurn, Numbers, channel_edits
from care.errors import ModelError, SiteError
from care.interfaces.vllm.tokens import StepMask
from care.models import blocks
from care.models.sites import Site

EDIT = "care_edit"
"""Name of an edit as a child of the module whose output it changes, followed by the site's kind."""

_PARTS = ("read", "write", "bias", "stretch", "strengths")
_FEATURES = ("weights", "phases", "filters", "bias")


class SiteEdit(nn.Module):
    """The channels of one site, with their numbers in buffers that no checkpoint holds."""

    def __init__(
        self, edit: ChannelEdit, device: torch.device, dtype: torch.dtype, mask: StepMask | None
    ) -> None:
        """`mask` says what is edited in a step; None: every token."""
        super().__init__()
        self._edit = edit
        numbers = edit.numbers_for(device, dtype)
        self._places = tuple(each.place for each in numbers.features)
        for name in _PARTS:
            self.register_buffer(name, getattr(numbers, name), persistent=False)
        for index, each in enumerate(numbers.features):
            for name in _FEATURES:
                self.register_buffer(f"{name}_{index}", getattr(each, name), persistent=False)
        self._masked = mask is not None
        if mask is not None:
            columns = torch.tensor([mask.column(channel.scopes) for channel in edit.channels])
            self.register_buffer("mask", mask.buffer, persistent=False)
            self.register_buffer("columns", columns.to(device), persistent=False)

    def numbers(self) -> Numbers:
        """The edit's tensors, as the buffers hold them."""
        features = tuple(
            Features(place, *(self.get_buffer(f"{name}_{index}") for name in _FEATURES))
            for index, place in enumerate(self._places)
        )
        parts = {name: self.get_buffer(name) for name in _PARTS}
        return Numbers(**parts, features=features)

    def forward(self, h: Tensor) -> Tensor:
        """h (…, T, D) -> h', of the tokens that the mask holds."""
        mask = None
        if self._masked:
            inside = self.get_buffer("mask")[: h.shape[-2]]
            mask = inside.index_select(1, self.get_buffer("columns"))[:, :, None]
        return self._edit.computed(h, mask, self.numbers())


def put_on(
    layers: Sequence[nn.Module],
    repair: RepairData,
    *,
    native: bool,
    device: torch.device,
    dtype: torch.dtype,
    mask: StepMask | None,
) -> list[Site]:
    """Hook a repair's edits onto decoder layers; the sites that are edited now.

    `native` are layers of vLLM's own models. SiteError where nothing is left to edit.
    """
    done: list[Site] = []
    for site, found in sorted(channel_edits(repair, ChannelEdit).items()):
        own = found.edits if isinstance(found, InTurn) else [found]
        edits = [SiteEdit(each, device, dtype, mask) for each in own if each.channels]
        if not edits:
            continue
        edit = edits[0] if len(edits) == 1 else nn.Sequential(*edits)
        layer = layers[site.layer]
        whole = native or site.kind == "layer_out"
        module = layer if whole else blocks.writer(layer, "ffn")
        name = f"{EDIT}_{site.kind}"
        if hasattr(module, name):
            raise SiteError(f"{site} is edited already; a repair is put on a model once.")
        module.add_module(name, edit)
        module.register_forward_hook(_hook(name, site, native))
        done.append(site)
    if not done:
        raise SiteError(f"{repair.name} edits nothing: all its channels have strength 0.")
    return done


def _hook(name: str, site: Site, native: bool) -> Callable[..., Any]:
    def alone(module: nn.Module, args: Any, output: Any) -> Tensor:
        return getattr(module, name)(_tensor(output, site))

    def added(module: nn.Module, args: Any, output: Any) -> tuple[Tensor, Tensor]:
        f, residual = _pair(output, site)
        return getattr(module, name)(f), residual

    def summed(module: nn.Module, args: Any, output: Any) -> tuple[Tensor, Tensor]:
        f, residual = _pair(output, site)
        h = f + residual
        return f + (getattr(module, name)(h) - h), residual

    if not native:
        return alone
    return summed if site.kind == "layer_out" else added


def _pair(output: Any, site: Site) -> tuple[Tensor, Tensor]:
    if not isinstance(output, tuple) or len(output) != 2 or not isinstance(output[1], Tensor):
        raise SiteError(
            f"The layer of {site} doesn't give what its FFN adds and the residual stream apart, as "
            "vLLM's own models do; serve this model with --model-impl transformers."
        )
    return output


def _tensor(output: Any, site: Site) -> Tensor:
    if not isinstance(output, Tensor):
        raise SiteError(
            f"The module of {site} gives a {type(output).__name__}, not one tensor, so vLLM can't "
            "be given this repair on this model; serve it by care itself."
        )
    return output


def decoder_layers(language_model: nn.Module, count: int, name: str) -> Sequence[nn.Module]:
    """The `count` decoder layers within a language model; ModelError unless they are certain."""
    lists = [
        module
        for path, module in language_model.named_modules()
        if isinstance(module, nn.ModuleList) and path.rpartition(".")[2] == "layers"
    ]
    found = [each for each in lists if len(each) == count]
    if len(found) != 1:
        raise ModelError(
            f"{name} can't be repaired in vLLM: {len(found)} of its lists of layers have the "
            f"{count} layers that its configuration states, so the text layers can't be told."
        )
    return list(found[0])
