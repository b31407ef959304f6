"""Repair: unsafe subspaces at chosen sites, projected out while the model runs.

At a site with benign mean μ, directions Q (D, K) and strength a, a token h in scope becomes
h + c(h),

    c(h) = −a W z,                       z = Qᵀ (h − μ)                    operation `project`
    c(h) = −a W (z − clip(z, low, high))                                   operation `clip`

W (D, K) are the write directions. W = Q is the orthogonal projection: with a = 1 the paper's
P_safe h + β (I − P_safe) h_benign at β = 1. Any other W writes along other directions: Q are
filters, which see the unsafe component, W is the pattern in which it is written (Haufe et al.
2014); where Qᵀ W = I this is an oblique projection, which brings the same coordinates to those of
μ. `clip` takes away only what leaves the range of benign activations. Always factored, never a
D × D matrix. Where two channels edit the same token, they are fused,

    h' = h + w c_vis(h) + (1 − w) c_txt(h),   w = ‖c_vis‖ / (‖c_vis‖ + ‖c_txt‖).

Here are the artefact in memory and its application; `fitting` estimates it, `artefact` stores it.
Fu et al. 2026, arXiv 2603.27240.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from care.anatomy import Scope, Site, scope_mask
from care.errors import ArtefactError, UsageError
from care.hooks import Edit, EditStats, edit
from care.subspace import Subspace

if TYPE_CHECKING:
    from care.vlm import VLM

Modality = Literal["image", "text"]
Operation = Literal["project", "clip"]


@dataclass(frozen=True, eq=False)
class Channel:
    """One unsafe subspace at one site for one modality."""

    site: Site
    """Where the edit happens."""
    modality: Modality
    """Whether the subspace was fitted on image or on text tokens."""
    scopes: tuple[Scope, ...]
    """Which tokens are edited."""
    subspace: Subspace
    """Directions, benign mean and what they were estimated from."""
    strength: float = 1.0
    """a: 1 projects; more overshoots to the other side of μ."""
    operation: Operation = "project"
    """Take the whole component away, or only what leaves the benign range."""
    bounds: tuple[np.ndarray, np.ndarray] | None = None
    """For `clip`: the least and greatest benign coordinates (K,), (K,)."""
    pattern: np.ndarray | None = None
    """W (D, K), the write directions of an oblique projection; None for W = Q."""

    def __post_init__(self) -> None:
        if not np.isfinite(self.strength) or self.strength < 0:
            raise UsageError(f"strength must be a number ≥ 0, got {self.strength}")
        if (self.operation == "clip") != (self.bounds is not None):
            raise UsageError("bounds are needed by, and only by, the operation 'clip'")
        if self.pattern is not None and self.pattern.shape != self.subspace.basis.shape:
            raise UsageError(
                f"the pattern has shape {self.pattern.shape}, the basis {self.subspace.basis.shape}"
            )

    def projecting(self, subspace: Subspace) -> Channel:
        """The same place, tokens and strength, projecting another subspace orthogonally."""
        return replace(self, subspace=subspace, operation="project", bounds=None, pattern=None)


class _Correction:
    """c(h) of one channel, with tensors kept per device and dtype."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._kept: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def _tensors(self, h: Tensor) -> tuple[Tensor, ...]:
        key = (h.device, h.dtype)
        if key not in self._kept:
            subspace = self.channel.subspace
            basis = torch.from_numpy(subspace.basis).to(h.device)
            centre = torch.from_numpy(subspace.mean).to(h.device) @ basis
            low, high = self.channel.bounds or (np.zeros(0, np.float32),) * 2
            ranges = (torch.from_numpy(b).to(h.device, torch.float32) for b in (low, high))
            pattern = self.channel.pattern
            write = basis if pattern is None else torch.from_numpy(pattern).to(h.device)
            back = (-self.channel.strength * write).T.to(h.dtype).contiguous()
            self._kept[key] = (basis.to(h.dtype), centre.float(), back, *ranges)
        return self._kept[key]

    def __call__(self, h: Tensor) -> Tensor:
        basis, centre, back, low, high = self._tensors(h)
        z = (h @ basis).float() - centre
        if self.channel.operation == "clip":
            z = z - torch.clamp(z, low, high)
        return z.to(h.dtype) @ back


def _site_edit(channels: Sequence[Channel], fusion: str) -> Edit:
    """The edit of one site: one correction, or two fused by their norms, token by token."""
    corrections = [_Correction(channel) for channel in channels]

    def apply(h: Tensor, roles: Tensor) -> Tensor:
        masked = [
            correction(h) * scope_mask(roles, correction.channel.scopes)[..., None]
            for correction in corrections
        ]
        if len(masked) == 1:
            return h + masked[0]
        if fusion == "sum":
            return h + sum(masked)
        norms = [c.float().norm(dim=-1, keepdim=True) for c in masked]
        total = sum(norms).clamp_min(torch.finfo(torch.float32).tiny)  # pyright: ignore
        return h + sum(
            c * (norm / total).to(h.dtype) for c, norm in zip(masked, norms, strict=True)
        )

    return apply


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

    def check(self, vlm: VLM) -> None:
        """ArtefactError unless every channel fits the model's layers and widths."""
        for channel in self.channels:
            width = vlm.anatomy.site_width(channel.site)
            if channel.subspace.width != width:
                raise ArtefactError(
                    f"the repair's subspace at {channel.site} has width {channel.subspace.width}, "
                    f"but {vlm.name} has {width} there: it was fitted on another model"
                )

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[EditStats]:
        """Repair `vlm` while the context is open; yields counts of what was edited."""
        self.check(vlm)
        edits = {
            site: _site_edit([c for c in self.channels if c.site == site], self.fusion)
            for site in self.sites
        }
        with edit(vlm, edits) as stats:
            yield stats

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
        """Fit on requests; see `care.fitting.fit_repair` for the options."""
        from care.fitting import fit_repair

        return fit_repair(vlm, attacks, benign, **options)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the artefact's folder; see `care.artefact`."""
        from care.artefact import save

        return save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, vlm: VLM | None = None) -> Repair:
        """Read an artefact's folder (or one on the Hub), checked before use, also against `vlm`."""
        from care.artefact import load

        return load(name_or_path, vlm)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save to a temporary folder and upload that; the URL of the commit."""
        from care.artefact import push

        return push(self, repo_id, **options)
