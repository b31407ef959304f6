"""The edit that closes channels: activations at a site without their unsafe coordinates.

At a site with directions Q (D, K), anchor μ and strength a, a token h in scope becomes h + c(h),

    c(h) = −a g(h) Q z,    z = Qᵀ (h − μ).

Without a gate g = 1: with β times the benign mean as μ and a = 1 that is the paper's
P_safe h + β (I − P_safe) h_benign. An oblique edit writes along W in place of Q (`subspace`). A
gate (`gate`) opens from 0 to 1 as h looks like a working attack, and the anchor is then the mean of
refusals: what an attack has over a refusal is taken away, and other tokens are left as they are.
Always factored, never a D × D matrix. Where two channels edit the same token, they are fused,

    h' = h + w c_vis(h) + (1 − w) c_txt(h),   w = ‖c_vis‖ / (‖c_vis‖ + ‖c_txt‖)

with `adaptive` weights (norms are taken from z: ‖Q z‖ = ‖R z‖ where Q = V R is a QR decomposition),
1/C for each of the C channels of a site with `constant` ones and 1 with `sum`. With `none` they
aren't fused: each edits what the one before it left.
Fu et al. 2026, arXiv 2603.27240.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from care.defenses.repair.channel import Channel, Fusion, RepairData
from care.defenses.repair.gate import Gate
from care.models.passes import Pass
from care.models.sites import Scope, Site, reaches_answers, scope_mask

_TINY = torch.finfo(torch.float32).tiny


class Features(NamedTuple):
    """The gate of one channel whose filters are of φ(h) = √(2/M) cos(Ωᵀ h + b) (`gate`)."""

    place: int
    """Which of the C channels."""
    weights: Tensor
    """Ωᵀ (M, D)."""
    phases: Tensor
    """b (M,)."""
    filters: Tensor
    """√(2/M) uᵀ / (high − low) (F, M)."""
    bias: Tensor
    """−(uᵀ μ_gate + low) / (high − low) (F,)."""

    def scores(self, rows: Tensor) -> Tensor:
        """Scaled scores (N, F) of activations (N, D)."""
        seen = linear(rows.to(self.weights.dtype), self.weights, self.phases)
        return linear(torch.cos(seen), self.filters, self.bias)


class Numbers(NamedTuple):
    """C channels of one site side by side, padded to the greatest K and F.

    Read and write share the directions: they are large beside what lies between, and to fetch them
    from memory a second time would cost as much as the first.
    """

    read: Tensor
    """Qᵀ of all channels, then uᵀ / (high − low) of all gates (C·K + C·F, D)."""
    write: Tensor
    """The first rows of `read` (C·K, D), or Wᵀ where a channel is oblique."""
    bias: Tensor
    """Added to what is read (C·K + C·F): −Qᵀ μ, then −(uᵀ μ_gate + low) / (high − low), which
    is 1 without a gate, so that it is always open."""
    stretch: Tensor
    """R (C, K, K) of Q = V R (or W) with orthonormal V, so that ‖Q z‖ = ‖R z‖; C and K are its
    shape."""
    strengths: Tensor
    """a (C, 1)."""
    features: tuple[Features, ...]
    """Of the gates whose filters aren't of activations; those in `read` are then 0."""


class PassMask(NamedTuple):
    """The tokens of one pass that the channels of a site edit."""

    mask: Tensor | None
    """(B·T, C, 1) of bool; C is 1 where all channels edit the same. None: all of them."""
    nowhere: bool
    """The mask is known to be all false."""


class PassMasks:
    """Masks of the pass that is running, which the sites of a repair share."""

    def __init__(self) -> None:
        self._roles: Tensor | None = None
        self._known: dict[tuple[tuple[Scope, ...], ...], PassMask] = {}

    def of(self, roles: Tensor, scopes: tuple[tuple[Scope, ...], ...]) -> PassMask:
        """For roles (B, T) and the scopes of C channels."""
        if roles is not self._roles:
            self._roles, self._known = roles, {}
        inside = self._known.get(scopes)
        if inside is None:
            inside = self._known[scopes] = _mask_of(roles, scopes)
        return inside


def _mask_of(roles: Tensor, scopes: tuple[tuple[Scope, ...], ...]) -> PassMask:
    masks = [scope_mask(roles, each).flatten()[:, None, None] for each in scopes]
    mask = masks[0] if len(masks) == 1 else torch.cat(masks, dim=1)
    if mask.device.type != "cpu":  # to ask an accelerator is to wait for it, in every pass
        return PassMask(mask, False)
    return PassMask(None if bool(mask.all()) else mask, not mask.any())


_EVERYWHERE = PassMask(None, False)


class ChannelEdit:
    """The edit of one site: one product reads for all its channels and one writes for all.

    What lies between has K entries for each token and channel, not D, and is float32 at least.
    Numbers are kept per device and dtype. Channels of strength 0 are left out: a site at which
    nothing is left to close gives back its activations untouched.
    """

    def __init__(
        self, channels: Sequence[Channel], fusion: Fusion, masks: PassMasks | None = None
    ) -> None:
        self.channels = [channel for channel in channels if channel.strength > 0]
        self._masks = masks or PassMasks()
        scopes = tuple(channel.scopes for channel in self.channels)
        self._scopes = scopes if len(set(scopes)) > 1 else scopes[:1]
        answers = [reaches_answers(each) for each in scopes]
        self._answers, self._all_answer = any(answers), all(answers)
        self._gated = any(channel.gate is not None for channel in self.channels)
        self._weighs = fusion == "adaptive" and len(self.channels) > 1
        self._stretches = self._weighs and not all(map(_writes_orthonormally, self.channels))
        self._share = 1 / len(self.channels) if fusion == "constant" and self.channels else 1.0
        strengths = {channel.strength for channel in self.channels}
        self._strength = float(strengths.pop()) if len(strengths) == 1 else None
        self.kept: dict[tuple[torch.device, torch.dtype], Numbers] = {}

    def __call__(self, h: Tensor, roles: Tensor) -> Tensor:
        """h (B, T, D), roles (B, T) -> h' (B, T, D)."""
        return self.edited(h, self._masks.of(roles, self._scopes)) if self.channels else h

    def within(self, h: Tensor, context: Pass) -> Tensor:
        """The same in a pass, where it may be known without looking that all are an answer's."""
        if not context.answering or not self.channels:
            return self(h, context.roles)
        if not self._answers:
            return h
        if context.unpadded and self._all_answer:
            return self.edited(h, _EVERYWHERE)
        return self(h, context.roles)

    def edited(self, h: Tensor, inside: PassMask) -> Tensor:
        """h (B, T, D) -> h' (B, T, D), given which tokens are edited."""
        # In a decode step every call counts: the memory that was fetched for the last one is cold.
        return h if inside.nowhere else self.computed(h, inside.mask, self._numbers(h))

    def computed(self, h: Tensor, mask: Tensor | None, numbers: Numbers) -> Tensor:
        """The same with numbers at hand: no branch in it depends on what a tensor holds."""
        read, write, bias, stretch, strengths, features = numbers
        rows = h.to(read.dtype).flatten(0, -2)
        count, rank, _ = stretch.shape
        if bias.dtype == read.dtype:
            z = seen = linear(rows, read, bias)
        else:
            z = seen = linear(rows, read) + bias
        if self._gated:
            z = seen[:, : count * rank]
        if self._weighs or self._gated or self._strength is None or mask is not None:
            z = z.view(-1, count, rank)
            if self._gated:
                openness = seen[:, count * rank :].view(len(rows), count, -1)
                if features:
                    openness = _with_features(openness, rows, features)
                z = z * self.opened(openness)
            if mask is not None:
                z = torch.where(mask, z, 0.0)
            if self._strength is None:
                z = z * strengths
            if self._weighs:
                z = z * self._weights(z, stretch)
            z = z.view(-1, count * rank)
        strength = 1.0 if self._strength is None else self._strength
        edited = torch.addmm(rows, z.to(rows.dtype), write, alpha=-strength * self._share)
        return edited.to(h.dtype).view_as(h)

    def opened(self, openness: Tensor) -> Tensor:
        """g of all channels (B·T, C, 1) from the scaled scores of their filters (B·T, C, F).

        An attack that knows the repair puts something with a gradient in its place
        (`care.attacks.adaptive`).
        """
        return openness.amax(dim=-1, keepdim=True).clamp(0, 1)

    def _weights(self, z: Tensor, stretch: Tensor) -> Tensor:
        """‖c‖ / Σ ‖c‖ over the channels: z (B·T, C, K) -> (B·T, C, 1), 0 where all are 0."""
        if self._stretches:
            z = torch.einsum("nck,cjk->ncj", z, stretch)
        norms = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        return norms / norms.sum(dim=-2, keepdim=True).clamp_min(_TINY)

    def _numbers(self, h: Tensor) -> Numbers:
        key = (h.device, h.dtype)
        numbers = self.kept.get(key)
        if numbers is None:
            with torch.inference_mode(False):  # they may be needed for gradients later
                numbers = self.kept[key] = self.numbers_for(h.device, h.dtype)
        return numbers

    def numbers_for(self, device: torch.device, dtype: torch.dtype) -> Numbers:
        """The tensors for activations on `device` in `dtype`; there must be a channel."""
        # In float16 a coordinate of a large activation overflows where no entry of h does, and in
        # bfloat16 a large mean doesn't cancel in a gate. On the CPU float32 is the fastest.
        if self._gated or dtype == torch.float16 or device.type == "cpu":
            dtype = torch.promote_types(dtype, torch.float32)
        return side_by_side(self.channels, device, dtype)


class InTurn:
    """Edits of one site, each of what the one before it left."""

    def __init__(self, edits: Sequence[ChannelEdit]) -> None:
        self.edits = edits

    def __call__(self, h: Tensor, roles: Tensor) -> Tensor:
        """h (B, T, D), roles (B, T) -> h' (B, T, D)."""
        for one in self.edits:
            h = one(h, roles)
        return h

    def within(self, h: Tensor, context: Pass) -> Tensor:
        """The same in a pass."""
        for one in self.edits:
            h = one.within(h, context)
        return h


SomeEdit = TypeVar("SomeEdit", bound=ChannelEdit)


def channel_edits(
    repair: RepairData, make: Callable[[Sequence[Channel], Fusion, PassMasks], SomeEdit]
) -> dict[Site, SomeEdit | InTurn]:
    """What `make` (`ChannelEdit`, or something like it) gives for each site; masks are shared.

    Without fusion, what it gives for each channel, in turn.
    """
    masks, edits = PassMasks(), {}
    for site in repair.sites:
        own = [channel for channel in repair.channels if channel.site == site]
        if repair.fusion == "none":
            edits[site] = InTurn([make([channel], repair.fusion, masks) for channel in own])
        else:
            edits[site] = make(own, repair.fusion, masks)
    return edits


def _with_features(openness: Tensor, rows: Tensor, features: Sequence[Features]) -> Tensor:
    """Scores (N, C, F) with those of `features` in place of zeros; fewer than F are padded shut."""
    parts = list(openness.unbind(dim=1))
    for one in features:
        scores = one.scores(rows)
        shut = scores.new_full((len(rows), openness.shape[2] - scores.shape[1]), -1.0)
        parts[one.place] = torch.cat([scores, shut], dim=1)
    return torch.stack(parts, dim=1)


def side_by_side(
    channels: Sequence[Channel], device: torch.device, products: torch.dtype
) -> Numbers:
    """The tensors of one site, whose large products are taken in the dtype `products`.

    Made by torch, not numpy: the threads of numpy's BLAS go on spinning for a while after a
    product, and the model would share its cores with them.
    """
    count, width = len(channels), channels[0].subspace.width
    rank = max(channel.subspace.rank for channel in channels)
    directions = torch.zeros(count, rank, width, dtype=torch.float64)
    written = torch.zeros(count, rank, width, dtype=torch.float64)
    stretch = torch.zeros(count, rank, rank, dtype=torch.float64)
    for place, channel in enumerate(channels):
        own, along = slice(channel.subspace.rank), torch.from_numpy(_along(channel)).double()
        directions[place, own] = torch.from_numpy(channel.subspace.basis).double().T
        written[place, own] = along.T
        upper = torch.linalg.qr(along, mode="r").R
        stretch[place, : len(upper), own] = upper
    gates, shut = _gates(channels)
    read = torch.cat([directions.flatten(0, 1), gates]).to(products)
    # Of the rounded directions, so that a mean that is large beside h − μ cancels in z.
    rounded = read.double()
    means = torch.stack([torch.from_numpy(c.subspace.mean).double() for c in channels])
    centre = torch.einsum("cd,ckd->ck", means, rounded[: count * rank].view(count, rank, width))
    for place, channel in enumerate(channels):
        if channel.gate is not None and channel.gate.features is None:
            filters = rounded[count * rank :].view(*shut.shape, width)[place]
            shut[place] += filters @ torch.from_numpy(channel.gate.mean).double()
    exact = torch.promote_types(products, torch.float32)
    bias = -torch.cat([centre.flatten(), shut.flatten()]).to(device, exact)
    read, strengths = read.to(device), torch.tensor([[float(c.strength)] for c in channels])
    stretch, strengths = stretch.to(device, exact), strengths.to(device, exact)
    write = read[: count * rank]
    if any(channel.subspace.write is not None for channel in channels):
        write = written.flatten(0, 1).to(device, products)
    features = tuple(
        _features(place, channel.gate, device, exact)
        for place, channel in enumerate(channels)
        if channel.gate is not None and channel.gate.features is not None
    )
    return Numbers(read, write, bias, stretch, strengths, features)


def _features(place: int, gate: Gate, device: torch.device, dtype: torch.dtype) -> Features:
    assert gate.features is not None
    low, high, filters, mean = (
        torch.from_numpy(part).double() for part in (gate.low, gate.high, gate.filters, gate.mean)
    )
    scale, norm = high - low, (2 / len(filters)) ** 0.5
    parts = (
        torch.from_numpy(gate.features.weights).T,
        torch.from_numpy(gate.features.phases),
        norm * (filters / scale).T,
        -(mean @ filters + low) / scale,
    )
    return Features(place, *(part.to(device, dtype).contiguous() for part in parts))


def _along(channel: Channel) -> np.ndarray:
    """What a channel is written along: W of an oblique edit, else Q (D, K)."""
    return channel.subspace.basis if channel.subspace.write is None else channel.subspace.write


def _gates(channels: Sequence[Channel]) -> tuple[Tensor, Tensor]:
    """Scaled filters (C·F, D), and thresholds (C, F) without their means; F is 0 without gates."""
    gates = [channel.gate for channel in channels]
    most = max((len(gate.low) for gate in gates if gate is not None), default=0)
    width = channels[0].subspace.width
    filters = torch.zeros(len(channels), most, width, dtype=torch.float64)
    shut = torch.full((len(channels), most), -1.0, dtype=torch.float64)
    for place, gate in enumerate(gates):
        if gate is not None and gate.features is None:
            low, high, read = (
                torch.from_numpy(part).double() for part in (gate.low, gate.high, gate.filters)
            )
            scale, own = high - low, slice(len(low))
            shut[place] = 1.0  # padding is shut
            filters[place, own], shut[place, own] = (read / scale).T, low / scale
    return filters.flatten(0, 1), shut


def _writes_orthonormally(channel: Channel) -> bool:
    """Whether Qᵀ Q = I to float32's precision, so that ‖Q z‖ = ‖z‖."""
    basis = torch.from_numpy(_along(channel))
    gram = basis.T @ basis
    return bool(torch.allclose(gram, torch.eye(len(gram)).to(gram), atol=1e-5))
