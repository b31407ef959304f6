"""manifest.json: what was run, on what machine, with which versions; stages with their cost.

The manifest is what a run is told by when it is resumed, judged again or converted; so what is read
of it is held to its shape, and a file that isn't one is refused in one sentence. Writing it is in
`run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from care.errors import DataError
from care.runs.reading import read_json
from care.runs.shapes import NUMBER, NUMBER_OR_NONE, TEXT_OR_NONE, Kind, check

MANIFEST = "manifest.json"
"""Name of the file in a run's folder."""

SCHEMA = "care.run/1"
"""Version of the layout of manifest.json and rows.jsonl."""

_MANIFEST: Kind = {
    "schema": str,
    "created": datetime,
    "config": {
        "model?": TEXT_OR_NONE, "suites?": [str], "utility?": [str], "repairs?": [str],
        "adaptive?": [str], "limit?": frozenset({int, None}), "seed?": int, "dtype?": str,
        "cuts_refusals?": bool, "max_new_tokens?": int, "test_length?": int,
        "attacks?": TEXT_OR_NONE, "benign?": TEXT_OR_NONE,
    },
    "config_digest": str,
    "stages": [
        {"name": str, "seconds": NUMBER, "attempts": int, "status": ("running", "done", "failed"),
         "peak_memory_gib": NUMBER_OR_NONE}
    ],
    "resumed": list,
    "pinned?": {str: dict},
    "suites?": {str: dict},
    "judges?": {str: dict},
    "files?": {str: str},
    "machine?": dict,
    "versions?": dict,
    "model?": str,
    "leaks?": str,
    "repair_leaks?": {
        str: {
            "checked": str, "why": str,
            "found": {str: {"examples": int, "of": int, "ids": [str]}},
        }
    },
}  # fmt: skip
"""What is read of manifest.json, here and by those who judge or convert a run."""


def now() -> str:
    """The present moment in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_manifest(path: Path) -> dict[str, Any]:
    """A run's manifest; DataError for a file that isn't one."""
    found = read_json(path, "manifest", otherwise="restore it or start a new run")
    manifest = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    if manifest.get("schema") != SCHEMA:
        raise DataError(
            f"{path} isn't the manifest of a run this version can resume (schema {SCHEMA}); "
            "choose another folder."
        )
    check(manifest, _MANIFEST, str(path), "restore it or start a new run")
    return manifest


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first few settings that differ, as "seed: 0 then, 1 now"."""
    names = [n for n in sorted(old.keys() | new.keys()) if old.get(n) != new.get(n)]
    told = [f"{n}: {old.get(n)!r:.40} then, {new.get(n)!r:.40} now" for n in names[:3]]
    return "; ".join([*told, f"and {len(names) - 3} more"] if len(names) > 3 else told)
