"""The commands that fetch: `care download model` and `care download suite`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import sys
from typing import Annotated, Literal

import typer

from care.interfaces.cli.registry import command


@command("download model")
def download_model(
    name: Annotated[Literal["embedded"], typer.Argument(help="The model that comes with care.")],
    where: Annotated[
        bool, typer.Option("--where", help="Only say where it lies, there or not.")
    ] = False,
) -> None:
    """Download the parts of the embedded model and assemble it; the folder it lies in."""
    from care.models.embedded.cache import base_folder, ensure_base

    if not where:
        print(ensure_base())
        return
    folder = base_folder()
    if not folder.is_dir():
        print("Not assembled yet; run `care download model embedded`.", file=sys.stderr)
    print(folder)


@command("download suite")
def download_suite(
    name: Annotated[str, typer.Argument(help="Name of a published suite; see `care list suites`.")],
) -> None:
    """Fetch a published suite into the cache, as every command does that asks it."""
    from care.data.registry import load_suite

    suite = load_suite(name)
    print(f"{suite.name}: {len(suite)} examples, revision {suite.revision or 'not stated'}")
