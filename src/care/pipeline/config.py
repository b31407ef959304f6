"""What `care repair`, `care diagnose` and `care fit` are asked for.

Plain data, which the command line shows and a manifest stores. What a job works on is in `splits`,
what it does in `workflow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from care.errors import UsageError
from care.models.spec import ModelSpec
from care.runs.settings import FILE, MANY, MAX_BATCH, Between, check_bounds
from care.runs.spec import RunSpec

Preset = Literal["paper", "official", "corrected"]

QUICK = 4
"""One in so many examples is asked in a quick job."""
QUICKLY = "a quarter of the examples"
"""The same in words, for what a quick job writes."""


@dataclass(frozen=True, kw_only=True)
class RepairJob:
    """One main job, or a part of it."""

    run: RunSpec = RunSpec(Path("runs/repair"))
    """Where it goes."""
    attacks: Annotated[Path | None, FILE] = None
    """Attacks of your own, JSON Lines; none: the small world's."""
    benign: Annotated[Path | None, FILE] = None
    """Benign requests of your own, JSON Lines."""
    preset: Preset = "corrected"
    """How the repair is fitted."""
    test_length: Annotated[int, Between(1, MANY)] = 60  # as long as the small world's suites
    """Test examples of each suite."""
    quick: bool = False
    """The same on a quarter of the examples, for a first look."""
    max_new_tokens: Annotated[int, Between(1, MAX_BATCH)] = 24
    """Length of an answer in tokens."""
    model: ModelSpec = ModelSpec()
    """What is repaired."""

    def __post_init__(self) -> None:
        if (self.attacks is None) != (self.benign is None):
            raise UsageError("pass both --attacks and --benign, or neither")
        check_bounds(self)

    @property
    def batch(self) -> int:
        """Examples that are answered together."""
        return self.model.batch(self.run.batch_size)

    def config(self) -> dict[str, Any]:
        """Everything that decides the numbers, for the manifest."""
        quick = {"quick": QUICKLY} if self.quick else {}
        files = {"attacks": self.attacks, "benign": self.benign}
        return {
            **self.model.facts(),
            "seed": self.run.seed,
            "preset": self.preset,
            **{name: None if path is None else str(path) for name, path in files.items()},
            "batch_size": self.run.batch_size,
            "max_new_tokens": self.max_new_tokens,
            "test_length": self.test_length,
            **quick,
        }
