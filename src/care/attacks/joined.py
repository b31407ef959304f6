"""Stages joined: the strongest variants of several attacks, put one upon the other.

Defenses in a row fall one after the other where each is attacked by what beats it alone and the
attacks are then joined (STACK, McKenzie et al. 2025, arXiv 2506.24068). Of each stage (template,
suffix, turns, opening, picture) the variant is taken that worked on a request under the defense, of
several the one that worked on most requests, and so if none did. All of them are asked at once,
and, since one can spoil another, all but each in turn.

Which variants worked is read off answers that are judged already (`care.evaluation.joined`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from care.attacks.variants import STAGES, Stage, Variant, VariantAttack, composed

ALL = "all"
"""Name of the variant in which everything is joined."""


@dataclass(frozen=True)
class Joined(VariantAttack):
    """The strongest variants of the other attacks asked for, all at once."""

    name: ClassVar[str] = "joined"
    source: ClassVar[str] = "McKenzie et al. 2025"
    stage: ClassVar[Stage] = "template"

    @property
    def tries(self) -> int:
        """Everything at once, and without each stage; fewer where fewer stages are attacked."""
        return len(STAGES)


@dataclass(frozen=True)
class TriedVariant:
    """A variant of some attack, and where it worked."""

    stage: Stage
    """What it changes."""
    variant: Variant
    """The change; its name is unique among all parts."""
    wins: Mapping[str, bool]
    """Whether it worked, by the id of the request; requests without a judged answer are missing."""

    @property
    def share(self) -> float:
        """Share of the judged requests on which it worked."""
        return sum(self.wins.values()) / len(self.wins) if self.wins else 0.0


def strongest(parts: Sequence[TriedVariant], request: str) -> dict[Stage, TriedVariant]:
    """The part to take of each stage for a request, of those that were tried on it.

    Draws are none, since nothing is changed.
    """
    found: dict[Stage, TriedVariant] = {}
    for part in parts:
        if part.stage == "draw" or request not in part.wins:
            continue
        best = found.get(part.stage)
        if best is None or _strength(part, request) > _strength(best, request):
            found[part.stage] = part
    return found


def joins_of(chosen: Mapping[Stage, Variant]) -> list[Variant]:
    """All stages at once and, of three or more, all but each in turn."""
    stages: list[Stage] = sorted(chosen, key=STAGES.index)
    left_out: list[Stage | None] = [None]
    if len(stages) > 2:
        left_out += stages
    return [
        Variant(
            ALL if out is None else f"no-{out}",
            composed([(stage, chosen[stage]) for stage in stages if stage != out]).change,
        )
        for out in left_out
    ]


def _strength(part: TriedVariant, request: str) -> tuple[bool, float]:
    return part.wins[request], part.share
