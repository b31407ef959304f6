"""The command `care report`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from pathlib import Path
from typing import Annotated

import typer

from care.interfaces.cli.registry import command


@command("report", "Runs")
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or its JSON.")],
) -> None:
    """Write the pages of a run anew: main job, evaluation, comparison, ablation or diagnosis."""
    from care.report.stored import pages_of

    for page in pages_of(run):
        print(page)
