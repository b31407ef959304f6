"""The command `care report`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from pathlib import Path
from typing import Annotated

import typer

from care.interfaces.cli.registry import command


@command("report", "Runs")
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or its report.json.")],
) -> None:
    """Write report.html anew from report.json."""
    from care.report.files import load_report, write_report

    page, _ = write_report(load_report(run), run if run.is_dir() else run.parent)
    print(page)
