"""Steering: what defenses that edit activations at some layers share.

A `Steering` says what becomes of activations, `moved(h, place)`, and at which tokens, `scopes`; its
layers and strength are fields (`AtLayers`). Layers are told by depth, a share of the model's: the
output after ⌈depth · L⌉ of L layers, so that a published layer 20 of 40 is depth 0.5. Everything is
computed in float32, differentiable, and at strength 0 nothing is touched. Not here: any method.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from care.defenses.base import Touches, touched
from care.defenses.stored import StoredDefense, numbers_of
from care.errors import ArtefactError, FitError, UsageError
from care.models.edit_stats import EditStats
from care.models.hooks import edited
from care.models.passes import Pass
from care.models.sites import Scope, Site, SiteKind, reaches_answers, scope_mask
from care.models.vlm import VLM

ANSWERING: tuple[Scope, ...] = ("decision", "response")
"""Every position that is the last of a pass while an answer is decoded."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AtLayers(StoredDefense):
    """A defense that edits activations at some layers, with some strength."""

    kind: ClassVar[SiteKind] = "layer_out"
    """Where in a layer."""
    unfitted: ClassVar[tuple[str, ...]] = ("strength",)

    layers: tuple[int, ...]
    """Where; rows of numbers that differ between layers are in this order."""
    strength: float = 1.0
    """How much of the edit is made; 0 is the bare model."""
    _kept: dict[tuple[str, torch.device], Tensor] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < 0:
            raise UsageError(
                f"The defense {self.name} needs one or more different layers from 0 upwards, got "
                f"{self.layers}."
            )
        if not math.isfinite(self.strength):
            raise UsageError(f"strength must be a finite number, got {self.strength!r:.40}.")

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where it edits."""
        return tuple(Site(layer, self.kind) for layer in self.layers)

    @property
    def width(self) -> int:
        """D, as the last axis of its first numbers has it."""
        return getattr(self, numbers_of(type(self))[0]).shape[-1]

    def with_strength(self, strength: float) -> Self:
        """The same at another strength."""
        return replace(self, strength=strength)

    def check(self, vlm: VLM) -> None:
        """ArtefactError unless the model has its layers and width."""
        super().check(vlm)
        found = (vlm.anatomy.n_layers, vlm.anatomy.width)
        if max(self.layers) >= found[0] or self.width != found[1]:
            raise ArtefactError(
                f"the defense {self.name} steers layer {max(self.layers)} of width {self.width}, "
                f"but {vlm.name} has {found[0]} layers of width {found[1]}; fit it for this model"
            )

    def number(self, name: str, like: Tensor) -> Tensor:
        """The numbers of that name on the device of `like`."""
        key = (name, like.device)
        if key not in self._kept:
            with torch.inference_mode(False):  # they may be needed for gradients later
                self._kept[key] = torch.from_numpy(getattr(self, name)).to(like.device)
        return self._kept[key]


@dataclass(frozen=True, eq=False, kw_only=True)
class Steering(AtLayers, ABC):
    """What becomes of activations, the same for every request."""

    scopes: ClassVar[tuple[Scope, ...]] = ANSWERING
    """At which tokens."""

    @property
    def touches(self) -> Touches:
        """The decision alone where nothing before the last position of a prompt is edited."""
        return touched(self.scopes)

    def applied(self, vlm: VLM) -> AbstractContextManager[EditStats]:
        """Edit while the context is open; yields counts of what was edited to whoever holds them
        (`care.models.hooks.edit`)."""
        self.check(vlm)
        edits = {site: partial(self._within, place) for place, site in enumerate(self.sites)}
        return edited(vlm, edits)

    @abstractmethod
    def moved(self, h: Tensor, place: int) -> Tensor:
        """What becomes of activations h (B, T, D) at the layer `layers[place]`, wherever they are
        in scope."""

    def _within(self, place: int, h: Tensor, context: Pass) -> Tensor:
        if self.strength == 0 or (context.answering and not reaches_answers(self.scopes)):
            return h
        new = self.moved(h.float(), place).to(h)
        if context.answering and context.unpadded:
            return new
        return torch.where(scope_mask(context.roles, self.scopes)[..., None], new, h)


def out_of_span(h: Tensor, basis: Tensor, strength: float, centre: Tensor | None = None) -> Tensor:
    """h − a V Vᵀ (h − μ) of activations h (…, D): less of what lies along the rows of Vᵀ (K, D)."""
    apart = h if centre is None else h - centre
    return h - strength * (apart @ basis.T) @ basis


def decisions_moved(
    vlm: VLM, edits: Mapping[Site, Callable[[Tensor], Tensor]], rows: int
) -> AbstractContextManager[EditStats]:
    """While open, activations (B, D) at the last position of prompts become what `edits` make of
    them, in float32, in passes over the same B = `rows` requests; nothing else is edited."""

    def within(edit: Callable[[Tensor], Tensor], h: Tensor, context: Pass) -> Tensor:
        if context.answering:
            return h
        if len(h) != rows:
            raise UsageError(
                f"Edits that were made for {rows} requests can't be made in a pass over {len(h)}; "
                "ask for fewer at once."
            )
        inside = scope_mask(context.roles, ("decision",))
        new = h.clone()
        new[inside] = edit(h[inside].float()).to(h)
        return new

    return edited(vlm, {site: partial(within, edit) for site, edit in edits.items()})


def layer_at(vlm: VLM, depth: float) -> int:
    """The layer whose output comes after that share of the layers; UsageError outside (0, 1]."""
    if not 0 < depth <= 1:
        raise UsageError(f"depth must lie in (0, 1], got {depth}.")
    return max(math.ceil(depth * vlm.anatomy.n_layers - 1e-9) - 1, 0)


def layers_between(vlm: VLM, depths: tuple[float, float]) -> tuple[int, ...]:
    """The layers from one depth to another, both included; UsageError for none."""
    first, last = (layer_at(vlm, depth) for depth in depths)
    if first > last:
        raise UsageError(f"depths must go from a smaller to a greater one, got {depths}.")
    return tuple(range(first, last + 1))


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows (..., D) of length 1; FitError for one of length 0."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not (norms > 0).all():
        raise FitError(
            "a direction has no length: the two classes have the same activations; fit on other "
            "examples"
        )
    return rows / norms


def at_least(count: int, rows: Sequence[object] | np.ndarray, what: str) -> None:
    """FitError for fewer than `count` rows of what is told."""
    if len(rows) < count:
        raise FitError(
            f"{what} number {len(rows)}, and at least {count} are needed; pass more examples"
        )
