"""The command `care ray`: another command in shards, on the workers of Ray."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import sys
from pathlib import Path
from typing import Annotated

import typer

from care.interfaces.cli.commands.merge import merge
from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.ray.pool import PoolConfig, folder_of, run_shards


@command("ray", "Runs")
@takes(PoolConfig)
def ray(
    config: PoolConfig,
    *,
    asked: Annotated[
        list[str],
        typer.Argument(
            metavar="-- COMMAND…", help="evaluate, repair or fit with its options, after --."
        ),
    ],
) -> None:
    """Run a command in shards on the workers of Ray, and put them together."""
    out = folder_of(asked)
    from care.interfaces.cli.app import main

    run_shards(main, asked, config, lambda line: print(line, file=sys.stderr))
    merge(Path(out))
