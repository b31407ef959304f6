"""Attacking a model through its defense, by an attacker who knows it (the adaptive attack).

Gradients flow through a repair as they are: it is a product with Q and one with Qᵀ. But its gate
clamps scores to [0, 1], and where it is fully open or shut its gradient is 0, so that a descent
can't see which way out leads: gradient masking, which flatters a defense. Two remedies, both of the
attack alone, for the image is always measured under the real gate; try them beside the gradient as
it is, which does better wherever a gate isn't flat at most tokens:

    straight-through    clamp forwards, the identity backwards (BPDA, Athalye et al. 2018)
    soft                σ((s − ½) / τ) both ways, s the unclamped score and τ = `temperature`

An evasion term keeps activations out of the repair's sight. Over the repaired sites and the tokens
that a channel edits, it adds `evasion` times the mean of

    max(s + m, 0)                          of a channel with a gate, m a margin: keep it shut
    ‖Qᵀ(h − μ)‖² / ‖h − μ‖²                without: keep out of the unsafe subspace

with h as it arrives at the site. Other defenses than repairs are differentiated through as they
are, without these two. Cf. Bailey et al. 2024, arXiv 2412.09565.

What is attacked is what decides. A repair with monitors gives the *undefended* model's answer as
long as there is no alarm, so the descent goes through the bare model: its edits act on answers that
raised one, and nothing of a picture that is made through them is seen before. Its monitors read
text, which has no gradient; `care.attacks.pictures` and `care.attacks.said` go at them. A control
that sees the picture has one, which the descent takes into account (`care.attacks.watched`).

Of other defenses the attack sees what is `applied` alone: one that rewrites requests or owns its
answers does so after the picture is made, and its figures hold against an attacker who doesn't see
that part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from care.attacks.config import GateMode
from care.attacks.loss import Objective, Term
from care.attacks.watched import digest_of_monitors, of_pictures, picture_term
from care.defenses.base import Defense
from care.defenses.repair.channel import Channel, Fusion
from care.defenses.repair.edit import ChannelEdit, PassMasks, channel_edits
from care.defenses.repair.repair import Repair
from care.errors import UsageError
from care.models.hooks import edit, read
from care.models.sites import Site, scope_mask
from care.models.vlm import VLM

_MARGIN = 0.1
"""m: how far below its threshold a score is pushed, in units of the gate's ramp."""


@dataclass(frozen=True)
class Through:
    """A defense to attack, and how its gradient is taken."""

    defense: Defense
    """What is active; a `Repair`, or anything that is applied to a model."""

    gate: GateMode = "exact"
    """What takes the place of a repair's gates in the descent; other defenses ignore it."""

    evasion: float = 0.0
    """Weight of the evasion term, in nats per token; repairs only, and none with monitors."""

    temperature: float = 0.25
    """τ of the soft gate, in units of the gate's ramp."""

    def __post_init__(self) -> None:
        if not isinstance(self.defense, Defense):
            raise UsageError(
                f"An attack goes through a defense, but got {self.defense!r:.80}; pass a repair or "
                "another instance of care.defenses.Defense."
            )
        if self.gate not in get_args(GateMode):
            raise UsageError(f"gate is {self.gate!r}; use one of {', '.join(get_args(GateMode))}.")
        if not 0 <= self.evasion < float("inf"):
            raise UsageError(f"evasion must be a finite number ≥ 0, got {self.evasion}.")
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"temperature must be a finite number > 0, got {self.temperature}.")
        if self.evasion and not isinstance(self.defense, Repair):
            raise UsageError(
                f"The evasion term needs the sites of a repair, but {self.defense.name!r} is none; "
                "leave evasion at 0."
            )

    @property
    def bare(self) -> bool:
        """Whether it is the undefended model that decides, until something is said."""
        return self.defense.revises

    @property
    def decision_only(self) -> bool:
        """Whether nothing before the last position of a prompt is edited."""
        return self.defense.touches == "decision"

    def describe(self) -> list[Any] | None:
        """What distinguishes this from other attacks, for digests; None where nothing does."""
        if self.bare:
            monitors = digest_of_monitors(of_pictures(self.defense))
            return None if monitors is None else [monitors]
        told: list[Any] = [self.defense.name, self.gate, self.evasion, self.temperature]
        if isinstance(self.defense, Repair):
            return [*told, _fingerprint(self.defense)]
        digest = self.defense.digest()
        return told if digest is None else [*told, digest]

    def term(self, objective: Objective) -> Term | None:
        """What monitors that see the picture add to the loss, if there are any."""
        return picture_term(objective, of_pictures(self.defense))

    @contextmanager
    def attacked(self, vlm: VLM) -> Iterator[Callable[[], Tensor | None] | None]:
        """Apply what gradients are taken through; yields the evasion term, if there is one."""
        with ExitStack() as stack:
            penalty = None
            if self.bare:
                yield penalty
                return
            if self.evasion and isinstance(self.defense, Repair):
                evasion = Evasion(self.defense, self.evasion)
                # Entered first, so that it reads what arrives at a site, not what leaves it.
                stack.enter_context(read(vlm, self.defense.sites, sink=evasion.see))
                penalty = evasion.take
            repair = self.defense if isinstance(self.defense, Repair) else None
            if repair and self.gate != "exact" and any(c.gate for c in repair.channels):
                stack.enter_context(self._softened(vlm, repair))
            else:
                stack.enter_context(self.defense.applied(vlm))
            yield penalty

    @contextmanager
    def measured(self, vlm: VLM) -> Iterator[None]:
        """Apply what a finished image is measured under."""
        with nullcontext() if self.bare else self.defense.applied(vlm):
            yield

    @contextmanager
    def _softened(self, vlm: VLM, repair: Repair) -> Iterator[None]:
        repair.check_sites(vlm)
        temperature = self.temperature if self.gate == "soft" else None
        with edit(vlm, channel_edits(repair, partial(SoftEdit, temperature))):
            yield


class SoftEdit(ChannelEdit):
    """The edit of a site with gates whose gradient doesn't vanish.

    They are soft with a temperature τ; with None they clamp forwards and pass gradients through.
    """

    def __init__(
        self,
        temperature: float | None,
        channels: Sequence[Channel],
        fusion: Fusion,
        masks: PassMasks | None = None,
    ) -> None:
        super().__init__(channels, fusion, masks)
        self._temperature = temperature
        self._gates = torch.tensor([channel.gate is not None for channel in self.channels])

    def opened(self, openness: Tensor) -> Tensor:
        score = openness.amax(dim=-1, keepdim=True)
        if self._temperature is None:
            return _StraightThrough.apply(score)  # pyright: ignore[reportReturnType]
        soft = torch.sigmoid((score - 0.5) / self._temperature)
        gated = self._gates.to(score.device)[:, None]
        return torch.where(gated, soft, score.clamp(0, 1))  # without a gate it is always open


class _StraightThrough(torch.autograd.Function):
    """clamp(s, 0, 1) forwards, to the bit; the identity backwards."""

    @staticmethod
    def forward(ctx: Any, score: Tensor) -> Tensor:  # pyright: ignore
        return score.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore
        return gradient


class Evasion:
    """The evasion term of the passes since it was last taken."""

    def __init__(self, repair: Repair, weight: float) -> None:
        self._weight = weight
        self._channels: dict[Site, list[Channel]] = {}
        for channel in repair.channels:
            if channel.strength > 0:
                self._channels.setdefault(channel.site, []).append(channel)
        self._tensors: dict[tuple[int, torch.device], list[Tensor]] = {}
        self._sums: list[Tensor] = []
        self._count = 0

    def see(self, site: Site, h: Tensor, roles: Tensor) -> None:
        """Add the terms of activations h (B, T, D) that arrive at a site."""
        for channel in self._channels.get(site, []):
            rows = h[scope_mask(roles, channel.scopes)].float()
            if len(rows):
                found = self._seen(channel, rows)
                self._sums.append(found.sum())
                self._count += len(found)

    def take(self) -> Tensor | None:
        """Weight times the mean of what was seen, and forget it; None if nothing was."""
        if not self._sums:
            return None
        device = self._sums[-1].device
        total = torch.stack([part.to(device) for part in self._sums]).sum()
        value = self._weight * total / self._count
        self._sums, self._count = [], 0
        return value

    def _seen(self, channel: Channel, rows: Tensor) -> Tensor:
        """How much of each row (n, D) the channel sees (n,)."""
        if channel.gate is not None:
            filters, mean, low, high, *features = self._on(channel, rows.device)
            if features:
                weights, phases = features
                rows = (2 / len(phases)) ** 0.5 * torch.cos(rows @ weights + phases)
            scores = ((rows - mean) @ filters - low) / (high - low)
            return (scores.amax(dim=-1) + _MARGIN).clamp_min(0)
        basis, mean = self._on(channel, rows.device)
        shifted = rows - mean
        inside = (shifted @ basis).square().sum(dim=-1)
        return inside / shifted.square().sum(dim=-1).clamp_min(1e-12)

    def _on(self, channel: Channel, device: torch.device) -> list[Tensor]:
        key = (id(channel), device)
        if key not in self._tensors:
            gate, subspace = channel.gate, channel.subspace
            parts = (
                (subspace.basis, subspace.mean)
                if gate is None
                else (gate.filters, gate.mean, gate.low, gate.high)
            )
            if gate is not None and gate.features is not None:
                parts += (gate.features.weights, gate.features.phases)
            with torch.inference_mode(False):
                self._tensors[key] = [torch.tensor(part).float().to(device) for part in parts]
        return self._tensors[key]


def _fingerprint(repair: Repair) -> str:
    """SHA-256 of everything in a repair that decides its edits."""
    hasher = hashlib.sha256(repair.fusion.encode())
    for channel in repair.channels:
        told = (str(channel.site), channel.modality, channel.scopes, channel.strength)
        hasher.update(repr(told).encode())
        parts = [channel.subspace.basis, channel.subspace.mean]
        if channel.subspace.write is not None:
            parts.append(channel.subspace.write)
        if channel.gate is not None:
            gate = channel.gate
            parts += [gate.filters, gate.mean, gate.low, gate.high]
            if gate.features is not None:
                parts += [gate.features.weights, gate.features.phases]
        for part in parts:
            hasher.update(part.tobytes())
    return hasher.hexdigest()
