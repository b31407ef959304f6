"""A channel as an artefact holds it: facts as JSON, numbers as named arrays, and their checks.

Both ways: what is written is checked as what is read is. Not here: the files (`artefact`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from care.defenses.repair.channel import Channel, Modality
from care.defenses.repair.gate import FourierFeatures, Gate
from care.defenses.repair.subspace import Subspace
from care.errors import ArtefactError
from care.models.sites import Scope, Site
from care.typed import WHEN_SET, Count, Positive, Share

_SUBSPACE_FACTS = (
    "null_quantile",
    "significant",
    "shrinkage",
    "condition",
    "n_malicious",
    "n_benign",
)

_SUBSPACE_PARTS = ("basis", "mean", "eigenvalues")

_GATE_PARTS = ("filters", "mean", "low", "high")
_GATE_FACTS = ("opened_benign", "quantile", "families", "opened")
_FEATURE_PARTS = ("weights", "phases")

MAX_LENGTH = 10.0
"""Greatest length of a direction that is taken; those that are fitted have length 1."""

MAX_ENTRY = 1e9
"""Greatest entry of means and gates that is taken, far above any activation."""

_TYPES = {"eigenvalues": np.float64}
"""Types of the arrays; those that aren't named here are float32."""


@dataclass(frozen=True, kw_only=True)
class GateFacts:
    """What repair.json says of a gate, as `Gate` has it; the order is that of the file."""

    opened_benign: Share | None
    """Share of benign requests for which it opens at all."""
    quantile: Share | None
    """What its lower thresholds were chosen by."""
    families: tuple[str, ...]
    """Names of the families of attacks; empty if unknown."""
    opened: Mapping[str, Share]
    """Share of each family's attacks for which it opens at all."""
    features: Annotated[bool, WHEN_SET] = False
    """Whether its filters are of Fourier features."""


@dataclass(frozen=True, kw_only=True)
class ChannelFacts:
    """What repair.json says of a channel, as `Channel` and `Subspace` have it."""

    site: Site
    """Where the edit happens."""
    modality: Modality
    """What carries the attacks that the subspace was fitted on."""
    scopes: tuple[Scope, ...]
    """Which tokens are edited."""
    strength: float
    """How far; its bounds are those of `Channel`."""
    gate: GateFacts | None
    """For which activations; none: for all."""
    rank: Count
    """K, the number of directions."""
    width: Positive
    """D, their length."""
    null_quantile: float | None
    """What an eigenvalue had to exceed."""
    significant: Count | None
    """How many did."""
    shrinkage: float
    """Relative ridge of the benign covariance."""
    condition: float
    """Its condition number."""
    n_malicious: Count
    """Malicious rows used."""
    n_benign: Count
    """Benign rows used."""
    oblique: Annotated[bool, WHEN_SET] = False
    """Whether it writes along other directions than it reads."""


def check_apart(channels: Sequence[Channel]) -> None:
    """ArtefactError for two channels of one site and modality that share a scope."""
    taken = Counter((c.site, c.modality, scope) for c in channels for scope in set(c.scopes))
    for (site, modality, scope), count in taken.items():
        if count == 1:
            continue
        raise ArtefactError(
            f"{count} channels of the repair edit {site} for the modality {modality} at the scope "
            f"{scope}, where the same would be taken away {count} times; keep one of them"
        )


def names_of(channels: Sequence[ChannelFacts]) -> set[str]:
    """Names of all arrays that channels with these facts use."""
    return {
        f"channels.{place}.{name}"
        for place, facts in enumerate(channels)
        for name in _parts_of(facts)
    }


def _parts_of(facts: ChannelFacts) -> list[str]:
    gate = [f"gate.{name}" for name in _GATE_PARTS] if facts.gate is not None else []
    if facts.gate is not None and facts.gate.features:
        gate += [f"gate.features.{name}" for name in _FEATURE_PARTS]
    return [*_SUBSPACE_PARTS, *(["write"] if facts.oblique else []), *gate]


def channel_to(channel: Channel) -> ChannelFacts:
    """The facts of a channel."""
    subspace, gate = channel.subspace, channel.gate
    return ChannelFacts(
        site=channel.site,
        modality=channel.modality,
        scopes=channel.scopes,
        strength=channel.strength,
        gate=gate
        and GateFacts(
            **{fact: getattr(gate, fact) for fact in _GATE_FACTS},
            features=gate.features is not None,
        ),
        rank=subspace.rank,
        width=subspace.width,
        **{fact: getattr(subspace, fact) for fact in _SUBSPACE_FACTS},
        oblique=subspace.write is not None,
    )


def arrays_of(channel: Channel, place: int) -> dict[str, np.ndarray]:
    """The arrays of channel number `place` by name, in the types they are stored in.

    Raises ArtefactError for those that couldn't be read again.
    """
    parts = _parts(channel)
    _check_parts(place, parts, channel.subspace.width, channel.subspace.rank)
    return parts


def _parts(channel: Channel) -> dict[str, np.ndarray]:
    gate = channel.gate
    parts = {name: getattr(channel.subspace, name) for name in _SUBSPACE_PARTS}
    if channel.subspace.write is not None:
        parts["write"] = channel.subspace.write
    if gate is not None:
        parts |= {f"gate.{name}": getattr(gate, name) for name in _GATE_PARTS}
        if gate.features is not None:
            parts |= {f"gate.features.{n}": getattr(gate.features, n) for n in _FEATURE_PARTS}
    with np.errstate(over="ignore"):  # what overflows is refused for not being finite
        return {
            name: np.ascontiguousarray(part, _TYPES.get(name, np.float32))
            for name, part in parts.items()
        }


def _check_parts(place: int, parts: dict[str, np.ndarray], width: int, rank: int) -> None:
    """ArtefactError unless the arrays of a channel have their types, shapes and finite entries."""
    count = parts["gate.filters"].shape[1:2] if "gate.filters" in parts else ()
    seen = width  # of what a gate's filters are: activations, or their features
    if "gate.features.phases" in parts:
        seen = (parts["gate.features.phases"].shape or (0,))[0]
    shapes = {
        "mean": (width,),
        "gate.filters": (seen, *(count or (1,))),
        "gate.mean": (seen,),
        "gate.features.weights": (width, seen),
        "gate.features.phases": (seen,),
        "gate.low": count,
        "gate.high": count,
    }
    for name, part in parts.items():
        kind = np.dtype(_TYPES.get(name, np.float32))
        shape = shapes.get(name, (width, rank)) if name != "eigenvalues" else part.shape[:1]
        if part.dtype != kind or part.shape != shape or not np.isfinite(part).all():
            raise ArtefactError(
                f"channel {place} of the artefact has {part.dtype} numbers of shape {part.shape} "
                f"as its {name} where finite ones of type {kind} and shape {shape} belong; fit "
                "the repair again"
            )
    _check_sizes(place, parts)
    if "gate.low" in parts and (parts["gate.low"] >= parts["gate.high"]).any():
        raise ArtefactError(
            f"channel {place} of the artefact has a gate.low that isn't below its gate.high in "
            "float32; fit the repair again"
        )
    values = parts["eigenvalues"]
    # The first of `mean+cov` is a statistic of another kind; other controls have none at all.
    if 0 < len(values) < rank or (np.diff(values[1:]) > 0).any():
        raise ArtefactError(
            f"channel {place} of the artefact has {len(values)} eigenvalues for its {rank} "
            "directions, which must be none or as many at least, largest first; fit the repair "
            "again"
        )


def _check_sizes(place: int, parts: dict[str, np.ndarray]) -> None:
    """ArtefactError for numbers so large that every answer would be broken."""
    lengths = np.linalg.norm(parts["basis"].astype(np.float64), axis=0)
    if lengths.max(initial=0.0) > MAX_LENGTH:
        raise ArtefactError(
            f"channel {place} of the artefact has a direction of length {lengths.max():g} in its "
            f"basis, where fitted ones have length 1 and at most {MAX_LENGTH:g} is taken; fit the "
            "repair again"
        )
    for name in parts.keys() - {"basis", "eigenvalues"}:
        largest = np.abs(parts[name]).max(initial=0.0)
        if largest > MAX_ENTRY:
            raise ArtefactError(
                f"channel {place} of the artefact has the number {largest:g} in its {name}, where "
                f"at most {MAX_ENTRY:g} is taken; fit the repair again"
            )


def channel_from(facts: ChannelFacts, tensors: dict[str, np.ndarray], place: int) -> Channel:
    """The channel number `place` of an artefact from its facts and the artefact's arrays.

    Raises ArtefactError for what makes no channel; KeyError for an array that isn't there, and
    UsageError for facts that a channel or gate refuses.
    """
    gate = f"channels.{place}.gate."
    if facts.gate is None and any(name.startswith(gate) for name in tensors):
        raise ArtefactError(
            f"channel {place} of the artefact has the numbers of a gate, but repair.json says that "
            "it has none; fetch the artefact again"
        )
    parts = {name: tensors[f"channels.{place}.{name}"] for name in _parts_of(facts)}
    _check_parts(place, parts, facts.width, facts.rank)
    return Channel(
        site=facts.site,
        modality=facts.modality,
        scopes=facts.scopes,
        subspace=Subspace(
            **{name: parts[name] for name in _SUBSPACE_PARTS},
            **{fact: getattr(facts, fact) for fact in _SUBSPACE_FACTS},
            write=parts.get("write"),
        ),
        strength=facts.strength,
        gate=facts.gate
        and Gate(
            **{name: parts[f"gate.{name}"] for name in _GATE_PARTS},
            **{fact: getattr(facts.gate, fact) for fact in _GATE_FACTS},
            features=_features(parts) if facts.gate.features else None,
        ),
    )


def _features(parts: Mapping[str, np.ndarray]) -> FourierFeatures:
    return FourierFeatures(*(parts[f"gate.features.{name}"] for name in _FEATURE_PARTS))
