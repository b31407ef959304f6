"""Where a command writes, whether it goes on with what is there, and what it draws with.

Part of each command's configuration; what decides the figures is told by the command itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from care.runs.settings import MAX_BATCH, MAX_SEED, Between, check_bounds


@dataclass(frozen=True)
class RunSpec:
    """The folder, the seed and the size of a batch."""

    out: Path
    """Folder of the run."""
    resume: bool = False
    """Go on with the run in --out, or start."""
    seed: Annotated[int, Between(0, MAX_SEED)] = 0
    """Seed of everything random."""
    batch_size: Annotated[int | None, Between(1, MAX_BATCH)] = None
    """Examples at once; none: by the command and the model."""

    def __post_init__(self) -> None:
        check_bounds(self)
