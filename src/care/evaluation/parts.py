"""`--parts`: a repair beside what each half of it does alone.

    edits only       its channels behind their gates, without monitors
    monitors only    its monitors; an answer that raises an alarm is a refusal at once

Both are derived from the one repair that is given, and saved in the run's folder (parts/), where
everything that takes a defense finds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from care.defenses.loading import load_defense
from care.defenses.repair.repair import Repair
from care.errors import UsageError
from care.evaluation.config import PARTS, part_paths
from care.runs.run import Run


def check_parts(repairs: Sequence[Path]) -> Repair:
    """The one repair that has two parts; UsageError if there is none."""
    if len(repairs) != 1:
        raise UsageError(f"--parts takes one repair apart, got {len(repairs)}; pass one --repair.")
    repair = load_defense(repairs[0])
    if not (isinstance(repair, Repair) and repair.monitors and repair.channels):
        raise UsageError(
            f"--parts needs a repair with edits and monitors, and {repairs[0]} has not both; leave "
            "--parts out."
        )
    return repair


def write_parts(repairs: Sequence[Path], run: Run) -> None:
    """Save the parts that aren't there yet."""
    repair = check_parts(repairs)
    derived: dict[str, Repair] = dict(
        zip(PARTS, (repair.edits_only(), repair.monitors_only()), strict=True)
    )
    for name, path in part_paths(run.path).items():
        place = run.inside(*path.relative_to(run.path).parts)
        if not place.exists():
            derived[name].save(place, memory=False)
