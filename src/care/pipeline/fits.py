"""Fits of a comparison, each kept once it is there, so that a killed job goes on with the next.

    fits.jsonl     a line for each: how long it took, or why there is none
    fits/KEY/      the defense

A defense that can't be stored is fitted anew when the job is resumed. What can't be fitted on this
model or these requests is told and not an end of the job.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from care.defenses.base import Defense
from care.defenses.loading import load_defense
from care.errors import ArtefactError, FitError, ModelError, SiteError, UsageError
from care.models.vlm import VLM
from care.runs.rows import Row, Rows
from care.runs.run import Run

FILE = "fits.jsonl"
_LONG = 60
_UNFIT = (FitError, SiteError, ArtefactError, ModelError, UsageError)
"""What says that a defense doesn't suit the model, its settings or what it is fitted on."""

Made = tuple[Defense, float]
"""A defense, and the seconds that its fit took."""


@dataclass(frozen=True)
class Fit:
    """A defense that was fitted, or why there is none."""

    defense: Defense | None
    """The defense."""
    seconds: float
    """How long it took."""
    failed: str | None
    """Why there is none."""
    folder: Path | None = None
    """Where it is kept, if it can be stored."""


class Fits:
    """The fits of one run."""

    def __init__(self, run: Run, vlm: VLM) -> None:
        self.run, self.vlm = run, vlm
        self.rows = Rows(run.path / FILE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.rows.close()

    def made(self, key: str, make: Callable[[], Made]) -> Fit:
        """The fit `key`, made now or read back."""
        row = self.rows.get(key)
        if row is not None and row["failed"] is not None:
            return Fit(None, row["seconds"], row["failed"])
        if row is not None and row["stored"]:
            folder = self._folder(key)
            return Fit(load_defense(folder, self.vlm), row["seconds"], None, folder)
        begun = time.perf_counter()
        try:
            defense, seconds = make()
            defense.check(self.vlm)
            folder = None if defense.stored_as is None else defense.save(self._folder(key))
        except _UNFIT as error:
            seconds = time.perf_counter() - begun
            self._add(row, key, seconds, str(error), False)
            return Fit(None, seconds, str(error))
        self._add(row, key, seconds, None, folder is not None)
        return Fit(defense, seconds, None, folder)

    def _folder(self, key: str) -> Path:
        return self.run.inside("fits", _file_name(key))

    def _add(
        self, row: Row | None, key: str, seconds: float, failed: str | None, stored: bool
    ) -> None:
        if row is None:
            told = {"seconds": round(seconds, 3), "failed": failed, "stored": stored}
            self.rows.add({"key": key} | told)


def _file_name(key: str) -> str:
    """A file's name for a key: its words, and a digest where they don't tell all of it."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", key).strip("-")
    if len(words) < _LONG and not re.search(r"[^A-Za-z0-9 ,:-]", key):
        return words
    return f"{words[:_LONG]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def timed(make: Callable[[], Defense]) -> Made:
    """What `make` gives, and how long it took."""
    begun = time.perf_counter()
    return make(), time.perf_counter() - begun
