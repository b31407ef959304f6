"""Parts of the main job that need no model."""

from __future__ import annotations

from pathlib import Path

from care import pipeline


def test_folders_of_one_name_are_told_apart() -> None:
    folders = [Path("a/repair"), Path("b/repair"), Path("c/other")]
    assert pipeline._names(folders) == ["a/repair", "b/repair", "other"]
