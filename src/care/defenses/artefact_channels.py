"""A channel as an artefact holds it: facts as JSON, numbers as named arrays, and their checks.

Both ways: what is written is checked as what is read is. Not here: the files (`artefact`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from care.defenses.repair.channel import Channel
from care.defenses.repair.gate import FourierFeatures, Gate
from care.defenses.repair.subspace import Subspace
from care.errors import ArtefactError
from care.models.sites import Site

_SUBSPACE_FACTS = (
    "null_quantile",
    "significant",
    "shrinkage",
    "condition",
    "n_malicious",
    "n_benign",
)

_GATE_PARTS = ("filters", "mean", "low", "high")
_FEATURE_PARTS = ("weights", "phases")

MAX_LENGTH = 10.0
"""Greatest length of a direction that is taken; those that are fitted have length 1."""

MAX_ENTRY = 1e9
"""Greatest entry of means and gates that is taken, far above any activation."""

_TYPES = {"eigenvalues": np.float64}
"""Types of the arrays; those that aren't named here are float32."""


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


def names_of(channels: list[dict[str, Any]]) -> set[str]:
    """Names of all arrays that channels with these facts use."""
    return {
        f"channels.{place}.{name}"
        for place, facts in enumerate(channels)
        for name in _parts_of(facts)
    }


def _parts_of(facts: dict[str, Any]) -> list[str]:
    gate: list[str] = []
    if (told := facts["gate"]) is not None:
        gate = [f"gate.{name}" for name in _GATE_PARTS]
        if told.get("features", False):
            gate += [f"gate.features.{name}" for name in _FEATURE_PARTS]
    write = ["write"] if facts.get("oblique", False) else []
    return ["basis", "mean", "eigenvalues", *write, *gate]


def channel_to(channel: Channel, place: int) -> dict[str, Any]:
    """The facts of channel number `place`; ArtefactError for a gate that couldn't be read again."""
    subspace = channel.subspace
    gate = None if channel.gate is None else _gate_facts(channel.gate)
    _check_gate_facts(place, gate)
    facts = {
        "site": str(channel.site),
        "modality": channel.modality,
        "scopes": list(channel.scopes),
        "strength": channel.strength,
        "gate": gate,
        "rank": subspace.rank,
        "width": subspace.width,
    } | {fact: getattr(subspace, fact) for fact in _SUBSPACE_FACTS}
    return facts if subspace.write is None else facts | {"oblique": True}


def arrays_of(channel: Channel, place: int) -> dict[str, np.ndarray]:
    """The arrays of channel number `place` by name, in the types they are stored in.

    Raises ArtefactError for those that couldn't be read again.
    """
    parts = _parts(channel)
    _check_parts(place, parts, channel.subspace.width, channel.subspace.rank)
    return parts


def _parts(channel: Channel) -> dict[str, np.ndarray]:
    subspace = channel.subspace
    gate = channel.gate
    parts = {
        "basis": subspace.basis,
        "mean": subspace.mean,
        "eigenvalues": subspace.eigenvalues,
    }
    if subspace.write is not None:
        parts["write"] = subspace.write
    if gate is not None:
        parts |= {f"gate.{name}": getattr(gate, name) for name in _GATE_PARTS}
        if gate.features is not None:
            parts |= {f"gate.features.{n}": getattr(gate.features, n) for n in _FEATURE_PARTS}
    with np.errstate(over="ignore"):  # what overflows is refused for not being finite
        return {
            name: np.ascontiguousarray(part, _TYPES.get(name, np.float32))
            for name, part in parts.items()
        }


def _gate_facts(gate: Gate) -> dict[str, Any]:
    facts = {fact: getattr(gate, fact) for fact in ("opened_benign", "quantile")}
    facts |= {"families": list(gate.families), "opened": dict(gate.opened)}
    return facts if gate.features is None else facts | {"features": True}


def _gate(facts: dict[str, Any], parts: dict[str, np.ndarray]) -> Gate:
    features = None
    if facts.get("features", False):
        features = FourierFeatures(*(parts[f"gate.features.{name}"] for name in _FEATURE_PARTS))
    return Gate(
        **{name: parts[f"gate.{name}"] for name in _GATE_PARTS},
        features=features,
        families=tuple(facts["families"]),
        **{fact: facts[fact] for fact in ("opened", "opened_benign", "quantile")},
    )


def _check_gate_facts(place: int, facts: object) -> None:
    """ArtefactError unless they are null or names with shares in [0, 1]."""
    if facts is None:
        return
    if not isinstance(facts, dict):
        raise ArtefactError(
            f"gate of channel {place} must be an object of facts or null, got {facts!r:.80}; "
            "correct it or fetch the artefact again"
        )
    families, opened = facts["families"], facts["opened"]
    wanted = {
        "families": ("a list of texts", _are_texts(families)),
        "opened": (
            "an object of shares in [0, 1]",
            isinstance(opened, dict)
            and _are_texts(list(opened))
            and all(map(_is_share, opened.values())),
        ),
    }
    flag = facts.get("features", False)
    wanted["features"] = ("true or left out", isinstance(flag, bool))
    for fact in ("opened_benign", "quantile"):
        fine = facts[fact] is None or _is_share(facts[fact])
        wanted[fact] = ("a number in [0, 1] or null", fine)
    for fact, (form, fine) in wanted.items():
        if not fine:
            raise ArtefactError(
                f"{fact} of the gate of channel {place} must be {form}, got {facts[fact]!r:.80}; "
                "correct it or fetch the artefact again"
            )


def _are_texts(names: object) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _is_share(number: object) -> bool:
    return isinstance(number, int | float) and type(number) is not bool and 0 <= number <= 1


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


def channel_from(facts: dict[str, Any], tensors: dict[str, np.ndarray], place: int) -> Channel:
    """The channel number `place` of an artefact from its facts and the artefact's arrays.

    Raises ArtefactError for what makes no channel; KeyError, TypeError and UsageError where facts
    are missing or of another kind.
    """
    _check_gate_facts(place, facts["gate"])
    if not isinstance(facts.get("oblique", False), bool):
        raise ArtefactError(
            f"oblique of channel {place} must be true or left out, got {facts['oblique']!r:.80}; "
            "correct it or fetch the artefact again"
        )
    names = _parts_of(facts)
    gate = f"channels.{place}.gate."
    if facts["gate"] is None and any(name.startswith(gate) for name in tensors):
        raise ArtefactError(
            f"channel {place} of the artefact has the numbers of a gate, but repair.json says that "
            "it has none; fetch the artefact again"
        )
    parts = {name: tensors[f"channels.{place}.{name}"] for name in names}
    _check_parts(place, parts, facts["width"], facts["rank"])
    for fact in _SUBSPACE_FACTS:
        if not isinstance(facts[fact], int | float | None):
            raise ArtefactError(
                f"{fact} of channel {place} must be a number or null, got {facts[fact]!r:.80}; "
                "fetch the artefact again"
            )
    subspace = Subspace(
        **{name: part for name, part in parts.items() if not name.startswith("gate.")},
        **{fact: facts[fact] for fact in _SUBSPACE_FACTS},
    )
    scopes = facts["scopes"]
    return Channel(
        site=Site.parse(facts["site"]),
        modality=facts["modality"],
        scopes=tuple(scopes) if isinstance(scopes, list) else scopes,
        subspace=subspace,
        strength=facts["strength"],
        gate=None if facts["gate"] is None else _gate(facts["gate"], parts),
    )
