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
            metavar="-- COMMAND…",
            help="evaluate, repair, fit or attack with its options, after --.",
        ),
    ],
) -> None:
    """Run a command in shards on the workers of Ray, and put them together."""
    out = folder_of(asked)
    from care.interfaces.cli.app import main

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    run_shards(main, asked, config, tell)
    if asked[0] == "attack":  # the image of all attempts
        raise typer.Exit(main([*asked, *([] if "--resume" in asked else ["--resume"])]))
    if _waiting(Path(out)):
        tell("The attacks are made; now what they ask is answered.")
        run_shards(main, asked, config, tell)
    merge(Path(out))


def _waiting(out: Path) -> bool:
    """Whether shards have made attacks and not answered yet."""
    from care.evaluation.attack_parts import MADE
    from care.runs.manifest import MANIFEST, read_manifest
    from care.runs.merging import DONE
    from care.runs.shards import shards_in

    told = [read_manifest(path / MANIFEST) for path in shards_in(out).values()]
    return any(each.get(MADE) and not each.get(DONE) for each in told)
