"""The parts of one job: split alike, and asked for with the same options.

    of one job  ⇔  equal K of I-of-K, and equal digests of their configurations

Looked at when a part is begun (`check_beside`), before hours of work that couldn't be put together,
and when parts are (`merging`). Not here: which part a process does (`shards`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from care.errors import UsageError
from care.runs.files import config_digest
from care.runs.manifest import MANIFEST, differences, read_manifest
from care.runs.secrets import hidden
from care.runs.shards import FOLDER, Shard, shard_of, shards_in


def parts_in(out: Path) -> dict[Shard, Path]:
    """The parts in the folder of a job that were begun, all of as many; UsageError for others."""
    parts = _begun(out)
    if not parts:
        raise UsageError(
            f"There are no shards in {out}; pass the --out of a job that was asked for with "
            "--shard."
        )
    counts = sorted({shard.count for shard in parts})
    if len(counts) > 1:
        raise UsageError(
            f"The shards in {out} are of jobs that were split into {counts[0]} and {counts[1]}; "
            "keep those of one and remove the others."
        )
    return parts


def check_alike(manifests: Mapping[Shard, Mapping[str, Any]]) -> None:
    """UsageError for parts that were asked for with other options than the first."""
    (one, first), *others = manifests.items()
    for shard, manifest in others:
        if manifest["config_digest"] != first["config_digest"]:
            changed = differences(first["config"], manifest["config"])
            raise UsageError(
                f"Shards {one} and {shard} are of different jobs ({changed}); ask for all shards "
                "with the same options."
            )


def check_beside(folder: Path, config: Mapping[str, Any]) -> None:
    """UsageError where a run in `folder` would be a part beside parts of another job."""
    own = shard_of(folder)
    if own is None:
        return
    out = folder.parent.parent
    for shard, path in _begun(out).items():
        if shard == own:
            continue
        if shard.count != own.count:
            raise UsageError(
                f"Shard {own} can't be begun: the job in {out} was split into {shard.count} "
                f"({shard} is there); ask for shards of {shard.count}, remove {out / FOLDER}, or "
                "choose another --out."
            )
        manifest = read_manifest(path / MANIFEST)
        if manifest["config_digest"] != config_digest(config):
            changed = differences(manifest["config"], hidden(config))
            raise UsageError(
                f"Shard {own} can't be begun: shard {shard} in {out} was asked for with other "
                f"options ({changed}); ask for it with the same, or choose another --out."
            )


def _begun(out: Path) -> dict[Shard, Path]:
    return {s: path for s, path in shards_in(out).items() if (path / MANIFEST).is_file()}
