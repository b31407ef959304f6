"""The command `care export`: a run in another package's format."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from pathlib import Path
from typing import Annotated, Literal

import typer

from care.interfaces.cli.registry import command


@command("export", "Runs")
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished evaluation or repair.")],
    *,
    format: Annotated[
        Literal["inspect"], typer.Option("--format", help="inspect: logs for `inspect view`.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the logs.")] = Path("logs"),
    images: Annotated[
        bool, typer.Option("--images", help="Load the run's suites again for their pictures.")
    ] = False,
) -> None:
    """Write a run in another format: as logs of Inspect, one for each suite and defense."""
    from care.interfaces.inspect.logs import write_logs

    for path in write_logs(run, out, images=images):
        print(path)
