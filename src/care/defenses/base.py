"""Defenses: anything that can be applied to a VLM and taken off again.

A repair is one. The controls of a repair are repairs too, with other directions at the same
sites, so that they differ from it in the directions alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace
from care.models.vlm import VLM


@runtime_checkable
class Defense(Protocol):
    """What `evaluate` compares.

    A defense may have an attribute `late`: True promises that it changes nothing before the last
    position of a prompt, so that `evaluate` reads the prompts of a batch once, before it is put
    on, and shares that between defenses. Without it every prompt is read under the defense.
    """

    @property
    def name(self) -> str:
        """Name in tables."""
        ...

    def applied(self, vlm: VLM) -> AbstractContextManager[Any]:
        """A context in which `vlm` is defended."""
        ...


def random_control(repair: Repair, seed: int = 0) -> Repair:
    """The repair with random orthonormal directions of the same rank, in all else the same."""
    channels = []
    for place, channel in enumerate(repair.channels):
        old = channel.subspace
        drawn = random_subspace(old.width, old.rank, old.mean, seed=seed + place)
        channels.append(replace(channel, subspace=drawn))
    return replace(repair, channels=tuple(channels), name="random subspace")
