"""Attacks that the shards of an evaluation make together.

    OUT/shards/I-of-K/attacks/NAME/N/state*    checkpoints of what part I descends or searches

First each shard makes its turns of all attempts (`care.runs.shards.ShardTurns`): restarts of a
universal picture, of pictures for single requests, and suffixes, on each defense. Then, when all
shards are that far, each takes over the others' checkpoints, with which the attack is finished as
one process finishes it that goes on: to the same pictures and suffixes. What is asked with them is
split as any other suite. An evaluation without --shard takes the checkpoints over in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from care.attacks.variants import SearchedAttack
from care.evaluation.asked_attacks import AskedVariants, ImageAttack
from care.runs.files import PART, copy_whole
from care.runs.manifest import MANIFEST, read_manifest
from care.runs.merging import ATTACKS
from care.runs.run import Run
from care.runs.shards import FOLDER, Shard, ShardTurns, shards_in

MADE = "shard_attacks"
"""What the manifest of a part says when it has made its turns of the attacks."""

CHECKPOINTS = f"{ATTACKS}/*/*/state*"
"""Where they lie in the folder of a run."""


def are_made(images: Sequence[ImageAttack], in_variants: Sequence[AskedVariants]) -> bool:
    """Whether anything is descended or searched."""
    return bool(images) or any(isinstance(each.attack, SearchedAttack) for each in in_variants)


def in_turns(run: Run, shard: Shard, make: Callable[[ShardTurns], None]) -> tuple[Shard, ...]:
    """`make` the turns of the part `run`, unless it has; the parts that haven't made theirs yet."""
    if not run.manifest.get(MADE):
        make(ShardTurns(shard))
        run.record(**{MADE: True})
    return _waited_for(run, shard)


def _waited_for(run: Run, shard: Shard) -> tuple[Shard, ...]:
    """The parts that haven't made their turns yet, of the same job as the part `run`."""
    digest, found = run.manifest["config_digest"], []
    there = shards_in(_job_of(run.path))
    for number in range(1, shard.count + 1):
        other = Shard(number, shard.count)
        file = there.get(other, Path()) / MANIFEST
        told = read_manifest(file) if other in there and file.is_file() else {}
        if not told.get(MADE) or told.get("config_digest") != digest:
            found.append(other)
    return tuple(found)


def take_over(run: Run, shard: Shard | None, checkpoints: str = CHECKPOINTS) -> None:
    """Copy the checkpoints (a pattern of paths) that parts of the job have made and this run
    doesn't have, or has older ones of."""
    out = run.path if shard is None else _job_of(run.path)
    for part in shards_in(out).values():
        if part == run.path:
            continue
        for file in sorted(part.glob(checkpoints)):
            place = run.inside(*file.relative_to(part).parts)
            known = place.stat().st_mtime if place.exists() else 0.0
            if file.name.endswith(PART) or file.is_symlink() or known >= file.stat().st_mtime:
                continue
            copy_whole(file, place)


def _job_of(path: Path) -> Path:
    """Folder of the job of a part's run."""
    assert path.parent.name == FOLDER
    return path.parent.parent
