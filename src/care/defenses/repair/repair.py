"""Repair: unsafe subspaces at chosen sites, projected out while the model runs.

At a site with directions Q (D, K), anchor μ and strength a, a token h in scope becomes h + c(h),

    c(h) = −a g(h) Q z,    z = Qᵀ (h − μ).

Without a gate g = 1: with the benign mean as μ and a = 1 that is the paper's
P_safe h + β (I − P_safe) h_benign at β = 1. A gate (`gate`) opens from 0 to 1 as h looks like a
working attack, and the anchor is then the mean of refusals: what an attack has over a refusal is
taken away, and other tokens are left as they are. Always factored, never a D × D matrix. Where two
channels edit the same token, they are fused,

    h' = h + w c_vis(h) + (1 − w) c_txt(h),   w = ‖c_vis‖ / (‖c_vis‖ + ‖c_txt‖),

with the norms taken from z: ‖Q z‖ = ‖R z‖ where Q = V R is a QR decomposition.

Here are the artefact in memory and its application; `fitting` estimates it, `artefact` stores it.
Fu et al. 2026, arXiv 2603.27240.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear

from care.defenses.repair.gate import Gate
from care.defenses.repair.subspace import Subspace
from care.errors import ArtefactError, SiteError, UsageError
from care.models.edit_stats import EditStats
from care.models.hooks import edited
from care.models.passes import Pass
from care.models.sites import Scope, Site, reaches_answers, scope_mask

if TYPE_CHECKING:
    from care.models.vlm import VLM

Modality = Literal["image", "text"]
_TINY = torch.finfo(torch.float32).tiny
MODALITIES: tuple[Modality, ...] = get_args(Modality)

MAX_STRENGTH = 50
"""Greatest strength of a channel; answers are broken long before."""


@dataclass(frozen=True, eq=False)
class Channel:
    """One unsafe subspace at one site for one modality."""

    site: Site
    """Where the edit happens."""
    modality: Modality
    """What carries the attacks that the subspace was fitted on."""
    scopes: tuple[Scope, ...]
    """Which tokens are edited."""
    subspace: Subspace
    """Directions, anchor and what they were estimated from."""
    strength: float = 1.0
    """a: 1 projects; more overshoots to the other side of μ."""
    gate: Gate | None = None
    """For which activations, and how far, the channel acts; None: always."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scopes", _checked_scopes(self.scopes))
        if self.modality not in MODALITIES:
            raise UsageError(
                f"modality must be one of {', '.join(MODALITIES)}, got {self.modality!r}"
            )
        if not _is_finite(self.strength) or not 0 <= self.strength <= MAX_STRENGTH:
            raise UsageError(
                f"strength must be a finite number ≥ 0 and at most {MAX_STRENGTH}, got "
                f"{self.strength!r:.40}"
            )
        if self.gate is not None and len(self.gate.filters) != self.subspace.width:
            raise UsageError(
                f"the gate has width {len(self.gate.filters)}, the subspace {self.subspace.width}"
            )

    def projecting(self, subspace: Subspace) -> Channel:
        """The same place, tokens and strength, projecting another subspace without a gate."""
        return replace(self, subspace=subspace, gate=None)


def _checked_scopes(scopes: object) -> tuple[Scope, ...]:
    known = ", ".join(get_args(Scope))
    if not isinstance(scopes, (tuple, list)):
        raise UsageError(f"scopes must be a tuple of some of {known}, got {scopes!r}")
    if not scopes or any(scope not in get_args(Scope) for scope in scopes):
        raise UsageError(f"scopes must name one or more of {known}, got {scopes!r}")
    return tuple(scopes)


def _is_finite(number: object) -> bool:
    try:
        return isinstance(number, Real) and math.isfinite(number)
    except OverflowError:  # a whole number too large for a float
        return False


class _Numbers(NamedTuple):
    """C channels of one site side by side, padded to the greatest K and F.

    Read and write share the directions: they are large beside what lies between, and to fetch them
    from memory a second time would cost as much as the first.
    """

    read: Tensor
    """Qᵀ of all channels, then uᵀ / (high − low) of all gates (C·K + C·F, D)."""
    write: Tensor
    """The first rows of `read` (C·K, D)."""
    bias: Tensor
    """Added to what is read (C·K + C·F): −Qᵀ μ, then −(uᵀ μ_gate + low) / (high − low), which
    is 1 without a gate, so that it is always open."""
    stretch: Tensor
    """R (C, K, K) of Q = V R with orthonormal V, so that ‖Q z‖ = ‖R z‖; C and K are its shape."""
    strengths: Tensor
    """a (C, 1)."""


class _Inside(NamedTuple):
    """The tokens of one pass that the channels of a site edit."""

    mask: Tensor | None
    """(B·T, C, 1) of bool; C is 1 where all channels edit the same. None: all of them."""
    nowhere: bool
    """The mask is known to be all false."""


class _Insides:
    """Masks of the pass that is running, which the sites of a repair share."""

    def __init__(self) -> None:
        self._roles: Tensor | None = None
        self._known: dict[tuple[tuple[Scope, ...], ...], _Inside] = {}

    def of(self, roles: Tensor, scopes: tuple[tuple[Scope, ...], ...]) -> _Inside:
        """For roles (B, T) and the scopes of C channels."""
        if roles is not self._roles:
            self._roles, self._known = roles, {}
        inside = self._known.get(scopes)
        if inside is None:
            inside = self._known[scopes] = _inside(roles, scopes)
        return inside


def _inside(roles: Tensor, scopes: tuple[tuple[Scope, ...], ...]) -> _Inside:
    masks = [scope_mask(roles, each).flatten()[:, None, None] for each in scopes]
    mask = masks[0] if len(masks) == 1 else torch.cat(masks, dim=1)
    if mask.device.type != "cpu":  # to ask an accelerator is to wait for it, in every pass
        return _Inside(mask, False)
    return _Inside(None if bool(mask.all()) else mask, not mask.any())


_EVERYWHERE = _Inside(None, False)


class _SiteEdit:
    """The edit of one site: one product reads for all its channels and one writes for all.

    What lies between has K entries for each token and channel, not D, and is float32 at least.
    Numbers are kept per device and dtype.
    """

    def __init__(
        self, channels: Sequence[Channel], fusion: str, insides: _Insides | None = None
    ) -> None:
        self._channels = [channel for channel in channels if channel.strength > 0]
        self._insides = insides or _Insides()
        scopes = tuple(channel.scopes for channel in self._channels)
        self._scopes = scopes if len(set(scopes)) > 1 else scopes[:1]
        answers = [reaches_answers(each) for each in scopes]
        self._answers, self._all_answer = any(answers), all(answers)
        self._gated = any(channel.gate is not None for channel in self._channels)
        self._weighs = fusion == "adaptive" and len(self._channels) > 1
        self._stretches = self._weighs and not all(map(_reads_orthonormally, self._channels))
        strengths = {channel.strength for channel in self._channels}
        self._strength = float(strengths.pop()) if len(strengths) == 1 else None
        self._kept: dict[tuple[torch.device, torch.dtype], _Numbers] = {}

    def __call__(self, h: Tensor, roles: Tensor) -> Tensor:
        """h (B, T, D), roles (B, T) -> h' (B, T, D)."""
        return self._edited(h, self._insides.of(roles, self._scopes)) if self._channels else h

    def within(self, h: Tensor, context: Pass) -> Tensor:
        """The same in a pass, where it may be known without looking that all are an answer's."""
        if not context.answering or not self._channels:
            return self(h, context.roles)
        if not self._answers:
            return h
        if context.unpadded and self._all_answer:
            return self._edited(h, _EVERYWHERE)
        return self(h, context.roles)

    def _edited(self, h: Tensor, inside: _Inside) -> Tensor:
        # In a decode step every call counts: the memory that was fetched for the last one is cold.
        if inside.nowhere:
            return h
        read, write, bias, stretch, strengths = self._numbers(h)
        rows = h.to(read.dtype).flatten(0, -2)
        count, rank, _ = stretch.shape
        if bias.dtype == read.dtype:
            z = seen = linear(rows, read, bias)
        else:
            z = seen = linear(rows, read) + bias
        if self._gated:
            z = seen[:, : count * rank]
        if self._weighs or self._gated or self._strength is None or inside.mask is not None:
            z = z.view(-1, count, rank)
            if self._gated:
                openness = seen[:, count * rank :].view(len(rows), count, -1)
                z = z * self._opened(openness)
            if inside.mask is not None:
                z = torch.where(inside.mask, z, 0.0)
            if self._strength is None:
                z = z * strengths
            if self._weighs:
                z = z * self._weights(z, stretch)
            z = z.view(-1, count * rank)
        strength = 1.0 if self._strength is None else self._strength
        edited = torch.addmm(rows, z.to(rows.dtype), write, alpha=-strength)
        return edited.to(h.dtype).view_as(h)

    def _opened(self, openness: Tensor) -> Tensor:
        """g of all channels (B·T, C, 1) from the scaled scores of their filters (B·T, C, F)."""
        return openness.amax(dim=-1, keepdim=True).clamp(0, 1)

    def _weights(self, z: Tensor, stretch: Tensor) -> Tensor:
        """‖c‖ / Σ ‖c‖ over the channels: z (B·T, C, K) -> (B·T, C, 1), 0 where all are 0."""
        if self._stretches:
            z = torch.einsum("nck,cjk->ncj", z, stretch)
        norms = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        return norms / norms.sum(dim=-2, keepdim=True).clamp_min(_TINY)

    def _numbers(self, h: Tensor) -> _Numbers:
        key = (h.device, h.dtype)
        numbers = self._kept.get(key)
        if numbers is None:
            products = h.dtype
            # In float16 a coordinate of a large activation overflows where no entry of h does, and
            # in bfloat16 a large mean doesn't cancel in a gate. On the CPU float32 is the fastest.
            if self._gated or h.dtype == torch.float16 or h.device.type == "cpu":
                products = torch.promote_types(h.dtype, torch.float32)
            with torch.inference_mode(False):  # they may be needed for gradients later
                numbers = self._kept[key] = _side_by_side(self._channels, h.device, products)
        return numbers


def _side_by_side(
    channels: Sequence[Channel], device: torch.device, products: torch.dtype
) -> _Numbers:
    """The tensors of one site, whose large products are taken in the dtype `products`.

    Made by torch, not numpy: the threads of numpy's BLAS go on spinning for a while after a
    product, and the model would share its cores with them.
    """
    count, width = len(channels), channels[0].subspace.width
    rank = max(channel.subspace.rank for channel in channels)
    directions = torch.zeros(count, rank, width, dtype=torch.float64)
    stretch = torch.zeros(count, rank, rank, dtype=torch.float64)
    for place, channel in enumerate(channels):
        own, basis = slice(channel.subspace.rank), torch.from_numpy(channel.subspace.basis).double()
        directions[place, own] = basis.T
        upper = torch.linalg.qr(basis, mode="r").R
        stretch[place, : len(upper), own] = upper
    gates, shut = _gates(channels)
    read = torch.cat([directions.flatten(0, 1), gates]).to(products)
    # Of the rounded directions, so that a mean that is large beside h − μ cancels in z.
    rounded = read.double()
    means = torch.stack([torch.from_numpy(c.subspace.mean).double() for c in channels])
    centre = torch.einsum("cd,ckd->ck", means, rounded[: count * rank].view(count, rank, width))
    for place, channel in enumerate(channels):
        if channel.gate is not None:
            filters = rounded[count * rank :].view(*shut.shape, width)[place]
            shut[place] += filters @ torch.from_numpy(channel.gate.mean).double()
    exact = torch.promote_types(products, torch.float32)
    bias = -torch.cat([centre.flatten(), shut.flatten()]).to(device, exact)
    read, strengths = read.to(device), torch.tensor([[float(c.strength)] for c in channels])
    stretch, strengths = stretch.to(device, exact), strengths.to(device, exact)
    return _Numbers(read, read[: count * rank], bias, stretch, strengths)


def _gates(channels: Sequence[Channel]) -> tuple[Tensor, Tensor]:
    """Scaled filters (C·F, D), and thresholds (C, F) without their means; F is 0 without gates."""
    gates = [channel.gate for channel in channels]
    most = max((len(gate.low) for gate in gates if gate is not None), default=0)
    width = channels[0].subspace.width
    filters = torch.zeros(len(channels), most, width, dtype=torch.float64)
    shut = torch.full((len(channels), most), -1.0, dtype=torch.float64)
    for place, gate in enumerate(gates):
        if gate is not None:
            low, high, read = (
                torch.from_numpy(part).double() for part in (gate.low, gate.high, gate.filters)
            )
            scale, own = high - low, slice(len(low))
            shut[place] = 1.0  # padding is shut
            filters[place, own], shut[place, own] = (read / scale).T, low / scale
    return filters.flatten(0, 1), shut


def _reads_orthonormally(channel: Channel) -> bool:
    """Whether Qᵀ Q = I to float32's precision, so that ‖Q z‖ = ‖z‖."""
    basis = torch.from_numpy(channel.subspace.basis)
    gram = basis.T @ basis
    return bool(torch.allclose(gram, torch.eye(len(gram)).to(gram), atol=1e-5))


@dataclass(frozen=True, eq=False)
class Repair:
    """The artefact: channels and how they are fused; a `Defense`."""

    channels: tuple[Channel, ...]
    """Subspaces per site and modality."""
    fusion: Literal["adaptive", "sum"] = "adaptive"
    """How two corrections of one token are combined (formula in the module header)."""
    name: str = "care"
    """Name in tables."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """What it was fitted on and with: model, preset, digests, versions, evaluation summary."""

    def __post_init__(self) -> None:
        if not self.channels:
            raise UsageError("a repair needs at least one channel; none were passed")
        if self.fusion not in ("adaptive", "sum"):
            raise UsageError(f"fusion must be adaptive or sum, got {self.fusion!r}")

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that are edited, in order."""
        return tuple(sorted({channel.site for channel in self.channels}))

    @property
    def late(self) -> bool:
        """Whether nothing before the last position of a prompt is edited."""
        scopes = {scope for channel in self.channels for scope in channel.scopes}
        return scopes <= {"decision", "response"}

    def check(self, vlm: VLM) -> None:
        """ArtefactError unless every channel fits the model's layers and widths."""
        for channel in self.channels:
            try:
                vlm.anatomy.check([channel.site])
            except SiteError as error:
                raise ArtefactError(
                    f"the repair edits {channel.site}, which {vlm.name} with its "
                    f"{vlm.anatomy.n_layers} layers doesn't have: fit a repair for this model"
                ) from error
            width = vlm.anatomy.site_width(channel.site)
            if channel.subspace.width != width:
                raise ArtefactError(
                    f"the repair's subspace at {channel.site} has width {channel.subspace.width}, "
                    f"but {vlm.name} has {width} there: it was fitted on another model"
                )

    def applied(self, vlm: VLM) -> AbstractContextManager[EditStats]:
        """Repair `vlm` while the context is open; yields counts of what was edited to whoever
        holds them (`care.models.hooks.edit`)."""
        self.check(vlm)
        insides = _Insides()
        edits = {
            site: _SiteEdit([c for c in self.channels if c.site == site], self.fusion, insides)
            for site in self.sites
        }
        return edited(vlm, {site: one.within for site, one in edits.items()})

    def only(self, modality: Modality) -> Repair:
        """The repair with the channels of one modality alone (an ablation)."""
        kept = tuple(c for c in self.channels if c.modality == modality)
        if not kept:
            raise UsageError(f"the repair has no {modality} channel to keep")
        return replace(self, channels=kept, name=f"{self.name}, {modality} only")

    def with_strength(self, strength: float) -> Repair:
        """The same subspaces at another strength."""
        channels = tuple(replace(c, strength=strength) for c in self.channels)
        return replace(self, channels=channels)

    @classmethod
    def fit(cls, vlm: VLM, attacks: Any, benign: Any, **options: Any) -> Repair:
        """Fit on requests; see `care.defenses.repair.fitting.fit_repair` for the options."""
        from care.defenses.repair.fitting import fit_repair

        return fit_repair(vlm, attacks, benign, **options)

    def digest(self) -> str:
        """The SHA-256 that its artefact states, over everything it does and was fitted on."""
        from care.defenses.artefact import digest

        return digest(self)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the artefact's folder; see `care.defenses.artefact`."""
        from care.defenses.artefact import save

        return save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, vlm: VLM | None = None) -> Repair:
        """Read an artefact's folder (or one on the Hub), checked before use, also against `vlm`."""
        from care.defenses.artefact import load

        return load(name_or_path, vlm)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save to a temporary folder and upload that; the URL of the commit."""
        from care.defenses.artefact import push

        return push(self, repo_id, **options)
