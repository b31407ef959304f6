"""Which positions of two runs correspond, by their roles.

Two runs can be compared, or one given what the other computed, only where their positions belong
together. Prompts of unequal length are matched within each role: text counted from the end (where
the question and the answer's opening are), image and answer tokens from the start.
"""

import torch
from torch import Tensor

from care.models.sites import Role


def align(here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """For each position of roles `here` (B, T), its counterpart among roles `there` (B, S).

    Returns indices into S (B, T) and a mask (B, T) of the positions that have a counterpart: as
    many of each role as both runs have.
    """
    index = torch.zeros_like(here)
    found = torch.zeros_like(here, dtype=torch.bool)
    for role in (Role.TEXT, Role.IMAGE, Role.RESPONSE):
        mine, theirs = here == role, there == role
        if role == Role.TEXT:
            rank, count = mine.flip(1).cumsum(1).flip(1) - 1, theirs.sum(1, keepdim=True)
            places = theirs.flip(1).int().argsort(dim=1, descending=True, stable=True)
            places = theirs.shape[1] - 1 - places
        else:
            rank, count = mine.cumsum(1) - 1, theirs.sum(1, keepdim=True)
            places = theirs.int().argsort(dim=1, descending=True, stable=True)
        own = mine & (rank < count)
        at = places.gather(1, rank.clamp(0, theirs.shape[1] - 1))
        index, found = torch.where(own, at, index), found | own
    return index, found
