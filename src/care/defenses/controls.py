"""Controls of a repair: repairs with other directions at the same sites.

They differ from it in the directions alone: what they achieve is not the doing of the unsafe
subspace.
"""

from __future__ import annotations

from dataclasses import replace

from care.defenses.repair.fitting import Fitter
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace


def random_control(repair: Repair, seed: int = 0) -> Repair:
    """The repair with random orthonormal directions of the same rank, in all else the same."""
    channels = []
    for place, channel in enumerate(repair.channels):
        old = channel.subspace
        drawn = random_subspace(old.width, old.rank, old.mean, seed=seed + place)
        channels.append(replace(channel, subspace=drawn))
    return replace(repair, channels=tuple(channels), name="random subspace")


def means_control(repair: Repair, fitter: Fitter) -> Repair:
    """The repair with the bare difference of means in place of every channel."""
    return replace(repair, channels=fitter.means(repair.channels), name="difference of means")
