"""Put the parts of a job into one run, as if one process had done them all.

    OUT/shards/I-of-K/    parts, each a run (`shards`)
    OUT/                  their rows, answers, kept batches and attacks, in one run that can be gone
                          on with

Parts belong together if they are of one job (`parts`), and all digests that they are held to are
the same.
What is there already isn't taken again, so parts can be merged as they come, and again when others
are done. Not here: tables (`care.evaluation`), and what a part asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from care.errors import DataError
from care.runs.files import PART, copy_whole
from care.runs.kept_batches import FOLDER as BATCHES
from care.runs.manifest import MANIFEST, read_manifest
from care.runs.parts import check_alike, parts_in
from care.runs.rows import Rows
from care.runs.run import ANSWERS, ROWS, Run
from care.runs.shards import Shard

DONE = "shard_done"
"""What the manifest of a part says when all of its batches are there."""

COUNTS = "shard_rows"
"""Where it then says how many rows each of its files holds."""

ATTACKS = "attacks"
"""Folder of what was made to attack with, in that of a run."""

_OWN = frozenset({"created", "command", "config", "config_digest", "stages", "resumed", "pinned"})
"""Facts of a manifest that are each run's own, or are put together here."""


@dataclass(frozen=True)
class Merged:
    """What came of it."""

    done: tuple[Shard, ...]
    """Parts that are finished."""
    missing: tuple[Shard, ...]
    """Parts that aren't there, aren't finished, or have lost rows since; what they have was taken
    too."""
    rows: int
    """Judged answers that the run holds now."""
    batches: int
    """Kept batches that were taken over now."""

    @property
    def whole(self) -> bool:
        """Whether every part is finished."""
        return not self.missing


def finished(run: Run) -> dict[str, Any]:
    """What the manifest of a part says when all of its batches are there."""
    return {DONE: True, COUNTS: {ANSWERS: len(run.answers), ROWS: len(run.results)}}


def merge(out: str | Path) -> Merged:
    """Take over what all parts in the folder of a job have.

    Raises: UsageError where there are no parts, parts of different counts, or parts of different
    jobs; DataError where two of them hold different rows of one key.
    """
    out = Path(out)
    parts = parts_in(out)
    count = next(iter(parts)).count
    manifests = {shard: read_manifest(path / MANIFEST) for shard, path in parts.items()}
    check_alike(manifests)
    first = next(iter(manifests.values()))
    with Run(out, resume=True, config=first["config"]) as run:
        done: list[Shard] = []
        for shard, manifest in manifests.items():
            for what, facts in manifest["pinned"].items():
                run.pin(what, facts)
            taken = {
                ANSWERS: _take_rows(run.answers, parts[shard] / ANSWERS),
                ROWS: _take_rows(run.results, parts[shard] / ROWS),
            }
            # Parts of earlier versions don't say how many there are.
            counts = manifest.get(COUNTS, {})
            if manifest.get(DONE) and all(taken[name] >= n for name, n in counts.items()):
                done.append(shard)
        batches = sum(_take_batches(run, path) for path in parts.values())
        for shard, manifest in manifests.items():
            if manifest.get(DONE):  # whatever has become of its rows
                _take_attacks(run, parts[shard])
        facts = _facts([*manifests.values()]) | {"stages": _stages([*manifests.values()])}
        # Merged before, it may have gone on since: what it did then is its own.
        of_parts = {stage["name"] for stage in facts["stages"]}
        own = [stage for stage in run.stages if stage["name"] not in of_parts]
        told = {name: fact for name, fact in facts.items() if name not in run.manifest}
        if "suites" in facts:  # some were made since
            told["suites"] = facts["suites"] | run.manifest.get("suites", {})
        run.record(**told | {"stages": [*facts["stages"], *own]})
        every = [Shard(number + 1, count) for number in range(count)]
        missing = tuple(shard for shard in every if shard not in done)
        return Merged(tuple(done), missing, len(run.results), batches)


def _take_rows(rows: Rows, path: Path) -> int:
    """Take over the rows of a part, which may be at work; how many it has."""
    found = Rows.reading(path)
    for row in found.all():
        known = rows.get(row["key"])
        if known is not None and known != row:
            raise DataError(
                f"{path} holds another row {row['key']!r:.80} than {rows.path}; remove one of "
                "the two runs."
            )
    rows.add(*(row for row in found.all() if row["key"] not in rows))
    return len(found)


def _take_batches(run: Run, part: Path) -> int:
    """Copy the kept batches of a part that aren't there."""
    taken = 0
    for path in sorted((part / BATCHES).glob("*/*")):
        place = run.inside(BATCHES, path.parent.name, path.name)
        if place.exists() or path.name.endswith(PART) or path.is_symlink():
            continue
        copy_whole(path, place)
        taken += 1
    return taken


def _take_attacks(run: Run, part: Path) -> None:
    """Copy what a part has made to attack with and isn't there; all parts have the same."""
    for path in sorted((part / ATTACKS).rglob("*")):
        place = run.inside(*path.relative_to(part).parts)
        if path.is_dir() or path.is_symlink() or place.exists() or path.name.endswith(PART):
            continue
        copy_whole(path, place)


def _facts(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the parts say beside what is their own; of several the last one's."""
    found: dict[str, Any] = {}
    for manifest in manifests:
        found |= {k: v for k, v in manifest.items() if k not in _OWN and not k.startswith("shard")}
    return found


def _stages(manifests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cost of all parts by stage: seconds and attempts together, of memory the most."""
    found: dict[str, dict[str, Any]] = {}
    for manifest in manifests:
        for stage in manifest["stages"]:
            known = found.setdefault(stage["name"], {**stage, "seconds": 0.0, "attempts": 0})
            peaks = [p for p in (known["peak_memory_gib"], stage["peak_memory_gib"]) if p]
            known["seconds"] = round(known["seconds"] + stage["seconds"], 3)
            known["attempts"] += stage["attempts"]
            known["peak_memory_gib"] = max(peaks, default=None)
            if stage["status"] != "done":
                known["status"] = stage["status"]
    return list(found.values())
