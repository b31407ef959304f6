"""The command `care verify`: a page and an exit code for a pipeline that ships a repaired model."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from dataclasses import MISSING

import typer

from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import hide_loading_bars
from care.interfaces.cli.tables import print_table
from care.pipeline.config import VerifyJob


@command("verify", "Work")
@takes(VerifyJob, name=MISSING)
def verify(job: VerifyJob) -> None:
    """Check that a repair works on a model here: a page, and exit code 1 if it doesn't."""
    hide_loading_bars()
    from care.evaluation.verification import shown, shown_figure
    from care.pipeline import verify as verifying
    from care.runs.progress import Progress

    made = verifying.verify(job, progress=Progress)
    cells = [[c.name, shown(c), shown_figure(c), c.sentence] for c in made.checks]
    print_table(["check", "", "figure", ""], cells)
    print(job.out / verifying.PAGE)
    if not made.passed:
        raise typer.Exit(1)
