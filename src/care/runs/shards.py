"""A part of a job that one of several processes does, and where it puts it.

    --shard 2/8      the second of eight
    --shard auto     as torchrun or SLURM says it: RANK and WORLD_SIZE, SLURM_PROCID and
                     SLURM_NTASKS, or SLURM_ARRAY_TASK_ID, _MIN and _COUNT

    OUT/shards/2-of-8/    the run of that part; `care merge OUT` puts all of them into OUT

What is split are whole batches, the same ones however many parts there are, so that what is
answered doesn't depend on their number. A part is a run of its own: killed, it goes on, and nothing
is counted twice. Not here: whether parts are of one job (`parts`), and putting them together
(`merging`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from care.errors import UsageError

FOLDER = "shards"
"""Name of the folder of all parts in that of their job."""

AUTO = "auto"

MOST = 100_000
"""Most parts of a job."""

_NAME = re.compile(r"(\d+)-of-(\d+)")
_SAID = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True, order=True)
class Shard:
    """One of several parts."""

    number: int
    """Which, from 1."""
    count: int
    """Of how many."""

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= MOST:
            raise UsageError(
                f"A shard is I/K with 1 ≤ I ≤ K ≤ {MOST}, got {self.number}/{self.count}."
            )

    @classmethod
    def of(cls, said: str, environment: Mapping[str, str] = os.environ) -> Shard:
        """From I/K, or auto; UsageError for another text, or where nothing says which it is."""
        if said == AUTO:
            return cls._launched(environment)
        found = _SAID.fullmatch(said.strip())
        if found is None:
            raise UsageError(f"A shard is written I/K, as 2/8, or {AUTO}, got {said!r:.40}.")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def _launched(cls, environment: Mapping[str, str]) -> Shard:
        for rank, size, first in _LAUNCHERS:
            if rank in environment and size in environment:
                names = (rank, size, first) if first else (rank, size)
                told = [environment.get(name, "") for name in names]
                if not all(text.isascii() and text.isdigit() for text in told):
                    raise UsageError(
                        f"--shard {AUTO} reads {', '.join(names)}, which are {', '.join(told)}; "
                        "they must be numbers: say which it is, as I/K."
                    )
                begin = int(told[2]) if first else 0
                return cls(int(told[0]) - begin + 1, int(told[1]))
        names = "; ".join(f"{rank} and {size}" for rank, size, _ in _LAUNCHERS)
        raise UsageError(
            f"--shard {AUTO} is for processes that torchrun or SLURM started, but none of {names} "
            "is set; say which it is, as I/K."
        )

    def takes(self, place: int) -> bool:
        """Whether the batch at this place, from 0, is in it."""
        return place % self.count == self.number - 1

    def folder(self, out: Path) -> Path:
        """Folder of the run of this part of the job in `out`."""
        return out / FOLDER / f"{self.number}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class ShardTurns:
    """Deals pieces of work out to the parts of a job, in an order that is the same in all."""

    def __init__(self, shard: Shard) -> None:
        self.shard, self._dealt = shard, 0

    def next(self, count: int) -> list[int]:
        """Which of the next `count` pieces, from 0, are this part's."""
        first, self._dealt = self._dealt, self._dealt + count
        return [number for number in range(count) if self.shard.takes(first + number)]


_LAUNCHERS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("RANK", "WORLD_SIZE", None),
    ("SLURM_PROCID", "SLURM_NTASKS", None),
)
"""Who says which process one is, how many there are, and from which number they are counted."""


def shard_of(folder: Path) -> Shard | None:
    """The part whose run lies, or will lie, in a folder; None for another run's."""
    name = _NAME.fullmatch(folder.name)
    if name is None or folder.parent.name != FOLDER:
        return None
    return Shard(int(name[1]), int(name[2]))


def shards_in(out: Path) -> dict[Shard, Path]:
    """The parts that lie in the folder of a job, in their order."""
    folder = out / FOLDER
    found = {
        shard: path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and (shard := shard_of(path))
    }
    return dict(sorted(found.items()))
