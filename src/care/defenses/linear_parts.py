"""What of a repair is an affine map of each activation, and what of it isn't.

At one site an ungated channel on all tokens is affine, and so are several that are added up,

    h' = h − U (Vᵀ h − m),    U = [a w W], V = [Q], m = [Qᵀ μ]

with the weight w that fusion gives each (1 or 1/C), or that edit in turn: after (U₁, V₁, m₁) the
second is (U₂, V₂ − V₁ U₁ᵀ V₂, m₂ − V₂ᵀ U₁ m₁) of what the first was given. Such a map can be folded
into weights (`folded_weights`). The rest can't, and is left out only where somebody says so:

    monitors   read requests and answers
    gates      open by what an activation looks like; without them a channel acts on every request
    scopes     act at some tokens; without them a channel acts at all of them
    fusion     adaptive weights depend on the activation; without them each has the share 1/C
    centres    what is put back of the anchor; without them the coordinates become 0
    sites      activations that no linear map writes (`folded_weights` tells which)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from care.defenses.export_facts import PARTS, Part
from care.defenses.repair.channel import Channel
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import Subspace
from care.errors import UsageError
from care.models.sites import Scope, Site


@dataclass(frozen=True)
class Obstacle:
    """Something of a repair that weights can't hold."""

    part: Part
    """By which name it can be left out."""
    why: str
    """What it is, as the end of a sentence."""


@dataclass(frozen=True, eq=False)
class Affine:
    """h' = h − U (Vᵀ h − m) of one site, in float64."""

    write: np.ndarray
    """U (D, K)."""
    read: np.ndarray
    """V (D, K)."""
    offset: np.ndarray
    """m (K,)."""

    def __call__(self, h: np.ndarray) -> np.ndarray:
        """h (N, D) -> h' (N, D)."""
        return h - (h @ self.read - self.offset) @ self.write.T


def acting_at(repair: Repair) -> dict[Site, list[Channel]]:
    """The channels that do anything, by site."""
    return {
        site: found
        for site in repair.sites
        if (found := [c for c in repair.channels if c.site == site and c.strength > 0])
    }


def everywhere(scopes: Sequence[Scope]) -> bool:
    """Whether these scopes are all tokens."""
    return "all" in scopes or {"image", "text", "response"} <= set(scopes)


def obstacles(repair: Repair) -> list[Obstacle]:
    """What of a repair isn't affine, whatever the model."""
    acting = acting_at(repair)
    found: list[Obstacle] = []
    if repair.monitors:
        read = ", ".join(sorted({monitor.reads for monitor in repair.monitors}))
        found.append(Obstacle("monitors", f"its monitors read text again ({read})"))
    gated = [c for channels in acting.values() for c in channels if c.gate is not None]
    if gated:
        found.append(Obstacle("gates", f"the gates at {_sites(gated)} open for some activations"))
    some = [c for channels in acting.values() for c in channels if not everywhere(c.scopes)]
    if some:
        scopes = ", ".join(sorted({scope for c in some for scope in c.scopes}))
        found.append(Obstacle("scopes", f"the channels at {_sites(some)} act at {scopes} tokens"))
    mixed = [c for channels in acting.values() if len(channels) > 1 for c in channels]
    if mixed and repair.fusion == "adaptive":
        found.append(
            Obstacle("fusion", f"the channels at {_sites(mixed)} are fused by adaptive weights")
        )
    return found


def without(repair: Repair, parts: Collection[Part]) -> Repair:
    """The repair with some parts left out, all but `sites`; UsageError where nothing is left."""
    if unknown := set(parts) - set(PARTS):
        known = ", ".join(PARTS)
        raise UsageError(f"What is left out is one of {known}, got {sorted(unknown)[0]!r:.40}.")
    if not acting_at(repair):
        raise UsageError(
            f"The repair {repair.name} has no channel that acts, so there is nothing that weights "
            "could hold; export one that edits activations."
        )
    channels = repair.channels
    if "gates" in parts:
        channels = tuple(replace(c, gate=None) for c in channels)
    if "scopes" in parts:
        channels = tuple(replace(c, scopes=("all",)) for c in channels)
    if "centres" in parts:
        channels = tuple(replace(c, subspace=_uncentred(c)) for c in channels)
    fusion = repair.fusion
    if "fusion" in parts and fusion == "adaptive":
        fusion = "constant"
    monitors = () if "monitors" in parts else repair.monitors
    return replace(repair, channels=channels, fusion=fusion, monitors=monitors)


def affine_maps(repair: Repair) -> dict[Site, Affine]:
    """The map of each site; UsageError for a repair with something that isn't affine."""
    if found := obstacles(repair):
        raise UsageError(refusal(found))
    return {site: _joined(channels, repair.fusion) for site, channels in acting_at(repair).items()}


def refusal(found: Sequence[Obstacle], dropped: Sequence[Part] = ()) -> str:
    """The sentence that says what can't be folded, and how to leave it out beside what is."""
    parts = ",".join(dict.fromkeys([*dropped, *(one.part for one in found)]))
    return (
        f"Weights can't hold all of this repair: {'; '.join(one.why for one in found)}; leave that "
        f"out with --drop {parts}, by which the loss is measured, or use the repair itself."
    )


def _joined(channels: Sequence[Channel], fusion: str) -> Affine:
    share = 1 / len(channels) if fusion == "constant" else 1.0
    maps = [_of(channel, share) for channel in channels]
    if fusion == "none":
        first, *others = maps
        for one in others:
            first = _in_turn(first, one)
        return first
    return _stacked(maps)


def _of(channel: Channel, share: float) -> Affine:
    subspace = channel.subspace
    read = subspace.basis.astype(np.float64)
    along = read if subspace.write is None else subspace.write.astype(np.float64)
    offset = read.T @ subspace.mean.astype(np.float64)
    return Affine(channel.strength * share * along, read, offset)


def _in_turn(first: Affine, second: Affine) -> Affine:
    crossed = first.write.T @ second.read  # U₁ᵀ V₂
    after = Affine(
        second.write,
        second.read - first.read @ crossed,
        second.offset - crossed.T @ first.offset,
    )
    return _stacked([first, after])


def _stacked(maps: Sequence[Affine]) -> Affine:
    return Affine(
        np.concatenate([one.write for one in maps], axis=1),
        np.concatenate([one.read for one in maps], axis=1),
        np.concatenate([one.offset for one in maps]),
    )


def _uncentred(channel: Channel) -> Subspace:
    return replace(channel.subspace, mean=np.zeros_like(channel.subspace.mean))


def _sites(channels: Sequence[Channel]) -> str:
    return ", ".join(dict.fromkeys(str(channel.site) for channel in channels))
