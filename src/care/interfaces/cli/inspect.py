"""The command for Inspect: `care inspect-log`. Nothing is computed here."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from pathlib import Path
from typing import Annotated

import typer


def inspect_log(
    run: Annotated[Path, typer.Argument(help="Folder of a finished evaluation or repair.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the logs.")] = Path("logs"),
    images: Annotated[
        bool, typer.Option("--images", help="Load the run's suites again for their pictures.")
    ] = False,
) -> None:
    """Write a run as logs of Inspect, one for each suite and defense, for `inspect view`."""
    from care.interfaces.inspect.logs import write_logs

    for path in write_logs(run, out, images=images):
        print(path)
