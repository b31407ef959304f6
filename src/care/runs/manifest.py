"""manifest.json: what was run, on what machine, with which versions; stages with their cost.

The manifest is what a run is told by when it is resumed, judged again or converted; so what is read
of it is held to its type, and a file that isn't one is refused in one sentence. What isn't named
here is left alone. Writing it is in `run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from care.errors import DataError, UsageError
from care.runs.reading import read_json
from care.typed import Count, Misfit, NonNegative, from_tree, show

MANIFEST = "manifest.json"
"""Name of the file in a run's folder."""

SCHEMA = "care.run/1"
"""Version of the layout of manifest.json and rows.jsonl."""

TODO = "restore it or start a new run"
"""What to do about a manifest that can't be used."""

Facts = dict[str, Any]
"""An object with any names."""


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """A part of the job and its cost."""

    name: str
    """Name of the stage."""
    seconds: NonNegative
    """Time over all attempts."""
    peak_memory_gib: NonNegative | None
    """Largest memory of the process; none where the system doesn't tell."""
    attempts: Count
    """How often it was begun."""
    status: Literal["running", "done", "failed"]
    """How the last attempt ended; "running" after a kill."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is read of manifest.json, here and by those who judge or convert a run."""

    schema: str
    """Version of the layout."""
    created: str
    """When the run was begun, as ISO 8601."""
    config: Facts
    """What decides the rows."""
    config_digest: str
    """SHA-256 of all of it."""
    stages: tuple[StageCost, ...]
    """In order of first entry."""
    resumed: list[Any]
    """When, and with which versions, the run was gone on with."""
    pinned: dict[str, Facts] = field(default_factory=dict[str, Facts])
    """Digests that the run is held to, by kind."""
    suites: dict[str, Facts] = field(default_factory=dict[str, Facts])
    """Facts of each suite."""
    judges: dict[str, Facts] = field(default_factory=dict[str, Facts])
    """What decides each judge."""
    files: dict[str, str] = field(default_factory=dict[str, str])
    """Digests of files that were signed."""
    machine: Facts = field(default_factory=dict[str, Any])
    """Facts of the machine."""
    versions: Facts = field(default_factory=dict[str, Any])
    """Versions of the packages."""
    model: str = ""
    """Name of the model."""

    def check(self) -> None:
        """Misfit for a moment that can't be read."""
        try:
            datetime.fromisoformat(self.created)
        except ValueError:
            words = f"is {show(self.created)}; it must be a time as ISO 8601"
            raise Misfit("created", words) from None


def now() -> str:
    """The present moment in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_is_run(folder: Path) -> None:
    """UsageError for a folder that holds no run."""
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"There is no run in {folder}; pass the folder of a finished evaluation.")


def read_manifest(path: Path) -> dict[str, Any]:
    """A run's manifest; DataError for a file that isn't one."""
    found = read_json(path, "manifest", otherwise=TODO)
    manifest = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    if manifest.get("schema") != SCHEMA:
        raise DataError(
            f"{path} isn't the manifest of a run this version can resume (schema {SCHEMA}); "
            "choose another folder."
        )
    from_tree(Manifest, manifest, strict=False, what=f"The manifest {path}", todo=TODO)
    return manifest


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first few settings that differ, as "seed: 0 then, 1 now"."""
    names = [n for n in sorted(old.keys() | new.keys()) if old.get(n) != new.get(n)]
    told = [f"{n}: {old.get(n)!r:.40} then, {new.get(n)!r:.40} now" for n in names[:3]]
    return "; ".join([*told, f"and {len(names) - 3} more"] if len(names) > 3 else told)
